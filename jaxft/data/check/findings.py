"""What a check of a data set found: its numbers, and sentences about what is wrong or doubtful.

A finding is, for example, `near_duplicates`, a warning: "120 of 1,000 training examples are almost
copies of earlier ones", and what to do about it. Everything here can be written as JSON.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from jaxft.data.check.figures import BatchFigures, Figures
from jaxft.errors import DataError

# stop: training would be meaningless. warning: doubtful. note: worth knowing.
Level = Literal["stop", "warning", "note"]
LEVELS: tuple[Level, ...] = ("stop", "warning", "note")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing to know of a data set.

    Attributes:
        name: What it is called in `data.accept`, such as "near_duplicates".
        level: How bad it is.
        count: How many rows or examples it is true of.
        found: What was found, a sentence.
        remedy: What to do about it, a sentence; "" where nothing needs to be done.
        places: Where the first of them stand, and what there is to say of each.
    """

    name: str
    level: Level
    count: int
    found: str
    remedy: str
    places: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a check found.

    Attributes:
        train: The training rows in numbers.
        held_out: The held-out ones, or None.
        batches: The steps that are made of the training rows; None where nobody asked.
        findings: What there is to know, the worst first.
    """

    train: Figures
    held_out: Figures | None
    batches: BatchFigures | None
    findings: tuple[Finding, ...]

    def of_level(self, level: Level) -> list[Finding]:
        """Return the findings of one level."""
        return [finding for finding in self.findings if finding.level == level]

    def raise_if_meaningless(self) -> None:
        """Raise if these rows have nothing to learn from, or to measure on.

        Raises:
            DataError: The first finding of the level "stop".
        """
        for finding in self.of_level("stop"):
            raise DataError(finding.found, f"{finding.remedy} {how_to_accept([finding])}")

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return dataclasses.asdict(self)


def how_to_accept(findings: list[Finding]) -> str:
    """Return how to go on without the data being changed."""
    names = ", ".join(dict.fromkeys(finding.name for finding in findings))
    return f"If it is meant so: 'data.accept=[{names}]'."
