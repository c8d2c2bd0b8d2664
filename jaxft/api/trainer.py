"""`Trainer`: the same training as `jaxft train`, from objects in Python.

It plans like a recipe (`training.setup.plan_rows`) and runs the same loop
(`training.trainer.Trainer`); here is only what Python adds: data sets in memory, callbacks,
metrics of the user's own, a loss of the user's own.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxft import config as configs
from jaxft import tree as trees
from jaxft.api import asked, loss, resizing
from jaxft.api import callbacks as told
from jaxft.api.callbacks import TrainerCallback, TrainerControl, TrainerState
from jaxft.api.loss import ComputeLoss
from jaxft.api.model import CausalLM
from jaxft.api.peft_model import PeftModel
from jaxft.config import TrainConfig, TuningConfig
from jaxft.data.rows.row import Tokenized
from jaxft.data.rows.tokenized import IGNORED
from jaxft.data.sources.source import rows_of
from jaxft.errors import ConfigError
from jaxft.lora import starts
from jaxft.models import forward
from jaxft.parallel import devices
from jaxft.parallel import mesh as meshes
from jaxft.training import objective
from jaxft.training import step as steps
from jaxft.training.evaluate import Evaluation, evaluate
from jaxft.training.objective import CAUSAL_LM, Objective
from jaxft.training.prepare import reading, setup
from jaxft.training.prepare.setup import Plan
from jaxft.training.run import finish, folder, metrics, trainer
from jaxft.training.run.watcher import Watcher


class EvalPrediction(NamedTuple):
    """What `compute_metrics` is given.

    Attributes:
        predictions: float32 [rows t v], or what `preprocess_logits_for_metrics` made of them.
        label_ids: int32 [rows t], not shifted: the token itself where it is a target, else -100.
    """

    predictions: Any
    label_ids: np.ndarray


class TrainOutput(NamedTuple):
    """What `train` returns.

    Attributes:
        global_step: Steps done.
        training_loss: Mean loss in nats of the last logged steps.
        metrics: The held-out loss before and after, where it was measured.
    """

    global_step: int
    training_loss: float
    metrics: dict[str, float]


class Trainer:
    """Trains an adapter, or a model, on rows, in the names of transformers' `Trainer`.

    A subclass may define ``compute_loss(self, model, inputs)``; it is traced by JAX, calls
    ``model(**inputs)`` once, and returns the mean loss.
    """

    def __init__(
        self,
        model: CausalLM,
        args: object,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_loss_func: ComputeLoss | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        preprocess_logits_for_metrics: Callable[[Any, Any], Any] | None = None,
        callbacks: Sequence[Any] | None = None,
        max_length: int | None = None,
        packing: bool = False,
        mesh: configs.MeshConfig | None = None,
        tuning: str | Mapping[str, Any] | TuningConfig | None = None,
        tokenizer: Any = None,
        **others: Any,
    ) -> None:
        """Keep everything; nothing is read until `train` or `evaluate`.

        Args:
            model: From `get_peft_model`, or `PeftModel.from_pretrained(..., is_trainable=True)`; or
                a model without an adapter, of which `tuning` is trained.
            args: The run, as `TrainingArguments`.
            train_dataset: Rows of any shape that files may have, or token ids (`input_ids`,
                `labels`): a list of dicts, a `datasets.Dataset`, or anything iterable.
            eval_dataset: Held-out rows.
            processing_class: A tokenizer; `None` takes the one in the model's folder, unless all
                rows are tokens already.
            compute_loss_func: A loss of your own: a function of (outputs, labels, number of
                targets) in JAX, to the mean loss. It is given all logits [b t v].
            compute_metrics: Further figures at each evaluation.
            preprocess_logits_for_metrics: Applied to (logits, labels) of each batch before they
                are kept for `compute_metrics`: keep little, logits of all rows are large.
            callbacks: Each a `TrainerCallback`, told of what happens.
            max_length: The most tokens of a row that are kept; `None` is 1,024, or fewer where the
                model has fewer positions.
            packing: Put several rows into one sequence.
            mesh: How devices are laid out; `None` divides the rows over all of them.
            tuning: What is trained, as in a recipe: "lora", "full", or {"method": "freeze", ...}.
                `None` is the adapter, and the whole model where there is none, as in transformers.
            tokenizer: The former name of `processing_class`.
            **others: Arguments of transformers' Trainer that are not supported, if not `None`.

        Raises:
            ConfigError: If what is asked for cannot be trained of this model, or an argument is
                not supported.
        """
        asked.refuse(others, list(inspect.signature(Trainer).parameters))
        if not isinstance(args, TrainConfig):
            raise ConfigError(
                f"args is a {type(args).__module__}.{type(args).__qualname__}.",
                "Expected a jaxft.TrainingArguments, which takes the same names.",
            )
        self.model, self.args = model, args
        self._recipe = asked.recipe(
            model,
            args,
            asked.tuning_section(tuning, model),
            mesh or configs.MeshConfig(),
            max_length or min(1024, model.network.spec.max_tokens or 1024),
            packing,
        )
        asked.prepare(model, self._recipe.tuning)
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.processing_class = tokenizer if processing_class is None else processing_class
        self.callbacks: list[TrainerCallback] = []
        for callback in callbacks or ():
            self.add_callback(callback)
        self.state, self.control = _new_state(), TrainerControl()
        self._compute_loss_func = compute_loss_func
        self._compute_metrics = compute_metrics
        self._preprocess = preprocess_logits_for_metrics or (lambda logits, labels: logits)

    def add_callback(self, callback: Any) -> None:
        """Have one more callback told of what happens.

        Raises:
            ConfigError: If it waits for something that it would never be told.
        """
        callback = callback() if isinstance(callback, type) else callback
        told.check(callback)
        self.callbacks.append(callback)

    def train(self) -> TrainOutput:
        """Train to the end, from the latest checkpoint in `output_dir` where there is one.

        A callback that sets `control.should_training_stop` ends the run after that step, as if it
        were the last: the step is logged, evaluated and, unless `save_strategy` is "no", saved. The
        same call again goes on from there.

        The model then has the trained leaves. `output_dir/adapter` holds them in PEFT's format or,
        where the model itself was tuned, `output_dir/model` the whole; read back and compared.

        Raises:
            JaxftError: If the data, the folder or the model is not what training needs.
        """
        plan = self._plan(self.train_dataset, "train_dataset")
        folder.check(plan)
        if isinstance(self.model, PeftModel):
            self.model.start_from(self.args.seed)
        self.state, self.control = _new_state(), TrainerControl()
        self.state.max_steps = plan.num_steps
        tree = self.model.tree(plan.mesh)
        self.tell("on_train_begin")
        with folder.open_checkpoints(plan) as checkpoints:
            run = trainer.Trainer(plan, tree, _Listener(self, plan), self._objective())
            outcome = run.run(checkpoints)
        began = starts.of(outcome.frozen)
        self.model.set_chat_format(plan.data.chat_format)
        self.model.set_trained_leaves(trees.combine(outcome.trainable, began))
        finish.write_result(plan, outcome)
        # With the lines of a run that this one went on from.
        lines = metrics.read(plan.folder / "metrics.jsonl", plan.num_steps)
        self.state.log_history[:] = lines
        # No step was left to do where the checkpoint is the last one's.
        self._reached(plan, self.state.global_step or plan.num_steps)
        self.tell("on_train_end")
        logged = [line["loss"] for line in lines if "loss" in line]
        evaluations = {"eval_loss_before": outcome.before, "eval_loss": outcome.after}
        return TrainOutput(
            self.state.global_step,
            logged[-1] if logged else float("nan"),
            {name: found.loss for name, found in evaluations.items() if found is not None},
        )

    def evaluate(self, eval_dataset: Any = None) -> dict[str, float]:
        """Return the held-out loss, and what `compute_metrics` makes of the logits.

        Args:
            eval_dataset: Rows; `None` takes those that the trainer was given.

        Raises:
            DataError: If there are none.
        """
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        plan = self._plan(rows, "eval_dataset", is_eval_only=True)
        tree = self.model.tree(plan.mesh)
        assert plan.eval is not None
        program = steps.Program(
            plan.network, plan.mesh, plan.dtype, plan.eval.target_capacity, False, self._objective()
        )
        found = evaluate(
            steps.make_eval_step(program),
            plan.eval,
            {},
            tree,
            lambda _: None,
            lambda: False,
        )
        assert isinstance(found, Evaluation)
        figures = {**self.measure(plan, {}, tree), "eval_loss": found.loss}
        self.tell("on_evaluate", metrics=dict(figures))
        return figures

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Write the adapter in PEFT's format, or the whole model that was tuned.

        Without a folder it is `output_dir/adapter`, or `output_dir/model`.
        """
        kind = "adapter" if isinstance(self.model, PeftModel) else "model"
        self.model.save_pretrained(output_dir or self.args.output_dir / kind)

    def tell(self, event: str, **details: Any) -> None:
        """Call a method of every callback."""
        for callback in self.callbacks:
            getattr(callback, event)(
                self.args, self.state, self.control, model=self.model, **details
            )

    def _reached(self, plan: Plan, step: int) -> None:
        self.state.global_step = step
        assert plan.train.steps_per_epoch, "rows in Python have an end"
        self.state.epoch = step / plan.train.steps_per_epoch

    def measure(self, plan: Plan, trainable: trees.Tree, frozen: trees.Tree) -> dict[str, float]:
        """Return what `compute_metrics` makes of all held-out logits, names led by "eval_"."""
        if self._compute_metrics is None or plan.eval is None:
            return {}
        kept, labels = [], []
        logits_of = _make_logits(plan)
        shardings = objective.batch_shardings(CAUSAL_LM, plan.mesh)
        num_rows = plan.eval.num_sequences
        for _, batch in plan.eval.iterate(0, plan.eval.steps_per_epoch):
            truth = _unshifted(batch["labels"][0])
            logits = logits_of(trainable, frozen, jax.device_put(batch, shardings))
            kept.append(jax.tree.map(np.asarray, self._preprocess(logits, truth)))
            labels.append(truth)
        # The last batch is filled up with empty rows.
        predictions = jax.tree.map(lambda *parts: np.concatenate(parts)[:num_rows], *kept)
        given = EvalPrediction(predictions, np.concatenate(labels)[:num_rows])
        figures = self._compute_metrics(given)
        return {
            name if name.startswith("eval_") else f"eval_{name}": float(value)
            for name, value in figures.items()
        }

    def _plan(self, dataset: Any, name: str, *, is_eval_only: bool = False) -> Plan:
        model = self.model
        if dataset is None:
            raise ConfigError(f"The Trainer was given no {name}.", f"Pass {name}=...")
        devices.check()
        wanted = self._recipe.mesh
        mesh = meshes.make_mesh(wanted.data, wanted.fsdp, wanted.tensor)
        rows = rows_of(dataset, name)
        held_out = None
        if is_eval_only:
            held_out = rows
        elif self.eval_dataset is not None:
            held_out = rows_of(self.eval_dataset, "eval_dataset")
        tokenizer = self.processing_class
        if tokenizer is not None:
            resizing.with_tokenizer(model, tokenizer)
        given = [rows] if held_out is None else [rows, held_out]
        if tokenizer is None and any(
            not isinstance(row, Tokenized) for source in given for row in source
        ):
            tokenizer = model.source.tokenizer()
        train = [rows]
        of_eval = train if is_eval_only else None if held_out is None else [held_out]
        opened = reading.OpenRows(train, of_eval)
        return setup.plan_rows(
            self._recipe,
            model.source,
            model.family,
            model.network,
            tokenizer,
            mesh,
            model.dtype,
            opened,
        )

    def _objective(self) -> Objective:
        own = getattr(self, "compute_loss", None)  # of a subclass, as transformers has it
        if own is not None:
            return loss.of_method(own)
        if self._compute_loss_func is not None:
            return loss.of_function(self._compute_loss_func)
        return CAUSAL_LM


def _new_state() -> TrainerState:
    return TrainerState(global_step=0, max_steps=0, epoch=0.0, log_history=[])


class _Listener(Watcher):
    """Tells callbacks what the training loop tells of itself."""

    def __init__(self, owner: Trainer, plan: Plan) -> None:
        self._owner, self._plan = owner, plan

    def stepped(self, step: int) -> bool:
        self._owner._reached(self._plan, step)
        self._owner.tell("on_step_end")
        return self._owner.control.should_training_stop

    def logged(self, step: int, line: Any) -> None:
        # The next step may be under way already: metrics are read one behind.
        self._owner._reached(self._plan, step)
        self._owner.state.log_history.append({"step": step, **line})
        self._owner.tell("on_log", logs=dict(line))

    def saved(self, step: int) -> None:
        self._owner._reached(self._plan, step)
        self._owner.tell("on_save")

    def measure(self, trainable: trees.Tree, frozen: trees.Tree) -> dict[str, float]:
        return self._owner.measure(self._plan, trainable, frozen)

    def evaluated(self, step: int, line: Any) -> None:
        self._owner._reached(self._plan, step)
        self._owner.state.log_history.append({"step": step, **line})
        self._owner.tell("on_evaluate", metrics=dict(line))


def _make_logits(plan: Plan) -> Callable[..., jax.Array]:
    def logits(trainable: Any, frozen: Any, batch: Any) -> jax.Array:
        tree = trees.combine(trainable, frozen)
        names = ("input_ids", "segment_ids", "positions")
        rows = (batch[name][0] for name in names)
        return forward.logits(plan.network, tree, *rows, mesh=plan.mesh, dtype=plan.dtype)

    return jax.jit(logits, out_shardings=meshes.replicated(plan.mesh))


def _unshifted(labels: np.ndarray) -> np.ndarray:
    """Return labels as Hugging Face has them: at the token itself, not at the one before."""
    moved = np.roll(labels, 1, axis=1)
    moved[:, 0] = IGNORED
    return moved
