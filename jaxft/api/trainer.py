"""`Trainer`: the same training as `jaxft train`, from objects in Python.

A run is prepared like that of a recipe (`training.prepare.preparation`) and makes the same steps
(`training.run.loop.train`). This module adds what only Python has: data sets in memory, callbacks,
and the user's own metrics and loss.
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
    """The result of `train`.

    Attributes:
        global_step: The number of steps done.
        training_loss: The mean loss in the last log line, in nats.
        metrics: The held-out losses `eval_loss_before` and `eval_loss`, if they were measured.
    """

    global_step: int
    training_loss: float
    metrics: dict[str, float]


class Trainer:
    """Trains an adapter, or a model, on rows, with the names of transformers' `Trainer`.

    A subclass may define ``compute_loss(self, model, inputs)``. JAX traces it; it must call
    ``model(**inputs)`` once and return the mean loss.
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
        """Validate the arguments; nothing is read until `train` or `evaluate`.

        Args:
            model: A model from `get_peft_model` or `PeftModel.from_pretrained(...,
                is_trainable=True)`, or a model without an adapter, trained according to `tuning`.
            args: The options of the run, a `TrainingArguments`.
            train_dataset: Training rows in any format that files may have, or as token ids
                (`input_ids`, `labels`): a list of dicts, a `datasets.Dataset`, or any iterable.
            eval_dataset: Held-out rows, in the same formats.
            processing_class: A tokenizer; `None` takes the one in the model's folder, unless all
                rows are tokens already.
            compute_loss_func: Your own loss: a JAX function (outputs, labels, number of labels) ->
                mean loss. The outputs have all logits [b t v].
            compute_metrics: Returns further metrics at each evaluation.
            preprocess_logits_for_metrics: Called with the logits and labels of each batch; its
                result is kept for `compute_metrics`. Return little: all logits are large.
            callbacks: `TrainerCallback` objects or classes.
            max_length: The largest number of tokens of an example; `None` is 1,024, or the number
                of positions of the model if that is less.
            packing: Whether several examples share one sequence.
            mesh: How devices are arranged; `None` divides the batch over all of them.
            tuning: What is trained, as in a recipe: "lora", "full", or {"method": "freeze", ...}.
                `None` trains the adapter or, without one, the whole model, as in transformers.
            tokenizer: The former name of `processing_class`.
            **others: Other arguments of transformers' Trainer; they must be `None`.

        Raises:
            ConfigError: If the requested parts of this model cannot be trained, or an argument is
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
        """Add a callback.

        Raises:
            ConfigError: If it has a method for an event that does not exist here.
        """
        callback = callback() if isinstance(callback, type) else callback
        told.check(callback)
        self.callbacks.append(callback)

    def train(self) -> TrainOutput:
        """Train to the end, from the latest checkpoint in `output_dir` if there is one.

        A callback that sets `control.should_training_stop` ends the run after that step, as if it
        were the last: the step is logged, evaluated and, unless `save_strategy` is "no", saved.
        Another call continues from there.

        After this the model has the trained leaves. They are also written, read back and compared:
        to `output_dir/adapter` in PEFT's format or, if the model itself was tuned, to
        `output_dir/model` as a whole model.

        Raises:
            JaxftError: If the data, the folder or the model cannot be used for training.
        """
        request = self._request()
        plan, leaves = preparation.prepare(request, self.model.held(request.mesh))
        self.model.let_go()  # if other leaves are read, memory may not hold both
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
        # These include the lines of earlier parts of a resumed run.
        lines = metrics.read(plan.folder / "metrics.jsonl", plan.num_steps)
        self.state.log_history[:] = lines
        # No step was done if the checkpoint is that of the last step.
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
        """Return the held-out loss, and the metrics of `compute_metrics`.

        Args:
            eval_dataset: Held-out rows; `None` takes the trainer's own.

        Raises:
            JaxftError: If there are no rows, or they cannot be used.
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
        """Write the adapter in PEFT's format or, if the model itself was tuned, the whole model.

        The default folder is `output_dir/adapter` or `output_dir/model`.
        """
        kind = "adapter" if isinstance(self.model, PeftModel) else "model"
        self.model.save_pretrained(output_dir or self.args.output_dir / kind)

    def tell(self, event: str, **details: Any) -> None:
        """Call the method called `event` of every callback."""
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
        """Return the metrics of `compute_metrics`, with names that begin with "eval_"."""
        if self._compute_metrics is None:
            return {}
        given = predictions.of_batches(program, batches, trainable, frozen, self._preprocess)
        figures = self._compute_metrics(given)
        return {
            name if name.startswith("eval_") else f"eval_{name}": float(value)
            for name, value in figures.items()
        }

    def _request(self) -> Request:
        """Return the request for a run.

        Raises:
            ConfigError: If there are no rows to train on.
            DeviceError: If the devices do not fit the mesh.
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
        """Return the tokenizer for some rows, with which the model will also be saved.

        If none was given, it is the model's own, or `None` if all rows are tokens.
        """
        if self.processing_class is not None:
            resizing.with_tokenizer(self.model, self.processing_class)
            return self.processing_class
        is_text = any(not isinstance(row, Tokenized) for source in sources for row in source)
        return self.model.source.tokenizer() if is_text else None

    def _objective(self) -> Objective:
        own = getattr(self, "compute_loss", None)  # a subclass may define it, as in transformers
        if own is not None:
            return loss.of_method(own)
        if self._compute_loss_func is not None:
            return loss.of_function(self._compute_loss_func)
        return CAUSAL_LM


def _rows(dataset: Any, name: str) -> RowSource:
    """Return the rows of a data set.

    Raises:
        ConfigError: If the data set is `None`.
    """
    if dataset is None:
        raise ConfigError(f"The Trainer was given no {name}.", f"Pass {name}=...")
    return rows_of(dataset, name)


def _new_state() -> TrainerState:
    return TrainerState(global_step=0, max_steps=0, epoch=0.0, log_history=[])


class _Callbacks(Listener):
    """Calls callbacks between steps, and passes on what they set in `control`."""

    def __init__(self, owner: Trainer, plan: Plan) -> None:
        self._owner, self._plan = owner, plan

    def stepped(self, now: Moment) -> Verdict:
        self._owner._reached(self._plan, now.step)
        self._owner.tell("on_step_end")
        return Verdict(stop=self._owner.control.should_training_stop)

    def logged(self, step: int, line: Mapping[str, Any]) -> Verdict:
        # The next step may have started already: metrics are read one step late.
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
