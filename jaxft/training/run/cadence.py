"""Decides after which steps log lines, evaluations and checkpoints are due."""

import dataclasses

from jaxft.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Cadence:
    """The steps after which log lines, evaluations and checkpoints are due.

    Attributes:
        last: The last step of the run. It gets a log line, and a checkpoint if the run saves any.
        logging: The number of steps between two log lines.
        evaluation: The number of steps between two evaluations; `None` for no evaluations.
        saving: The number of steps between two checkpoints; `None` for no checkpoints.
    """

    last: int
    logging: int
    evaluation: int | None
    saving: int | None

    def logs(self, step: int) -> bool:
        """Return whether a log line is written after this step."""
        return step % self.logging == 0 or step == self.last

    def evaluates(self, step: int) -> bool:
        """Return whether held-out rows are evaluated after this step."""
        return self.evaluation is not None and step % self.evaluation == 0

    def saves(self, step: int) -> bool:
        """Return whether a checkpoint is written after this step."""
        return self.saving is not None and (step % self.saving == 0 or step == self.last)


def of_recipe(train: TrainConfig, num_steps: int, steps_per_epoch: int | None) -> Cadence:
    """Return the cadence that a recipe asks for.

    Args:
        train: The `train` section of the recipe.
        num_steps: The number of steps of the whole run.
        steps_per_epoch: The number of steps of an epoch; `None` for a stream, which has no epochs.
    """

    def interval(strategy: str, steps: int) -> int | None:
        if strategy == "epoch":
            assert steps_per_epoch, "a stream has no epochs, which the plan has refused"
            return steps_per_epoch
        return steps if strategy == "steps" else None

    return Cadence(
        last=num_steps,
        logging=train.logging_steps,
        evaluation=interval(train.eval_strategy, train.evaluation_interval),
        saving=interval(train.save_strategy, train.save_steps),
    )
