"""Evaluates held-out rows before the first step, after steps where it is due, and at the end."""

import time
from collections.abc import Callable

from jaxft import console
from jaxft.data.batches.loader import PlannedBatches
from jaxft.training.evaluate import Evaluation, evaluate
from jaxft.training.objective import Terms
from jaxft.training.run.cadence import Cadence
from jaxft.training.run.listener import GO_ON, Listener, Moment, Verdict
from jaxft.training.run.log import Log
from jaxft.training.run.metrics import MetricsFile


class Evaluating(Listener):
    """Measures the loss on held-out rows, and reports it to the other listeners."""

    def __init__(
        self,
        eval_step: Callable[..., Terms],
        batches: PlannedBatches,
        cadence: Cadence,
        record: MetricsFile,
        log: Log,
        tell: Listener,
    ) -> None:
        """Keep the arguments; nothing is evaluated yet.

        Args:
            eval_step: The compiled evaluation.
            batches: The batches of held-out rows.
            cadence: When evaluations are due.
            record: The metrics file, which has the evaluations of earlier parts of the run.
            log: The log, from whose clock the time of evaluations is left out.
            tell: The listener that is told of evaluations, and that measures further metrics.
        """
        self._eval_step, self._batches, self._cadence = eval_step, batches, cadence
        self._record, self._log, self._tell = record, log, tell

    def is_due(self, step: int) -> bool:
        """Return whether held-out rows are evaluated after this step."""
        return self._cadence.evaluates(step)

    def began(self, now: Moment) -> Verdict:
        """Evaluate before step 0, or catch up on an evaluation missed by an interrupted run."""
        if now.step == 0:
            return self._evaluate(now) if self._cadence.evaluation is not None else GO_ON
        return self._missing(now) if self.is_due(now.step) else GO_ON

    def stepped(self, now: Moment) -> Verdict:
        """Evaluate if an evaluation is due."""
        return self._evaluate(now) if self.is_due(now.step) else GO_ON

    def ended(self, now: Moment) -> Verdict:
        """Evaluate after the last step, unless that was done already."""
        return self._missing(now)

    def _missing(self, now: Moment) -> Verdict:
        return self._evaluate(now) if recorded(self._record, now.step) is None else GO_ON

    def _evaluate(self, now: Moment) -> Verdict:
        began = time.monotonic()
        with console.progress("Evaluating", self._batches.steps_per_epoch) as progress:
            found = evaluate(
                self._eval_step,
                self._batches,
                now.state.trainable,
                now.state.constant(now.carried),
                progress,
                now.is_interrupted,
            )
        seconds = time.monotonic() - began
        self._log.pause(seconds)
        if found is None:
            return GO_ON
        console.note(
            f"Step {now.step}: held-out loss {found.loss:.4f}, perplexity {found.perplexity:.2f} "
            f"({seconds:.1f} s)"
        )
        line = {
            **self._tell.measure(now),
            **{f"eval_{name}": value for name, value in found.further.items()},
            "eval_loss": found.loss,
            "eval_target_tokens": found.target_tokens,
        }
        return self._tell.evaluated(now.step, line)


def recorded(record: MetricsFile, step: int) -> Evaluation | None:
    """Return the recorded evaluation of a step; `None` if there is none."""
    line = record.find(step, "eval_loss")
    return None if line is None else Evaluation(line["eval_loss"], line["eval_target_tokens"])
