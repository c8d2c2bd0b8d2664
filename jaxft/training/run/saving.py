"""Checkpoints between steps: where they are due, where somebody wants one, and at the end."""

from jaxft.training.checkpoint import Checkpoints
from jaxft.training.run.cadence import Cadence
from jaxft.training.run.listener import GO_ON, Listener, Moment, Verdict
from jaxft.training.run.log import Log


class Saving(Listener):
    """Writes checkpoints, and tells of them."""

    def __init__(
        self, checkpoints: Checkpoints, cadence: Cadence, log: Log, tell: Listener
    ) -> None:
        """Write nothing yet.

        Args:
            checkpoints: Where they go.
            cadence: When they are due.
            log: Its window is saved with the state.
            tell: Who hears of them.
        """
        self._checkpoints, self._cadence, self._log, self._tell = checkpoints, cadence, log, tell

    def is_due(self, step: int) -> bool:
        """Return whether a checkpoint is written after this step."""
        return self._cadence.saves(step)

    def stepped(self, now: Moment) -> Verdict:
        """Save if it is time."""
        return self.save(now) if self.is_due(now.step) else GO_ON

    def ended(self, now: Moment) -> Verdict:
        """Save the last step too, if the run saves at all."""
        return self.save(now) if self._cadence.saving is not None else GO_ON

    def save(self, now: Moment) -> Verdict:
        """Begin to write a checkpoint, if there is none of this step, and tell of it."""
        if now.step in self._checkpoints.steps:
            return GO_ON
        self._write(now)
        return self._tell.saved(now.step)

    def interrupted(self, now: Moment) -> None:
        """Save whatever the recipe says of checkpoints, and wait until it is on disk."""
        self._write(now)
        self._checkpoints.wait()

    def _write(self, now: Moment) -> None:
        self._checkpoints.save(now.step, now.state.saved(), self._log.window.record())
