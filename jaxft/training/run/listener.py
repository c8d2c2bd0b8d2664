"""What happens between steps, as listeners: each is told of it, and says what it wants of the run.

Log lines, the metrics file, checkpoints, evaluations and Python's callbacks are listeners. A new
thing between steps, such as early stopping, is one more of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxft import tree as trees
from jaxft.training.state import TrainState
from jaxft.training.step import StepMetrics


class Verdict(NamedTuple):
    """What a listener wants of the run.

    Attributes:
        stop: Whether the step that was just made is to be the last.
        save: Whether a checkpoint is to be written after it.
    """

    stop: bool = False
    save: bool = False

    def __or__(self, other: "Verdict") -> "Verdict":
        """Return what either wants."""
        return Verdict(self.stop or other.stop, self.save or other.save)


GO_ON = Verdict()


class Moment(NamedTuple):
    """The run between two steps. The arrays in it are donated to the next step: do not keep them.

    Attributes:
        step: Number of steps done.
        state: The state of training.
        frozen: The leaves that are in no state.
        carried: What compiled programs read in the place of `frozen`: the same leaves, and the
            originals of trained ones if the objective measures by the base.
        is_interrupted: Returns whether a signal came, so that what takes long should end.
    """

    step: int
    state: TrainState
    frozen: trees.Tree
    carried: trees.Tree
    is_interrupted: Callable[[], bool]

    @property
    def constant(self) -> trees.Tree:
        """All leaves of the model that are not trained."""
        return self.state.constant(self.frozen)


class Listener:
    """Told of what happens between steps; this one does nothing and wants nothing."""

    def is_due(self, step: int) -> bool:
        """Return whether it acts after this step, and only once the step's figures are read."""
        return False

    def began(self, now: Moment) -> Verdict:
        """The run is about to make its next step, the first one or one after a checkpoint.

        Before the first step of all, `now` has the trained leaves of the base.
        """
        return GO_ON

    def read(self, step: int, figures: StepMetrics, tokens: int) -> Verdict:
        """The figures of a step are on the host; the next step may be under way."""
        return GO_ON

    def stepped(self, now: Moment) -> Verdict:
        """A step was dispatched."""
        return GO_ON

    def ended(self, now: Moment) -> Verdict:
        """The last step is done; the run was not interrupted."""
        return GO_ON

    def logged(self, step: int, line: Mapping[str, Any]) -> Verdict:
        """There is a line of training metrics."""
        return GO_ON

    def saved(self, step: int) -> Verdict:
        """A checkpoint was begun."""
        return GO_ON

    def measure(self, now: Moment) -> dict[str, float]:
        """Return further figures of an evaluation, by the names they are logged under."""
        return {}

    def evaluated(self, step: int, line: Mapping[str, Any]) -> Verdict:
        """There is a line of evaluation metrics."""
        return GO_ON


class Listeners(Listener):
    """Several listeners as one: each is told in turn, and what any of them wants is wanted."""

    def __init__(self) -> None:
        """Begin with none."""
        self._all: list[Listener] = []

    def add(self, more: Sequence[Listener]) -> None:
        """Have others be told too, after those that are."""
        self._all.extend(more)

    def _tell(self, how: Callable[[Listener], Verdict]) -> Verdict:
        verdict = GO_ON
        for each in self._all:
            verdict |= how(each)
        return verdict

    def is_due(self, step: int) -> bool:
        """Return whether any acts after this step."""
        return any(each.is_due(step) for each in self._all)

    def began(self, now: Moment) -> Verdict:
        """Tell all."""
        return self._tell(lambda each: each.began(now))

    def read(self, step: int, figures: StepMetrics, tokens: int) -> Verdict:
        """Tell all."""
        return self._tell(lambda each: each.read(step, figures, tokens))

    def stepped(self, now: Moment) -> Verdict:
        """Tell all."""
        return self._tell(lambda each: each.stepped(now))

    def ended(self, now: Moment) -> Verdict:
        """Tell all."""
        return self._tell(lambda each: each.ended(now))

    def logged(self, step: int, line: Mapping[str, Any]) -> Verdict:
        """Tell all."""
        return self._tell(lambda each: each.logged(step, line))

    def saved(self, step: int) -> Verdict:
        """Tell all."""
        return self._tell(lambda each: each.saved(step))

    def measure(self, now: Moment) -> dict[str, float]:
        """Return the figures of all."""
        return {name: value for each in self._all for name, value in each.measure(now).items()}

    def evaluated(self, step: int, line: Mapping[str, Any]) -> Verdict:
        """Tell all."""
        return self._tell(lambda each: each.evaluated(step, line))
