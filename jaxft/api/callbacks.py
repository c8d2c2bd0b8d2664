"""Callbacks with the methods and arguments of transformers' `TrainerCallback`.

Source: transformers `trainer_callback.py`.
"""

import dataclasses
from typing import Any

from jaxft.errors import ConfigError


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

    def __setattr__(self, name: str, value: Any) -> None:
        """Set what there is.

        Raises:
            ConfigError: If it is something else that transformers' `TrainerControl` has.
        """
        if name not in self.__dataclass_fields__:
            raise ConfigError(
                f"A callback set control.{name}, which is not supported.",
                f"There is {', '.join(self.__dataclass_fields__)}; when to log, evaluate and save "
                "is in the TrainingArguments.",
            )
        super().__setattr__(name, value)


class TrainerCallback:
    """Told of what happens; subclass it and override what you need.

    A step's `on_save` and `on_evaluate` come before its `on_step_end`. Metrics are read one step
    behind, so that the device never waits: `on_log` of a step comes before that `on_save` or
    `on_evaluate`, and without them just before the `on_step_end` of the next step.

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
        """Training has ended, and the adapter is written."""


def check(callback: Any) -> None:
    """Refuse a callback that waits for something that it would never be told.

    Raises:
        ConfigError: If it has a method for another event.
    """
    told = {name for name in vars(TrainerCallback) if name.startswith("on_")}
    for home in type(callback).__mro__:
        # The base class, here and in transformers, does nothing at any event.
        others = set() if home.__name__ == "TrainerCallback" else set(vars(home)) - told
        for name in sorted(others):
            if name.startswith("on_"):
                raise ConfigError(
                    f"The callback {type(callback).__name__} has {name}, which is never called.",
                    f"Choose among {', '.join(sorted(told))}.",
                )
