"""Callbacks with the methods and arguments of transformers' `TrainerCallback`.

Source: transformers `trainer_callback.py`.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass
class TrainerState:
    """Where a run stands.

    Attributes:
        global_step: Steps dispatched.
        max_steps: Steps of the whole run.
        epoch: Passes over the data so far.
        log_history: Every line of metrics, as in `metrics.jsonl`.
    """

    global_step: int
    max_steps: int
    epoch: float
    log_history: list[dict[str, Any]]


@dataclasses.dataclass
class TrainerControl:
    """What a callback may ask of the run.

    Attributes:
        should_training_stop: Whether training ends after this step.
    """

    should_training_stop: bool = False


class TrainerCallback:
    """Told of what happens; subclass it and override what you need.

    `args` are the `TrainingArguments`, `state` is a `TrainerState`, `control` a `TrainerControl`;
    a method may set what is in `control`. The model comes as `kwargs["model"]`.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Training is about to begin."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step was dispatched; its metrics may not be there yet."""

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A line of training metrics was written: `kwargs["logs"]`."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The held-out rows were evaluated: `kwargs["metrics"]`."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint was begun."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Training has ended."""
