"""The findings of a check: the figures of a data set, and sentences about problems in it.

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
    """One fact about a data set.

    Attributes:
        name: Its name in `data.accept`, such as "near_duplicates".
        level: How bad it is.
        count: The number of rows or examples that it is about.
        found: A sentence about the fact.
        remedy: A sentence about what to do; "" if nothing needs to be done.
        places: The places of the first of these rows, each perhaps with an excerpt.
    """

    name: str
    level: Level
    count: int
    found: str
    remedy: str
    places: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Findings:
    """The results of a check.

    Attributes:
        train: The figures of the training rows.
        held_out: The figures of the held-out rows; None without any.
        batches: The figures of the training batches; None if they were not made.
        findings: The findings, the worst first.
    """

    train: Figures
    held_out: Figures | None
    batches: BatchFigures | None
    findings: tuple[Finding, ...]

    def of_level(self, level: Level) -> list[Finding]:
        """Return the findings of one level."""
        return [finding for finding in self.findings if finding.level == level]

    def raise_if_meaningless(self) -> None:
        """Raise if training or evaluation on these rows would be meaningless.

        Raises:
            DataError: There is a finding of the level "stop". The error is the first of them.
        """
        for finding in self.of_level("stop"):
            raise DataError(finding.found, f"{finding.remedy} {how_to_accept([finding])}")

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return dataclasses.asdict(self)


def how_to_accept(findings: list[Finding]) -> str:
    """Return how to accept findings in a recipe, for data that is not to be changed."""
    names = ", ".join(dict.fromkeys(finding.name for finding in findings))
    return f"If it is meant so: 'data.accept=[{names}]'."
