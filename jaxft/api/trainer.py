"""`Trainer`: the same training as `jaxft train`, from objects in Python.

It is prepared like a recipe (`training.prepare.preparation`) and makes the same steps
(`training.run.loop.train`); here is only what Python adds: data sets in memory, callbacks, metrics
of the user's own, a loss of the user's own.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from jaxft import config as configs
from jaxft import tree as trees
from jaxft.api import asked, loss, predictions, resizing
from jaxft.api import callbacks as told
from jaxft.api.callbacks import TrainerCallback, TrainerControl, TrainerState
from jaxft.api.loss import ComputeLoss
from jaxft.api.model import CausalLM
from jaxft.api.peft_model import PeftModel
from jaxft.api.predictions import EvalPrediction
from jaxft.config import TrainConfig, TuningConfig
from jaxft.data.batches.loader import PlannedBatches
from jaxft.data.rows.row import Tokenized
from jaxft.data.sources.source import RowSource, rows_of
from jaxft.errors import ConfigError
from jaxft.lora import starts
from jaxft.parallel import devices
from jaxft.parallel import mesh as meshes
from jaxft.training import step as steps
from jaxft.training.evaluate import evaluate
from jaxft.training.objective import CAUSAL_LM, Objective
from jaxft.training.prepare import preparation
from jaxft.training.prepare.plan import Plan
from jaxft.training.prepare.reading import OpenRows
from jaxft.training.prepare.request import Request
from jaxft.training.run import finish, loop, metrics
from jaxft.training.run.listener import GO_ON, Listener, Moment, Verdict


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
        request = self._request()
        plan, leaves = preparation.prepare(request, self.model.held(request.mesh))
        self.model.let_go()  # where other leaves are read, there is no room for both
        tree = leaves.begin(plan)
        self.model.take(plan, tree)
        self.state, self.control = _new_state(), TrainerControl()
        self.state.max_steps = plan.num_steps
        self.tell("on_train_begin")
        outcome = loop.train(plan, tree, [_Callbacks(self, plan)], self._objective())
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
        found = self.eval_dataset if eval_dataset is None else eval_dataset
        rows = _rows(found, "eval_dataset")
        mesh, tokenizer = self._make_mesh(), self._tokenizer([rows])
        held_by = self.model.held_on(mesh)
        batches = preparation.held_out_batches(self._recipe, held_by, [rows], tokenizer)
        tree = self.model.tree(mesh)
        program = steps.Program(
            self.model.network,
            mesh,
            self.model.dtype,
            batches.target_capacity,
            False,
            self._objective(),
        )
        eval_step = steps.make_eval_step(program)
        seen = evaluate(eval_step, batches, {}, tree, lambda _: None, lambda: False)
        assert seen is not None, "nothing stops it"
        figures = {**self.measure(program, batches, {}, tree), "eval_loss": seen.loss}
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

    def measure(
        self,
        program: steps.Program,
        batches: PlannedBatches,
        trainable: trees.Tree,
        frozen: trees.Tree,
    ) -> dict[str, float]:
        """Return what `compute_metrics` makes of all held-out logits, names led by "eval_"."""
        if self._compute_metrics is None:
            return {}
        given = predictions.of_batches(program, batches, trainable, frozen, self._preprocess)
        figures = self._compute_metrics(given)
        return {
            name if name.startswith("eval_") else f"eval_{name}": float(value)
            for name, value in figures.items()
        }

    def _request(self) -> Request:
        """Return what is asked of a run.

        Raises:
            ConfigError: If there are no rows to train on.
            DeviceError: If the devices do not suit the mesh.
        """
        rows = _rows(self.train_dataset, "train_dataset")
        held_out = None
        if self.eval_dataset is not None:
            held_out = _rows(self.eval_dataset, "eval_dataset")
        mesh = self._make_mesh()
        tokenizer = self._tokenizer([rows] if held_out is None else [rows, held_out])
        model = self.model
        return Request(
            config=self._recipe,
            base=model.held_on(mesh),
            network=model.network_to_train,
            tokenizer=tokenizer,
            rows=OpenRows([rows], None if held_out is None else [held_out]),
            initial=None,
            tuned=model.in_memory,
        )

    def _make_mesh(self) -> Mesh:
        devices.check()
        wanted = self._recipe.mesh
        return meshes.make_mesh(wanted.data, wanted.fsdp, wanted.tensor)

    def _tokenizer(self, sources: Sequence[RowSource]) -> Any:
        """Return the tokenizer for some rows, with which the model is then written.

        Without one that was given it is the model's own, and `None` where all rows are tokens.
        """
        if self.processing_class is not None:
            resizing.with_tokenizer(self.model, self.processing_class)
            return self.processing_class
        is_text = any(not isinstance(row, Tokenized) for source in sources for row in source)
        return self.model.source.tokenizer() if is_text else None

    def _objective(self) -> Objective:
        own = getattr(self, "compute_loss", None)  # of a subclass, as transformers has it
        if own is not None:
            return loss.of_method(own)
        if self._compute_loss_func is not None:
            return loss.of_function(self._compute_loss_func)
        return CAUSAL_LM


def _rows(dataset: Any, name: str) -> RowSource:
    """Return the rows of a data set.

    Raises:
        ConfigError: If there is none.
    """
    if dataset is None:
        raise ConfigError(f"The Trainer was given no {name}.", f"Pass {name}=...")
    return rows_of(dataset, name)


def _new_state() -> TrainerState:
    return TrainerState(global_step=0, max_steps=0, epoch=0.0, log_history=[])


class _Callbacks(Listener):
    """Tells callbacks what is told between steps, and asks what they set in `control`."""

    def __init__(self, owner: Trainer, plan: Plan) -> None:
        self._owner, self._plan = owner, plan

    def stepped(self, now: Moment) -> Verdict:
        self._owner._reached(self._plan, now.step)
        self._owner.tell("on_step_end")
        return Verdict(stop=self._owner.control.should_training_stop)

    def logged(self, step: int, line: Mapping[str, Any]) -> Verdict:
        # The next step may be under way already: metrics are read one behind.
        return self._heard(step, line, "on_log", logs=dict(line))

    def saved(self, step: int) -> Verdict:
        self._owner._reached(self._plan, step)
        self._owner.tell("on_save")
        return GO_ON

    def measure(self, now: Moment) -> dict[str, float]:
        plan = self._plan
        assert plan.eval is not None, "there were rows to evaluate"
        program = steps.Program(
            plan.network, plan.mesh, plan.dtype, plan.eval.target_capacity, False, CAUSAL_LM
        )
        return self._owner.measure(program, plan.eval, now.state.trainable, now.constant)

    def evaluated(self, step: int, line: Mapping[str, Any]) -> Verdict:
        return self._heard(step, line, "on_evaluate", metrics=dict(line))

    def _heard(self, step: int, line: Mapping[str, Any], event: str, **details: Any) -> Verdict:
        self._owner._reached(self._plan, step)
        self._owner.state.log_history.append({"step": step, **line})
        self._owner.tell(event, **details)
        return GO_ON
