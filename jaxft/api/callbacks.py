"""Callbacks with the methods and arguments of transformers' `TrainerCallback`.

Source: transformers `trainer_callback.py`.
"""

import dataclasses
from typing import Any

from jaxft.errors import ConfigError


@dataclasses.dataclass
class TrainerState:
    """The progress of a run.

    Attributes:
        global_step: The number of steps dispatched.
        max_steps: The number of steps of the whole run.
        epoch: The number of passes over the data so far, such as 1.5.
        log_history: All lines of metrics, as in `metrics.jsonl`.
    """

    global_step: int
    max_steps: int
    epoch: float
    log_history: list[dict[str, Any]]


@dataclasses.dataclass
class TrainerControl:
    """What a callback may ask of the run.

    Attributes:
        should_training_stop: Whether training should end after this step.
    """

    should_training_stop: bool = False

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute that exists.

        Raises:
            ConfigError: If it does not exist here; transformers' `TrainerControl` has more.
        """
        if name not in self.__dataclass_fields__:
            raise ConfigError(
                f"A callback set control.{name}, which is not supported.",
                f"There is {', '.join(self.__dataclass_fields__)}; when to log, evaluate and save "
                "is in the TrainingArguments.",
            )
        super().__setattr__(name, value)


class TrainerCallback:
    """The base class of callbacks; override the methods of the events that you need.

    For each step, `on_save` and `on_evaluate` are called before `on_step_end`. Metrics are read one
    step late, so that the device never waits: `on_log` of a step is called before its `on_save` or
    `on_evaluate` or, without these, just before the `on_step_end` of the next step.

    `args` are the `TrainingArguments`, `state` is a `TrainerState`, and `control` is a
    `TrainerControl` whose attributes a method may set. The model is `kwargs["model"]`.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called before training begins."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called after a step was dispatched; its metrics may not be available yet."""

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called after a line of training metrics, `kwargs["logs"]`, was written."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called after an evaluation of the held-out rows, with `kwargs["metrics"]`."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called when the writing of a checkpoint has begun."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called after training has ended and the adapter was written."""


def check(callback: Any) -> None:
    """Refuse a callback that has a method for an event that does not exist here.

    Raises:
        ConfigError: If it has such a method, which would never be called.
    """
    told = {name for name in vars(TrainerCallback) if name.startswith("on_")}
    for home in type(callback).__mro__:
        # The base class, here and in transformers, has methods that do nothing.
        others = set() if home.__name__ == "TrainerCallback" else set(vars(home)) - told
        for name in sorted(others):
            if name.startswith("on_"):
                raise ConfigError(
                    f"The callback {type(callback).__name__} has {name}, which is never called.",
                    f"Choose among {', '.join(sorted(told))}.",
                )
