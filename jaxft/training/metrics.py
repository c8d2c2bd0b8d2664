"""The record of a run: sums over the steps since the last log line, and the file of lines.

Sums are kept, not means, and they travel with the checkpoint, so that the lines of a resumed run
are those of a straight one.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass
class Window:
    """What was seen since the last log line.

    Attributes:
        loss_sum: Summed loss in nats.
        target_tokens: Targets predicted.
        tokens: Tokens read, padding left out.
    """

    loss_sum: float = 0.0
    target_tokens: int = 0
    tokens: int = 0

    def add(self, loss: float, target_tokens: int, tokens: int) -> None:
        """Count one step: its mean loss over its targets, and its tokens."""
        self.loss_sum += loss * target_tokens
        self.target_tokens += target_tokens
        self.tokens += tokens

    @property
    def loss(self) -> float:
        """Mean loss of a target, in nats."""
        return self.loss_sum / max(self.target_tokens, 1)


class MetricsFile:
    """`metrics.jsonl`: one object a line, each with its `step`.

    Every line is on its way to the disk when `write` returns, so a killed process loses none.
    """

    def __init__(self, path: Path, resumed_step: int | None) -> None:
        """Open for appending.

        Args:
            path: The file; its folder exists.
            resumed_step: The step that the run goes on from: later lines are taken out, because
                they will be written again. `None` starts the file anew.
        """
        self._path = path
        kept = [] if resumed_step is None else read(path, up_to_step=resumed_step)
        # Beside it first, so that being killed here loses nothing.
        new = path.with_name(f".{path.name}.new")
        new.write_text("".join(map(_line, kept)), encoding="utf-8")
        os.replace(new, path)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append a line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line({"step": step, **values}))

    def find(self, step: int, name: str) -> dict[str, Any] | None:
        """Return the line of a step that has the value `name`, or `None`."""
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
