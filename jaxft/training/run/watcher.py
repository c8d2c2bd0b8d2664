"""What a run tells of itself while it goes, for whoever wants to listen or to stop it."""

from collections.abc import Mapping
from typing import Any

from jaxft import tree as trees


class Watcher:
    """Told of everything that happens between steps; this one does nothing with it."""

    def stepped(self, step: int) -> bool:
        """A step was dispatched; return whether the run is to stop after it."""
        return False

    def logged(self, step: int, line: Mapping[str, Any]) -> None:
        """A line of training metrics was written."""

    def saved(self, step: int) -> None:
        """A checkpoint was begun."""

    def measure(self, trainable: trees.Tree, frozen: trees.Tree) -> dict[str, float]:
        """Return further figures of an evaluation, by the names they are logged under."""
        return {}

    def evaluated(self, step: int, line: Mapping[str, Any]) -> None:
        """A line of evaluation metrics was written."""
