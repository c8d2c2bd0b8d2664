"""Writes checkpoints after steps where they are due or a listener asks for one, and at the end."""

from jaxft.training.checkpoint import Checkpoints
from jaxft.training.run.cadence import Cadence
from jaxft.training.run.listener import GO_ON, Listener, Moment, Verdict
from jaxft.training.run.log import Log


class Saving(Listener):
    """Writes checkpoints, and tells the other listeners."""

    def __init__(
        self, checkpoints: Checkpoints, cadence: Cadence, log: Log, tell: Listener
    ) -> None:
        """Keep the arguments; nothing is written yet.

        Args:
            checkpoints: The checkpoints of the run.
            cadence: When checkpoints are due.
            log: The log, whose window is saved with the state.
            tell: The listener that is told of each checkpoint.
        """
        self._checkpoints, self._cadence, self._log, self._tell = checkpoints, cadence, log, tell

    def is_due(self, step: int) -> bool:
        """Return whether a checkpoint is written after this step."""
        return self._cadence.saves(step)

    def stepped(self, now: Moment) -> Verdict:
        """Save if a checkpoint is due."""
        return self.save(now) if self.is_due(now.step) else GO_ON

    def ended(self, now: Moment) -> Verdict:
        """Save after the last step, if the run writes checkpoints."""
        return self.save(now) if self._cadence.saving is not None else GO_ON

    def save(self, now: Moment) -> Verdict:
        """Begin to write a checkpoint if this step has none, and tell the listeners."""
        if now.step in self._checkpoints.steps:
            return GO_ON
        self._write(now)
        return self._tell.saved(now.step)

    def interrupted(self, now: Moment) -> None:
        """Save even if the recipe asks for no checkpoints, and wait until it is on disk."""
        self._write(now)
        self._checkpoints.wait()

    def _write(self, now: Moment) -> None:
        self._checkpoints.save(now.step, now.state.saved(), self._log.window.record())
