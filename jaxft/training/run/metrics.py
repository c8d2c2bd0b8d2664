"""The metrics of a run: the sums over the steps since the last log line, and `metrics.jsonl`.

The window has sums, not means, and is saved in checkpoints, so that the lines of a resumed run are
those of an uninterrupted one.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxft.training.run.listener import GO_ON, Listener, Verdict


@dataclasses.dataclass
class Window:
    """The sums over the steps since the last log line.

    Attributes:
        terms: The sum and the count of each term of the objective, ``{"loss": (12.5, 10)}``.
        tokens: The number of tokens read, without padding.
    """

    terms: dict[str, tuple[float, float | int]] = dataclasses.field(default_factory=dict)
    tokens: int = 0

    def add(self, terms: Mapping[str, tuple[float, float | int]], tokens: int) -> None:
        """Add one step: the sum and count of each term, and the number of its tokens."""
        for name, (total, count) in terms.items():
            so_far, counted = self.terms.get(name, (0.0, 0))
            self.terms[name] = (so_far + total, counted + count)
        self.tokens += tokens

    def means(self) -> dict[str, float]:
        """Return the mean of each term."""
        return {name: total / max(count, 1) for name, (total, count) in self.terms.items()}

    @property
    def target_tokens(self) -> int:
        """The number of supervised tokens, over which the mean of the loss is taken."""
        return int(self.terms["loss"][1]) if self.terms else 0

    def record(self) -> dict[str, Any]:
        """Return the window as JSON values, from which `from_record` restores it."""
        return {"terms": dict(self.terms), "tokens": self.tokens}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Window":
        """Restore a recorded window, also from an older version that recorded only the loss."""
        terms = record.get("terms")
        if terms is None:
            terms = {"loss": (record["loss_sum"], record["target_tokens"])}
        return cls(
            {name: (total, count) for name, (total, count) in terms.items()}, record["tokens"]
        )


class MetricsFile(Listener):
    """The file `metrics.jsonl`, with one JSON object per line, each with its `step`.

    The operating system has each line when `write` returns, so a killed process loses no line.
    """

    def __init__(self, path: Path, resumed_step: int | None) -> None:
        """Prepare the file for appending.

        Args:
            path: The path of the file; its folder exists.
            resumed_step: The step from which the run resumes. Later lines are removed, because they
                will be written again. `None` begins an empty file.
        """
        self._path = path
        kept = [] if resumed_step is None else read(path, up_to_step=resumed_step)
        # Written to a temporary file first, so that a kill at this point loses nothing.
        new = path.with_name(f".{path.name}.new")
        new.write_text("".join(map(_line, kept)), encoding="utf-8")
        os.replace(new, path)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append a line for a step."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line({"step": step, **values}))

    def logged(self, step: int, line: Mapping[str, Any]) -> Verdict:
        """Append the line."""
        self.write(step, line)
        return GO_ON

    def evaluated(self, step: int, line: Mapping[str, Any]) -> Verdict:
        """Append the line."""
        self.write(step, line)
        return GO_ON

    def find(self, step: int, name: str) -> dict[str, Any] | None:
        """Return the line of a step that has a value called `name`; `None` if there is none."""
        lines = (line for line in read(self._path, step) if line["step"] == step and name in line)
        return next(lines, None)


def read(path: Path, up_to_step: int) -> list[dict[str, Any]]:
    """Return the lines up to a step; a line that was cut off by a crash is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
            is_kept = line["step"] <= up_to_step
        except (ValueError, TypeError, KeyError):
            continue
        if is_kept:
            lines.append(line)
    return lines


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(values) + "\n"
