"""`Trainer`: the same training as `jaxft train`, from objects in Python.

It plans like a recipe (`training.setup.plan_rows`) and runs the same loop
(`training.trainer.Trainer`); here is only what Python adds: data sets in memory, callbacks,
metrics of the user's own, a loss of the user's own.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxft import config as configs
from jaxft import tree as trees
from jaxft.api.callbacks import TrainerCallback, TrainerControl, TrainerState
from jaxft.api.model import CausalLM, ModelOutput, PeftModel
from jaxft.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from jaxft.data import sources
from jaxft.errors import ConfigError
from jaxft.models import forward
from jaxft.parallel import devices
from jaxft.parallel import mesh as meshes
from jaxft.training import finish, folder, losses, metrics, setup, trainer
from jaxft.training import step as steps
from jaxft.training.evaluate import Evaluation, evaluate
from jaxft.training.setup import Plan
from jaxft.training.watcher import Watcher

# (outputs with `.logits`, labels [b t] not shifted, number of targets) to the mean loss
ComputeLoss = Callable[[ModelOutput, Any, Any], Any]


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
    """Trains a model with an adapter on rows, in the names of transformers' `Trainer`.

    A subclass may define ``compute_loss(self, model, inputs)``; it is traced by JAX, calls
    ``model(**inputs)`` once, and returns the mean loss.
    """

    def __init__(
        self,
        model: CausalLM,
        args: TrainConfig,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        processing_class: Any = None,
        compute_loss_func: ComputeLoss | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        preprocess_logits_for_metrics: Callable[[Any, Any], Any] | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        max_length: int | None = None,
        packing: bool = False,
        mesh: configs.MeshConfig | None = None,
    ) -> None:
        """Keep everything; nothing is read until `train` or `evaluate`.

        Args:
            model: From `get_peft_model`, or `PeftModel.from_pretrained(..., is_trainable=True)`.
            args: The run.
            train_dataset: Rows of any shape that files may have, or token ids (`input_ids`,
                `labels`): a list of dicts, a `datasets.Dataset`, or anything iterable.
            eval_dataset: Held-out rows.
            processing_class: A tokenizer; `None` takes the one in the model's folder.
            compute_loss_func: A loss of your own: a function of (outputs, labels, number of
                targets) in JAX, to the mean loss. It is given all logits [b t v].
            compute_metrics: Further figures at each evaluation.
            preprocess_logits_for_metrics: Applied to (logits, labels) of each batch before they
                are kept for `compute_metrics`: keep little, logits of all rows are large.
            callbacks: Told of what happens.
            max_length: The most tokens of a row that are kept; `None` is 1,024, or fewer where the
                model has fewer positions.
            packing: Put several rows into one sequence.
            mesh: How devices are laid out; `None` divides the rows over all of them.

        Raises:
            ConfigError: If the model has no adapter that may be trained.
        """
        if not isinstance(model, PeftModel):
            raise ConfigError(
                "The model has no adapter, and training the whole model is not supported yet.",
                "Put one on with get_peft_model(model, LoraConfig(...)).",
            )
        if not model.is_trainable:
            raise ConfigError(
                "The adapter was read with is_trainable=False.",
                "Read it with PeftModel.from_pretrained(model, folder, is_trainable=True).",
            )
        self.model, self.args = model, args
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.tokenizer = processing_class or model.tokenizer
        self.callbacks = list(callbacks)
        self.state = TrainerState(global_step=0, max_steps=0, epoch=0.0, log_history=[])
        self.control = TrainerControl()
        self._compute_loss_func = compute_loss_func
        self._compute_metrics = compute_metrics
        self._preprocess = preprocess_logits_for_metrics or (lambda logits, labels: logits)
        self._mesh = mesh or configs.MeshConfig()
        limit = model.network.spec.max_tokens
        self._max_length = max_length or min(1024, limit or 1024)
        self._packing = packing

    def add_callback(self, callback: TrainerCallback) -> None:
        """Have one more callback told of what happens."""
        self.callbacks.append(callback)

    def train(self) -> TrainOutput:
        """Train to the end, from the latest checkpoint in `output_dir` where there is one.

        The model then has the trained leaves, and `output_dir/adapter` holds them in PEFT's
        format, read back and compared.

        Raises:
            JaxftError: If the data, the folder or the model is not what training needs.
        """
        plan = self._plan(self.train_dataset, "train_dataset")
        folder.check(plan)
        self.model.start_from(self.args.seed)
        self.state.max_steps = plan.num_steps
        tree = self.model.tree(plan.mesh)
        self.tell("on_train_begin")
        with folder.open_checkpoints(plan) as checkpoints:
            run = trainer.Trainer(plan, tree, _Listener(self, plan), self._loss())
            outcome = run.run(checkpoints)
        self.model.set_trained_leaves(outcome.trainable)
        finish.write_adapter(plan, outcome)
        self.tell("on_train_end")
        lines = metrics.read(plan.folder / "metrics.jsonl", plan.num_steps)
        logged = [line["loss"] for line in lines if "loss" in line]
        evaluations = {"eval_loss_before": outcome.before, "eval_loss": outcome.after}
        return TrainOutput(
            self.state.global_step or plan.num_steps,
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
            plan.network, plan.mesh, plan.dtype, plan.eval.target_capacity, False, self._loss()
        )
        found = evaluate(
            steps.make_eval_step(program),
            plan.eval,
            plan.mesh,
            {},
            tree,
            lambda _: None,
            lambda: False,
        )
        assert isinstance(found, Evaluation)
        return {"eval_loss": found.loss, **self.measure(plan, {}, tree)}

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Write the adapter in PEFT's format, into `output_dir/adapter` unless told otherwise."""
        self.model.save_pretrained(output_dir or self.args.output_dir / "adapter")

    def tell(self, event: str, **details: Any) -> None:
        """Call a method of every callback."""
        for callback in self.callbacks:
            getattr(callback, event)(
                self.args, self.state, self.control, model=self.model, **details
            )

    def measure(self, plan: Plan, trainable: trees.Tree, frozen: trees.Tree) -> dict[str, float]:
        """Return what `compute_metrics` makes of all held-out logits, names led by "eval_"."""
        if self._compute_metrics is None or plan.eval is None:
            return {}
        kept, labels = [], []
        logits_of = _make_logits(plan)
        shardings = steps.batch_shardings(plan.mesh)
        num_rows = len(plan.eval.sequences)
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
        mesh = meshes.make_mesh(self._mesh.data, self._mesh.fsdp, self._mesh.tensor)
        rows = sources.rows_of(dataset, name)
        held_out = (
            [] if self.eval_dataset is None else sources.rows_of(self.eval_dataset, "eval_dataset")
        )
        recipe = RunConfig(
            model=ModelConfig(path=model.source.name, revision=model.source.revision),
            lora=model.lora,
            # Names, not paths: the rows are in memory.
            data=DataConfig(
                train=Path("train_dataset"),
                eval=Path("eval_dataset"),
                max_length=self._max_length,
                packing=self._packing,
            ),
            train=self.args,
            mesh=self._mesh,
        )
        return setup.plan_rows(
            recipe,
            model.source,
            model.family,
            model.network,
            self.tokenizer,
            mesh,
            model.dtype,
            rows,
            rows if is_eval_only else held_out,
        )

    def _loss(self) -> steps.LossFunction:
        own = getattr(self, "compute_loss", None)  # of a subclass, as transformers has it
        if own is not None:
            return functools.partial(_user_loss, functools.partial(_by_method, own))
        if self._compute_loss_func is not None:
            return functools.partial(
                _user_loss, functools.partial(_by_function, self._compute_loss_func)
            )
        return steps.causal_lm


class _CalledModel:
    """The model as a user's `compute_loss` sees it: called on its batch, it gives the outputs."""

    def __init__(self, outputs: ModelOutput, input_ids: Any) -> None:
        self._outputs, self._input_ids = outputs, input_ids

    def __call__(self, input_ids: Any, **_: Any) -> ModelOutput:
        if input_ids is not self._input_ids:
            raise ConfigError(
                "compute_loss called the model on other tokens than those of its inputs.",
                "Call model(**inputs), and compute the loss from its logits and inputs['labels'].",
            )
        return self._outputs


def _by_method(own: Callable[..., Any], outputs: ModelOutput, inputs: dict[str, Any]) -> Any:
    """Return the loss of a `compute_loss(model, inputs)`, which may come with the outputs."""
    loss = own(_CalledModel(outputs, inputs["input_ids"]), inputs)
    return loss[0] if isinstance(loss, tuple) else loss


def _by_function(function: ComputeLoss, outputs: ModelOutput, inputs: dict[str, Any]) -> Any:
    """Return the loss of a `compute_loss_func(outputs, labels, number of targets)`."""
    return function(outputs, inputs["labels"], inputs["num_items_in_batch"])


def _user_loss(
    compute: Callable[[ModelOutput, dict[str, Any]], Any],
    program: steps.Program,
    tree: trees.Tree,
    hidden: Any,
    micro: steps.Batch,
) -> tuple[jax.Array, jax.Array]:
    """Return a user's mean loss as (sum, count), so that micro-batches weigh by their targets."""
    head = forward.head_leaves(program.network, tree)
    logits = forward.head_logits(program.network, program.mesh, head, hidden)
    count = jnp.sum(micro["labels"] != losses.IGNORED, dtype=jnp.int32)
    inputs = {
        "input_ids": micro["input_ids"],
        "attention_mask": (micro["segment_ids"] > 0).astype(jnp.int32),
        "position_ids": micro["positions"],
        "labels": jnp.roll(micro["labels"], 1, axis=1).at[:, 0].set(losses.IGNORED),
        "num_items_in_batch": count,
    }
    mean = compute(ModelOutput(logits), inputs)
    return jnp.asarray(mean, jnp.float32) * count, count


class _Listener(Watcher):
    """Tells callbacks what the training loop tells of itself."""

    def __init__(self, owner: Trainer, plan: Plan) -> None:
        self._owner, self._plan = owner, plan

    def stepped(self, step: int) -> bool:
        state = self._owner.state
        state.global_step, state.epoch = step, step / self._plan.train.steps_per_epoch
        self._owner.tell("on_step_end")
        return self._owner.control.should_training_stop

    def logged(self, step: int, line: Any) -> None:
        # The next step may be under way already: metrics are read one behind.
        self._owner.state.global_step = step
        self._owner.state.log_history.append({"step": step, **line})
        self._owner.tell("on_log", logs=dict(line))

    def saved(self, step: int) -> None:
        self._owner.tell("on_save")

    def measure(self, trainable: trees.Tree, frozen: trees.Tree) -> dict[str, float]:
        return self._owner.measure(self._plan, trainable, frozen)

    def evaluated(self, step: int, line: Any) -> None:
        self._owner.state.log_history.append({"step": step, **line})
        self._owner.tell("on_evaluate", metrics=dict(line))


def _make_logits(plan: Plan) -> Callable[..., jax.Array]:
    def logits(trainable: Any, frozen: Any, batch: Any) -> jax.Array:
        tree = trees.combine(trainable, frozen)
        hidden = forward.hidden_states(
            plan.network,
            tree,
            batch["input_ids"][0],
            batch["segment_ids"][0],
            batch["positions"][0],
            mesh=plan.mesh,
            dtype=plan.dtype,
        )
        leaves = forward.head_leaves(plan.network, tree)
        return forward.head_logits(plan.network, plan.mesh, leaves, hidden)

    return jax.jit(logits, out_shardings=meshes.replicated(plan.mesh))


def _unshifted(labels: np.ndarray) -> np.ndarray:
    """Return labels as Hugging Face has them: at the token itself, not at the one before."""
    moved = np.roll(labels, 1, axis=1)
    moved[:, 0] = losses.IGNORED
    return moved
