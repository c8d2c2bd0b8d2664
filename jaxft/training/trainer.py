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
import optax

from jaxft import console
from jaxft import tree as trees
from jaxft.errors import Stopped, TrainingError
from jaxft.lora import init
from jaxft.training import evaluate, interrupt, metrics, optimizer
from jaxft.training import state as states
from jaxft.training import step as steps
from jaxft.training.checkpoint import Checkpoints
from jaxft.training.evaluate import Evaluation
from jaxft.training.setup import Plan


class Outcome(NamedTuple):
    """What a finished run leaves.

    Attributes:
        trainable: The trained leaves.
        before: The held-out evaluation at step 0, or `None`.
        after: The held-out evaluation at the end, or `None`.
    """

    trainable: trees.Tree
    before: Evaluation | None
    after: Evaluation | None


@dataclasses.dataclass
class _Pending:
    """A step that was dispatched and whose metrics were not read yet."""

    step: int
    metrics: Any
    tokens: int


class Trainer:
    """One run: its compiled programs, and the record of where it stands."""

    def __init__(self, plan: Plan, frozen: trees.Tree) -> None:
        """Compile nothing yet; the first step and the first evaluation do."""
        train = plan.config.train
        self.plan, self.frozen = plan, frozen
        self.schedule = optimizer.make_schedule(train, plan.num_steps)
        self.optimizer: optax.GradientTransformation = optimizer.make_optimizer(
            train, self.schedule
        )
        self.start = init.init_adapters(plan.network, seed=train.seed, mesh=plan.mesh)
        self.program = steps.Program(
            network=plan.network,
            mesh=plan.mesh,
            dtype=plan.dtype,
            capacity=plan.train.target_capacity,
            remat=train.gradient_checkpointing,
        )
        self._step = steps.make_train_step(self.program, self.optimizer, self.schedule, self.start)
        self._eval_step: Callable[..., Any] | None = None
        if plan.eval is not None:
            held_out = dataclasses.replace(self.program, capacity=plan.eval.target_capacity)
            self._eval_step = steps.make_eval_step(held_out)
        self._window = metrics.Window()
        self._clock = time.monotonic()

    def run(self, checkpoints: Checkpoints) -> Outcome:
        """Train to the end, from the latest checkpoint where there is one.

        Raises:
            Stopped: If a signal came; the state is saved.
            TrainingError: If the loss is no longer a number.
        """
        plan = self.plan
        abstract = states.abstract_state(self.start, self.optimizer, plan.mesh)
        restored = checkpoints.restore_latest(abstract)
        if restored is None:
            state, first = states.init_state(self.start, self.optimizer, plan.mesh), 0
        else:
            state, self._window = restored[0], metrics.Window(**restored[1])
            first = int(state["step"])
            console.note(f"Resuming after step {first} of {plan.num_steps}.")
        path = plan.folder / "metrics.jsonl"
        log = metrics.MetricsFile(path, None if restored is None else first)
        before = self._before(state, path, log, first)
        state = self._train(state, first, checkpoints, log)
        after = self._evaluated(path, plan.num_steps)
        if after is None:
            after = self._evaluate(state, plan.num_steps, log)
        return Outcome(state["trainable"], before, after)

    def _train(
        self, state: Any, first: int, checkpoints: Checkpoints, log: metrics.MetricsFile
    ) -> Any:
        plan, train = self.plan, self.plan.config.train
        shardings = steps.batch_shardings(plan.mesh)
        pending: _Pending | None = None
        self._clock = time.monotonic()
        with (
            interrupt.deferred() as stopped,
            console.training("Training", plan.num_steps, first) as bar,
        ):
            for index, batch in plan.train.iterate(first, plan.num_steps - first):
                tokens = int(np.count_nonzero(batch["segment_ids"]))
                placed = jax.device_put(batch, shardings)
                state, values = self._step(state, self.frozen, placed, np.uint32(train.seed))
                self._read(pending, log, bar)
                pending, done = _Pending(index + 1, values, tokens), index + 1
                is_last = done == plan.num_steps
                saves = is_last or self._is_due(train.save_strategy, train.save_steps, done)
                evaluates = self._is_due(train.eval_strategy, train.evaluation_interval, done)
                if saves or evaluates or stopped():
                    self._read(pending, log, bar)
                    pending = None
                if evaluates:
                    self._evaluate(state, done, log)
                if (saves and train.save_strategy != "no") or stopped():
                    checkpoints.save(done, state, dataclasses.asdict(self._window))
                if stopped() and not is_last:
                    raise Stopped(stopped() or 0)
        return state

    def _read(self, pending: _Pending | None, log: metrics.MetricsFile, bar: Any) -> None:
        """Wait for a step's metrics, count them, and write a line where one is due."""
        if pending is None:
            return
        train, step = self.plan.config.train, pending.step
        values = {name: float(value) for name, value in pending.metrics.items()}
        if not math.isfinite(values["loss"]):
            raise TrainingError(
                f"The loss of step {step} is {values['loss']}.",
                f"The state before it is lost to training; checkpoints are in "
                f"{self.plan.checkpoint_folder}. Lower train.learning_rate, or set "
                "train.max_grad_norm.",
            )
        targets = int(pending.metrics["target_tokens"])
        self._window.add(values["loss"], targets, pending.tokens)
        is_last = step == self.plan.num_steps
        if step % train.logging_steps and not is_last:
            return
        now = time.monotonic()
        window, speed = self._window, self._window.tokens / max(now - self._clock, 1e-9)
        bar.update(step, window.loss, speed)
        log.write(
            step,
            {
                "epoch": round(step / self.plan.train.steps_per_epoch, 4),
                "loss": window.loss,
                "grad_norm": values["grad_norm"],
                "learning_rate": values["learning_rate"],
                "tokens": window.tokens,
                "target_tokens": window.target_tokens,
                "tokens_per_second": round(speed, 1),
            },
        )
        self._window, self._clock = metrics.Window(), now

    def _is_due(self, strategy: str, interval: int, done: int) -> bool:
        if strategy == "epoch":
            interval = self.plan.train.steps_per_epoch
        return strategy != "no" and done % interval == 0

    def _evaluate(self, state: Any, step: int, log: metrics.MetricsFile) -> Evaluation | None:
        """Measure the held-out loss and write it down; `None` without held-out rows."""
        batches = self.plan.eval
        if batches is None or self._eval_step is None:
            return None
        began = time.monotonic()
        with console.loading("Evaluating", batches.steps_per_epoch) as progress:
            found = evaluate.evaluate(
                self._eval_step,
                batches,
                self.plan.mesh,
                state["trainable"],
                self.frozen,
                progress,
            )
        console.note(
            f"Step {step}: held-out loss {found.loss:.4f}, perplexity {found.perplexity:.2f}"
        )
        log.write(step, {"eval_loss": found.loss, "eval_target_tokens": found.target_tokens})
        self._clock += time.monotonic() - began  # not the training's time
        return found

    def _before(
        self, state: Any, path: Any, log: metrics.MetricsFile, first: int
    ) -> Evaluation | None:
        """Evaluate the model as it was before training; of a resumed run, look it up."""
        if self.plan.config.train.eval_strategy == "no":
            return None
        if first == 0:
            return self._evaluate(state, 0, log)
        return self._evaluated(path, 0)

    def _evaluated(self, path: Any, step: int) -> Evaluation | None:
        """Return the evaluation that the record has for a step."""
        for line in metrics.read(path, up_to_step=self.plan.num_steps):
            if line["step"] == step and "eval_loss" in line:
                return Evaluation(line["eval_loss"], line["eval_target_tokens"])
        return None
