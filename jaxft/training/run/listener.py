"""Listeners: objects that act between steps and may ask the run to save or to stop.

Log lines, the metrics file, checkpoints, evaluations and Python's callbacks are listeners. A new
action between steps, such as early stopping, is another listener.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxft import tree as trees
from jaxft.training.state import TrainState
from jaxft.training.step import StepMetrics


class Verdict(NamedTuple):
    """What a listener asks of the run.

    Attributes:
        stop: Whether the step that was just made should be the last.
        save: Whether a checkpoint should be written after it.
    """

    stop: bool = False
    save: bool = False

    def __or__(self, other: "Verdict") -> "Verdict":
        """Return the union of two verdicts."""
        return Verdict(self.stop or other.stop, self.save or other.save)


GO_ON = Verdict()


class Moment(NamedTuple):
    """The run between two steps. The next step donates its arrays, so do not keep them.

    Attributes:
        step: The number of steps done.
        state: The state of training.
        frozen: The frozen leaves, which are not in the state.
        carried: The leaves that compiled programs take as `frozen`: the same, and the originals of
            trained leaves if the objective needs the base model.
        is_interrupted: Returns whether a signal came, so that long work should end early.
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
    """The base class of listeners; its methods do nothing and ask for nothing."""

    def is_due(self, step: int) -> bool:
        """Return whether `stepped` acts after this step, and needs its metrics to be read first."""
        return False

    def began(self, now: Moment) -> Verdict:
        """Called before the run makes its first step, or its first after a checkpoint.

        Before step 1, the trained leaves in `now` are those of the base model.
        """
        return GO_ON

    def read(self, step: int, figures: StepMetrics, tokens: int) -> Verdict:
        """Called when the metrics of a step are on the host; the next step may have started."""
        return GO_ON

    def stepped(self, now: Moment) -> Verdict:
        """Called after a step was dispatched."""
        return GO_ON

    def ended(self, now: Moment) -> Verdict:
        """Called after the last step, unless the run was interrupted."""
        return GO_ON

    def logged(self, step: int, line: Mapping[str, Any]) -> Verdict:
        """Called with each line of training metrics."""
        return GO_ON

    def saved(self, step: int) -> Verdict:
        """Called when the writing of a checkpoint has begun."""
        return GO_ON

    def measure(self, now: Moment) -> dict[str, float]:
        """Return further metrics of an evaluation, by the names under which they are logged."""
        return {}

    def evaluated(self, step: int, line: Mapping[str, Any]) -> Verdict:
        """Called with each line of evaluation metrics."""
        return GO_ON


class Listeners(Listener):
    """Several listeners as one: calls each in turn, and asks for what any of them asks for."""

    def __init__(self) -> None:
        """Begin without listeners."""
        self._all: list[Listener] = []

    def add(self, more: Sequence[Listener]) -> None:
        """Add listeners; they are called after the present ones."""
        self._all.extend(more)

    def _tell(self, how: Callable[[Listener], Verdict]) -> Verdict:
        verdict = GO_ON
        for each in self._all:
            verdict |= how(each)
        return verdict

    def is_due(self, step: int) -> bool:
        """Return whether any listener acts after this step."""
        return any(each.is_due(step) for each in self._all)

    def began(self, now: Moment) -> Verdict:
        """Call all listeners."""
        return self._tell(lambda each: each.began(now))

    def read(self, step: int, figures: StepMetrics, tokens: int) -> Verdict:
        """Call all listeners."""
        return self._tell(lambda each: each.read(step, figures, tokens))

    def stepped(self, now: Moment) -> Verdict:
        """Call all listeners."""
        return self._tell(lambda each: each.stepped(now))

    def ended(self, now: Moment) -> Verdict:
        """Call all listeners."""
        return self._tell(lambda each: each.ended(now))

    def logged(self, step: int, line: Mapping[str, Any]) -> Verdict:
        """Call all listeners."""
        return self._tell(lambda each: each.logged(step, line))

    def saved(self, step: int) -> Verdict:
        """Call all listeners."""
        return self._tell(lambda each: each.saved(step))

    def measure(self, now: Moment) -> dict[str, float]:
        """Return the metrics of all listeners."""
        return {name: value for each in self._all for name, value in each.measure(now).items()}

    def evaluated(self, step: int, line: Mapping[str, Any]) -> Verdict:
        """Call all listeners."""
        return self._tell(lambda each: each.evaluated(step, line))
