"""Counts of what encoding met, added up over chunks of rows.

`Count(3, RowPlace("train.jsonl", 17))` stands for three things, the first of them at line 17.
However rows are cut into chunks, and whichever process encodes them, the sum is the same report.
The memory of a tally does not grow with the number of rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from jaxft.data.examples.report import Report
from jaxft.data.rows.row import Row, RowPlace

# More names of fields than this are counted together: rows may have any number of them.
_MOST_UNUSED = 200
_OTHER_FIELDS = "(others)"


class Count(NamedTuple):
    """The number of rows or examples of one kind, and the place of the first."""

    number: int
    first: RowPlace


Counts = dict[str, Count]


@dataclasses.dataclass(eq=False)
class Tally:
    """Counts of rows and examples.

    Attributes:
        rows: The number of rows read.
        examples: The number of examples kept.
        tokens: The number of tokens in these examples.
        targets: The number of supervised tokens in them.
        longest: The number of tokens in the longest example with a target, before it was cut.
        outcomes: Counts of the examples that were changed or left out, by `overlong.Outcome`;
            `dropped` counts all that were left out.
        notes: Counts of rows by note; a row can have several notes.
        unused: Counts of rows by the name of an unused field.
        end_ids: The ids of the tokens that end supervised parts.
    """

    rows: int = 0
    examples: int = 0
    tokens: int = 0
    targets: int = 0
    longest: int = 0
    outcomes: Counts = dataclasses.field(default_factory=dict)
    notes: Counts = dataclasses.field(default_factory=dict)
    unused: Counts = dataclasses.field(default_factory=dict)
    end_ids: set[int] = dataclasses.field(default_factory=set)

    def count_row(self, row: Row, notes: Sequence[str], end_ids: frozenset[int]) -> None:
        """Count a row, its notes and its unused fields."""
        self.rows += 1
        self.end_ids |= end_ids
        for note in notes:
            _add(self.notes, note, Count(1, row.place))
        for field in row.unused:
            _add(self.unused, self._known(field), Count(1, row.place))

    def count_example(self, length: int, num_kept: int, outcome: str, place: RowPlace) -> None:
        """Count an example.

        Args:
            length: Its number of tokens before it was cut.
            num_kept: The number of examples that it was kept as: 0 if it is left out, several if it
                was split.
            outcome: See `overlong.Outcome`.
            place: Where its row stands.
        """
        if outcome != "without_target":
            self.longest = max(self.longest, length)
        self.examples += num_kept
        if outcome:
            _add(self.outcomes, outcome, Count(1, place))
        if not num_kept:
            _add(self.outcomes, "dropped", Count(1, place))

    def add(self, later: Tally) -> None:
        """Add the counts of a later chunk of rows."""
        self.rows += later.rows
        self.examples += later.examples
        self.tokens += later.tokens
        self.targets += later.targets
        self.longest = max(self.longest, later.longest)
        self.end_ids |= later.end_ids
        for name, count in later.outcomes.items():
            _add(self.outcomes, name, count)
        for name, count in later.notes.items():
            _add(self.notes, name, count)
        for name, count in later.unused.items():
            _add(self.unused, self._known(name), count)

    def report(self, max_length: int) -> Report:
        """Return the counts as a report.

        Args:
            max_length: The largest number of tokens in an example.
        """
        return Report(
            rows=self.rows,
            examples=self.examples,
            tokens=self.tokens,
            targets=self.targets,
            longest=self.longest,
            max_length=max_length,
            **{name: count.number for name, count in self.outcomes.items()},
            notes={name: count.number for name, count in self.notes.items()},
            unused={name: count.number for name, count in self.unused.items()},
            first={name: str(place) for name, place in self.first().items()},
        )

    def first(self) -> dict[str, RowPlace]:
        """Return the place of the first row of each kind; see `Report.first`."""
        unused = {f"unused.{name}": count for name, count in self.unused.items()}
        counted = self.outcomes | self.notes | unused
        return {name: count.first for name, count in counted.items()}

    def _known(self, field: str) -> str:
        """Return the name under which a field is counted."""
        is_known = field in self.unused or len(self.unused) < _MOST_UNUSED
        return field if is_known else _OTHER_FIELDS


def _add(counts: Counts, name: str, more: Count) -> None:
    before = counts.get(name)
    counts[name] = more if before is None else Count(before.number + more.number, before.first)
