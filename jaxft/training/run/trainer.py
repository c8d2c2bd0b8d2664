"""The training loop: which step runs next, and what happens between steps.

The device is never waited for without need: step n is dispatched, then the metrics of step n - 1
are read. Evaluation, checkpoints and log lines happen on their steps; everything that the numbers
depend on is in the state, the plan, and the `Window` of sums, which travels with the checkpoint.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxft import console
from jaxft import tree as trees
from jaxft.artifacts import initial
from jaxft.errors import Stopped, TrainingError
from jaxft.lora import mask, starts
from jaxft.parallel import mesh as meshes
from jaxft.training import evaluate, optimizer
from jaxft.training import state as states
from jaxft.training import step as steps
from jaxft.training.checkpoint import Checkpoints
from jaxft.training.evaluate import Evaluation
from jaxft.training.objective import CAUSAL_LM, Objective, batch_shardings
from jaxft.training.optimizer import make_optimizer
from jaxft.training.prepare.plan import Plan
from jaxft.training.run import interrupt, metrics
from jaxft.training.run.watcher import Watcher
from jaxft.training.state import TrainState


class Outcome(NamedTuple):
    """What a finished run leaves.

    Attributes:
        start: The trained leaves as the base has them, and with adapters that are fresh.
        trainable: The trained leaves.
        frozen: The other leaves.
        before: The held-out evaluation at step 0, or `None`.
        after: The held-out evaluation at the end, or `None`.
        num_steps: How many steps were made.
    """

    start: trees.Tree
    trainable: trees.Tree
    frozen: trees.Tree
    before: Evaluation | None
    after: Evaluation | None
    num_steps: int = 0


@dataclasses.dataclass
class _Pending:
    """A step that was dispatched and whose metrics were not read yet."""

    step: int
    metrics: steps.StepMetrics
    tokens: int


class Trainer:
    """One run: its compiled programs, and the record of where it stands."""

    def __init__(
        self,
        plan: Plan,
        tree: trees.Tree,
        watcher: Watcher,
        objective: Objective = CAUSAL_LM,
    ) -> None:
        """Compile nothing yet; the first step and the first evaluation do.

        Args:
            plan: What to do.
            tree: All leaves, as they are before the first step.
            watcher: Told of what happens.
            objective: What is minimised.
        """
        train = plan.config.train
        self.plan, self.watcher = plan, watcher
        # Placed as the step returns them, so that a run that goes on compiles once too.
        self.hyper = jax.device_put(
            optimizer.hyper_of(train, plan.num_steps), meshes.replicated(plan.mesh)
        )
        self.start, frozen = trees.partition(tree, mask.trainable_mask(plan.network, tree))
        self.frozen, self.started = starts.without(frozen), starts.of(frozen)
        self.program = steps.Program(
            network=plan.network,
            mesh=plan.mesh,
            dtype=plan.dtype,
            capacity=plan.train.target_capacity,
            remat=train.gradient_checkpointing,
            objective=objective,
        )
        self._step = steps.make_train_step(self.program, make_optimizer, self.hyper, self.start)
        self._eval_step: Callable[..., Any] | None = None
        if plan.eval is not None:
            held_out = dataclasses.replace(self.program, capacity=plan.eval.target_capacity)
            self._eval_step = steps.make_eval_step(held_out)
        self._window = metrics.Window()
        self._latest: tuple[int, steps.StepMetrics | None] = (0, None)  # the step read last
        self._clock = time.monotonic()

    def run(self, checkpoints: Checkpoints) -> Outcome:
        """Train to the end, from the latest checkpoint where there is one.

        Raises:
            Stopped: If a signal came; the state is saved.
            TrainingError: If the loss or its gradient is no longer a number.
        """
        plan = self.plan
        restored = checkpoints.restore_latest(
            states.abstract_saved(self.start, self.started, self.hyper, make_optimizer, plan.mesh)
        )
        if restored is None:
            began = self.start
            if plan.initial is not None:
                began = initial.placed(plan.initial, self.start)
            state, first = self.state_of(began), 0
        else:
            state = TrainState.restored(restored[0], self.hyper)
            self._window, first = metrics.Window.from_record(restored[1]), int(state.step)
            console.note(_resuming(first, plan.num_steps))
        log = metrics.MetricsFile(plan.folder / "metrics.jsonl", first if restored else None)
        if first == 0:
            if plan.config.train.eval_strategy != "no":
                # Of the plain base, also where training goes on from an adapter.
                self._evaluate(dataclasses.replace(state, trainable=self.start), 0, log)
        elif self._evaluates(first) and _evaluation(log, first) is None:
            # Saved before it was evaluated, and stopped between the two.
            self._evaluate(state, first, log)
        state, last = self._train(state, first, checkpoints, log)
        if _evaluation(log, last) is None:
            self._evaluate(state, last, log)
        return Outcome(
            start=self.start,
            trainable=state.trainable,
            frozen=trees.combine(self.frozen, state.started),
            before=_evaluation(log, 0),
            after=_evaluation(log, last),
            num_steps=last,
        )

    def state_of(self, trainable: trees.Tree) -> TrainState:
        """Return the state before the first step of a run that begins at some trained leaves."""
        return states.init_state(
            trainable, self.started, self.hyper, make_optimizer, self.plan.mesh
        )

    def _train(
        self, state: Any, first: int, checkpoints: Checkpoints, log: metrics.MetricsFile
    ) -> tuple[Any, int]:
        """Run the steps after `first`, and return the state and the number of the last one."""
        plan, done, is_ended = self.plan, first, False
        seed = np.uint32(plan.config.train.seed)
        shardings = batch_shardings(self.program.objective, plan.mesh)
        pending: _Pending | None = None
        self._clock = time.monotonic()
        with (
            interrupt.deferred() as signal,
            console.training("Training", plan.num_steps, first) as bar,
        ):
            feed = plan.train.iterate(first, plan.num_steps - first)
            for index, batch in feed:
                tokens = int(np.count_nonzero(batch["segment_ids"]))
                placed = jax.device_put(batch, shardings)
                state, values = self._step(state, self.frozen, placed, seed)
                self._read(pending, log, bar)
                pending, done = _Pending(index + 1, values, tokens), index + 1
                if self._saves(done) or self._evaluates(done):
                    self._read(pending, log, bar)
                    pending = None
                if self._saves(done):
                    checkpoints.save(done, state.saved(), self._window.record())
                    self.watcher.saved(done)
                if self._evaluates(done):
                    self._evaluate(state, done, log, lambda: signal() is not None)
                is_ended = self.watcher.stepped(done)
                if is_ended or signal() is not None:
                    break
            self._read(pending, log, bar)
            if is_ended and self._window.target_tokens:
                self._write_line(log, bar)
        if feed.total_s > 0:
            waited = feed.waited_s / feed.total_s
            console.note(f"Waiting for batches took {waited:.1%} of the time.")
        # Asked here, so that one that came after the last step counts too.
        number = signal()
        if number is not None:
            checkpoints.save(done, state.saved(), self._window.record())
            checkpoints.wait()
            console.note(f"Stopped after step {done} of {plan.num_steps}, which is saved.")
            raise Stopped(number)
        if is_ended and plan.config.train.save_strategy != "no" and done not in checkpoints.steps:
            checkpoints.save(done, state.saved(), self._window.record())
            self.watcher.saved(done)
        return state, done

    def _read(
        self, pending: _Pending | None, log: metrics.MetricsFile, bar: console.TrainingBar
    ) -> None:
        """Wait for a step's metrics, count them, and write a line where one is due."""
        if pending is None:
            return
        train, step = self.plan.config.train, pending.step
        seen = jax.device_get(pending.metrics)
        self._check_finite(step, seen)
        terms = {name: (total.item(), count.item()) for name, (total, count) in seen.terms.items()}
        self._window.add(terms, pending.tokens)
        self._latest = (step, seen)
        bar.advance(step)
        if step % train.logging_steps == 0 or step == self.plan.num_steps:
            self._write_line(log, bar)

    def _write_line(self, log: metrics.MetricsFile, bar: console.TrainingBar) -> None:
        """Write down the steps since the last line, and begin anew."""
        now, (step, seen) = time.monotonic(), self._latest
        assert seen is not None, "a line is written of steps that were made"
        window, speed = self._window, self._window.tokens / max(now - self._clock, 1e-9)
        means = window.means()
        bar.update(step, means["loss"], speed)
        of_epoch = self.plan.train.steps_per_epoch
        line = {
            **({"epoch": round(step / of_epoch, 4)} if of_epoch else {}),
            **means,
            "grad_norm": float(seen.grad_norm),
            "learning_rate": float(seen.learning_rate),
            "tokens": window.tokens,
            "target_tokens": window.target_tokens,
            "tokens_per_second": round(speed, 1),
        }
        log.write(step, line)
        self.watcher.logged(step, line)
        self._window, self._clock = metrics.Window(), now

    def _check_finite(self, step: int, seen: steps.StepMetrics) -> None:
        """Stop where a step was skipped because its loss or gradient is not finite.

        Raises:
            TrainingError: If it was.
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

    def _saves(self, done: int) -> bool:
        train = self.plan.config.train
        if train.save_strategy == "no":
            return False
        is_last = done == self.plan.num_steps
        return is_last or self._is_due(train.save_strategy, train.save_steps, done)

    def _evaluates(self, done: int) -> bool:
        train = self.plan.config.train
        return self._is_due(train.eval_strategy, train.evaluation_interval, done)

    def _is_due(self, strategy: str, interval: int, done: int) -> bool:
        if strategy == "epoch":
            interval = self.plan.train.steps_per_epoch or 0
            assert interval, "a stream has no epochs, which the plan has refused"
        return strategy != "no" and done % interval == 0

    def _evaluate(
        self,
        state: Any,
        step: int,
        log: metrics.MetricsFile,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Measure the held-out loss and write it down, if there are held-out rows."""
        batches = self.plan.eval
        if batches is None or self._eval_step is None:
            return
        began, frozen = time.monotonic(), trees.combine(self.frozen, state.started)
        with console.progress("Evaluating", batches.steps_per_epoch) as progress:
            found = evaluate.evaluate(
                self._eval_step,
                batches,
                state.trainable,
                frozen,
                progress,
                is_stopped,
            )
        seconds = time.monotonic() - began
        self._clock += seconds  # not the training's time
        if found is None:
            return
        console.note(
            f"Step {step}: held-out loss {found.loss:.4f}, perplexity {found.perplexity:.2f} "
            f"({seconds:.1f} s)"
        )
        further = self.watcher.measure(state.trainable, frozen)
        line = {
            **further,
            **{f"eval_{name}": value for name, value in found.further.items()},
            "eval_loss": found.loss,
            "eval_target_tokens": found.target_tokens,
        }
        log.write(step, line)
        self.watcher.evaluated(step, line)


def _evaluation(log: metrics.MetricsFile, step: int) -> Evaluation | None:
    """Return the evaluation that the record has for a step."""
    line = log.find(step, "eval_loss")
    return None if line is None else Evaluation(line["eval_loss"], line["eval_target_tokens"])


def _resuming(first: int, num_steps: int) -> str:
    if first == num_steps:
        return f"All {num_steps} steps of this run are done; its result is written again."
    return f"Going on after step {first} of {num_steps}, from the checkpoint."
