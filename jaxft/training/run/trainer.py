"""The training loop: dispatches steps, and calls listeners between them.

The loop waits for the device only if it must: step n is dispatched before the metrics of step n - 1
are read. Whatever happens between steps is done by listeners. All numbers depend only on the state,
the plan, and the `Window` of sums, which is saved in checkpoints.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxft import console
from jaxft import tree as trees
from jaxft.artifacts import initial
from jaxft.errors import Stopped, TrainingError
from jaxft.lora import mask
from jaxft.models import untuned
from jaxft.parallel import mesh as meshes
from jaxft.training import optimizer
from jaxft.training import state as states
from jaxft.training.checkpoint import Checkpoints
from jaxft.training.evaluate import Evaluation
from jaxft.training.objective import batch_shardings
from jaxft.training.optimizer import make_optimizer
from jaxft.training.prepare.plan import Plan
from jaxft.training.run import cadence, evaluating, interrupt
from jaxft.training.run.evaluating import Evaluating
from jaxft.training.run.listener import GO_ON, Listener, Listeners, Moment, Verdict
from jaxft.training.run.log import Log
from jaxft.training.run.metrics import MetricsFile, Window
from jaxft.training.run.programs import Programs
from jaxft.training.run.saving import Saving
from jaxft.training.state import TrainState
from jaxft.training.step import StepMetrics


class Outcome(NamedTuple):
    """The result of a finished run.

    Attributes:
        start: The trained leaves before training: the base model's own, and fresh adapters.
        trainable: The trained leaves after training.
        frozen: All other leaves of the model.
        before: The held-out evaluation at step 0; `None` if there was none.
        after: The held-out evaluation at the end; `None` if there was none.
        num_steps: The number of steps done.
    """

    start: trees.Tree
    trainable: trees.Tree
    frozen: trees.Tree
    before: Evaluation | None
    after: Evaluation | None
    num_steps: int = 0


class _Pending(NamedTuple):
    """A step that was dispatched but whose metrics were not read yet."""

    step: int
    metrics: StepMetrics
    tokens: int


class _Between(NamedTuple):
    """The listeners that act between steps.

    Attributes:
        log: The listener that makes log lines.
        saving: The listener that writes checkpoints.
        everyone: All listeners, including these two.
    """

    log: Log
    saving: Saving
    everyone: Listeners


class Trainer:
    """Runs the steps of a plan with compiled programs, and calls listeners between them.

    Attributes:
        plan: The plan of the run.
        programs: The compiled programs of the run.
        hyper: The numbers of the optimizer, on every device.
        start: The trained leaves before the first step.
        frozen: The frozen leaves, which are not in the state.
        started: The initial A0 and B0 of adapters, unless this run resumes from a checkpoint.
    """

    def __init__(
        self, plan: Plan, tree: trees.Tree, programs: Programs, listeners: Sequence[Listener]
    ) -> None:
        """Divide the leaves into parts; nothing is computed yet.

        Args:
            plan: The plan of the run.
            tree: All leaves before the first step.
            programs: The compiled programs of this plan.
            listeners: Further listeners, called after those that log, save and evaluate.
        """
        self.plan, self.programs, self._listeners = plan, programs, listeners
        # Sharded as the step returns them, so that a resumed run also compiles only once.
        self.start, self.started, numbers, self.frozen = mask.parts(plan.network, tree)
        hyper = optimizer.hyper_of(plan.config.train, plan.num_steps)
        # Copied, because a step donates the buffers of its state, and `tree` may be used again.
        self.hyper = jax.device_put(
            dataclasses.replace(hyper, adapters=numbers),
            meshes.replicated(plan.mesh),
            may_alias=False,
        )
        self._carried = self.frozen
        if programs.static.objective.needs_base:
            self._carried = untuned.with_originals(plan.network, self.frozen, self.start)

    def run(self, checkpoints: Checkpoints) -> Outcome:
        """Train to the end, from the latest checkpoint if there is one.

        Raises:
            Stopped: If a signal came; the state is saved.
            TrainingError: If the loss or its gradient is not finite.
        """
        plan = self.plan
        restored = checkpoints.restore_latest(
            states.abstract_saved(self.start, self.started, self.hyper, make_optimizer, plan.mesh)
        )
        if restored is None:
            state, window, first = self.state_of(self._beginning()), Window(), 0
        else:
            state = TrainState.restored(restored[0], self.hyper)
            window, first = Window.from_record(restored[1]), int(state.step)
            console.note(_resuming(first, plan.num_steps))
        record = MetricsFile(plan.folder / "metrics.jsonl", first if restored else None)
        between = self._between(checkpoints, record, window)
        # Before the first step this is the plain base, even if training continues from an adapter.
        seen = state if first else dataclasses.replace(state, trainable=self.start)
        verdict = between.everyone.began(Moment(first, seen, self.frozen, self._carried, _never))
        now = self._train(state, first, verdict, between)
        between.everyone.ended(now)
        return Outcome(
            start=self.start,
            trainable=now.state.trainable,
            frozen=now.constant,
            before=evaluating.recorded(record, 0),
            after=evaluating.recorded(record, now.step),
            num_steps=now.step,
        )

    def state_of(self, trainable: trees.Tree) -> TrainState:
        """Return the state before the first step of a run that begins with these trained leaves."""
        return states.init_state(
            trainable, self.started, self.hyper, make_optimizer, self.plan.mesh
        )

    def _beginning(self) -> trees.Tree:
        """Return the trained leaves with which the first step begins."""
        given = self.plan.initial
        return self.start if given is None else initial.placed(given, self.start)

    def _between(self, checkpoints: Checkpoints, record: MetricsFile, window: Window) -> _Between:
        plan, everyone = self.plan, Listeners()
        due = cadence.of_recipe(plan.config.train, plan.num_steps, plan.train.steps_per_epoch)
        log = Log(due, plan.train.steps_per_epoch, window, everyone)
        saving = Saving(checkpoints, due, log, everyone)
        everyone.add([log, record, saving])
        eval_step = self.programs.eval_step
        if plan.eval is not None and eval_step is not None:
            everyone.add([Evaluating(eval_step, plan.eval, due, record, log, everyone)])
        everyone.add(self._listeners)
        return _Between(log, saving, everyone)

    def _train(self, state: TrainState, first: int, verdict: Verdict, between: _Between) -> Moment:
        """Run the steps after `first`, and return the run after the last one.

        Raises:
            Stopped: If a signal came; the state is saved.
        """
        plan, everyone = self.plan, between.everyone
        seed = np.uint32(plan.config.train.seed)
        shardings = batch_shardings(self.programs.static.objective, plan.mesh)
        pending: _Pending | None = None
        with (
            interrupt.deferred() as signal,
            console.training("Training", plan.num_steps, first) as bar,
        ):
            is_interrupted = lambda: signal() is not None  # noqa: E731
            now = Moment(first, state, self.frozen, self._carried, is_interrupted)
            between.log.start(bar)
            feed = plan.train.iterate(first, 0 if verdict.stop else plan.num_steps - first)
            for index, batch in feed:
                tokens = int(np.count_nonzero(batch["segment_ids"]))
                placed = jax.device_put(batch, shardings)
                state, values = self.programs.train_step(now.state, now.carried, placed, seed)
                now = now._replace(step=index + 1, state=state)
                verdict = self._read(pending, everyone)
                pending = _Pending(now.step, values, tokens)
                if everyone.is_due(now.step):
                    verdict |= self._read(pending, everyone)
                    pending = None
                verdict |= everyone.stepped(now)
                if verdict.save:
                    verdict |= self._read(pending, everyone)
                    pending = None
                    between.saving.save(now)
                if verdict.stop or is_interrupted():
                    break
            self._read(pending, everyone)
            if verdict.stop:
                between.log.finish()
        if feed.total_s > 0:
            waited = feed.waited_s / feed.total_s
            console.note(f"Waiting for batches took {waited:.1%} of the time.")
        # Checked here, so that a signal that came after the last step counts too.
        number = signal()
        if number is not None:
            between.saving.interrupted(now)
            console.note(f"Stopped after step {now.step} of {plan.num_steps}, which is saved.")
            raise Stopped(number)
        return now._replace(is_interrupted=_never)

    def _read(self, pending: _Pending | None, everyone: Listeners) -> Verdict:
        """Wait for the metrics of a step, and pass them to all listeners.

        Raises:
            TrainingError: If the loss or its gradient is not finite.
        """
        if pending is None:
            return GO_ON
        seen = jax.device_get(pending.metrics)
        self._check_finite(pending.step, seen)
        return everyone.read(pending.step, seen, pending.tokens)

    def _check_finite(self, step: int, seen: StepMetrics) -> None:
        """Check that a step was not skipped because its loss or gradient was not finite.

        Raises:
            TrainingError: If the step was skipped.
        """
        if not seen.is_skipped:
            return
        train = self.plan.config.train
        loss, norm = float(seen.loss), float(seen.grad_norm)
        words, value = ("norm of the gradient", norm) if math.isfinite(loss) else ("loss", loss)
        raise TrainingError(
            f"The {words} of step {step} is {value}; nothing of this step is saved.",
            f"Lower train.learning_rate (it is {train.learning_rate:g}) or "
            f"train.max_grad_norm ({train.max_grad_norm:g}), and choose another "
            "train.output_dir: checkpoints are resumed with the numbers they were made with.",
        )


def _never() -> bool:
    return False


def _resuming(first: int, num_steps: int) -> str:
    if first == num_steps:
        return f"All {num_steps} steps of this run are done; its result is written again."
    return f"Going on after step {first} of {num_steps}, from the checkpoint."
