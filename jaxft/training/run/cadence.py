"""When the things between steps are due: log lines, evaluations, checkpoints."""

import dataclasses

from jaxft.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Cadence:
    """After which steps something is due. A number of steps is `None` where it never is.

    Attributes:
        last: The last step of the run, which has a log line, and a checkpoint if there are any.
        logging: Steps between two log lines.
        evaluation: Steps between two evaluations.
        saving: Steps between two checkpoints.
    """

    last: int
    logging: int
    evaluation: int | None
    saving: int | None

    def logs(self, step: int) -> bool:
        """Return whether a log line is written of the steps up to this one."""
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
        train: The recipe's section.
        num_steps: Steps of the whole run.
        steps_per_epoch: Steps of an epoch; `None` for a stream, which has none.
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
