"""Makes log lines: the means of the steps since the last line, and their speed."""

import time

from jaxft import console
from jaxft.training.run.cadence import Cadence
from jaxft.training.run.listener import GO_ON, Listener, Verdict
from jaxft.training.run.metrics import Window
from jaxft.training.step import StepMetrics


class Log(Listener):
    """Makes a log line when one is due, and passes it to the other listeners.

    Attributes:
        window: The sums over the steps since the last line. It is saved in checkpoints.
        bar: The progress bar that shows the latest line.
    """

    def __init__(
        self, cadence: Cadence, steps_per_epoch: int | None, window: Window, tell: Listener
    ) -> None:
        """Begin with a window, which for a resumed run comes from its checkpoint.

        Args:
            cadence: When lines are due.
            steps_per_epoch: The number of steps of an epoch; `None` for a stream.
            window: The sums over the steps since the last line.
            tell: The listener that is told of each line.
        """
        self.window, self.bar = window, console.TrainingBar("Training", cadence.last, None, None)
        self._cadence, self._steps_per_epoch, self._tell = cadence, steps_per_epoch, tell
        self._latest: tuple[int, StepMetrics] | None = None
        self._clock = time.monotonic()

    def start(self, bar: console.TrainingBar) -> None:
        """Show lines on a progress bar, and start the clock."""
        self.bar, self._clock = bar, time.monotonic()

    def pause(self, seconds: float) -> None:
        """Leave out some seconds that were not spent on training."""
        self._clock += seconds

    def read(self, step: int, figures: StepMetrics, tokens: int) -> Verdict:
        """Add a step to the window, and make a line if one is due."""
        terms = {
            name: (total.item(), count.item()) for name, (total, count) in figures.terms.items()
        }
        self.window.add(terms, tokens)
        self._latest = (step, figures)
        self.bar.advance(step)
        return self._line() if self._cadence.logs(step) else GO_ON

    def finish(self) -> Verdict:
        """Make a line of the steps that are not in a line yet."""
        return self._line() if self.window.target_tokens else GO_ON

    def _line(self) -> Verdict:
        assert self._latest is not None, "a line is written of steps that were made"
        now, (step, figures), window = time.monotonic(), self._latest, self.window
        speed, means = window.tokens / max(now - self._clock, 1e-9), window.means()
        self.bar.update(step, means["loss"], speed)
        of_epoch = self._steps_per_epoch
        line = {
            **({"epoch": round(step / of_epoch, 4)} if of_epoch else {}),
            **means,
            "grad_norm": float(figures.grad_norm),
            "learning_rate": float(figures.learning_rate),
            "tokens": window.tokens,
            "target_tokens": window.target_tokens,
            "tokens_per_second": round(speed, 1),
        }
        verdict = self._tell.logged(step, line)
        self.window, self._clock = Window(), now
        return verdict
