"""How much there is: rows, tokens and lengths of one side of a data set, as numbers.

For example: 1,000 training rows with 52,300 tokens, 41 % of them supervised, 12 to 256 a row, and a
histogram of the lengths. Everything here comes from counts that encoding kept, so it takes no time.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer

from jaxft.data.examples.report import Report

# Bars of a histogram that hold 99 of 100 examples; a last one holds the rest.
_MOST_BARS = 10
_NARROWEST = 8


@dataclasses.dataclass(frozen=True)
class Bar:
    """Examples of like length.

    Attributes:
        low: Their fewest tokens.
        high: Their most tokens.
        count: How many there are.
    """

    low: int
    high: int
    count: int


@dataclasses.dataclass(frozen=True)
class Figures:
    """The training rows, or the held-out ones, in numbers.

    Attributes:
        source: What the rows were read from, such as "train.jsonl".
        rows: Rows read.
        examples: Examples that were made of them.
        tokens: Tokens in the examples.
        targets: Those of them that are supervised.
        shortest: Tokens in the shortest example.
        median: Tokens in the middle one.
        longest: Tokens in the longest one.
        longest_row: The same before any was cut.
        max_length: The most tokens of an example.
        truncated: Examples that were cut at that length.
        split: Examples that were cut into several.
        too_long: Examples left out for being longer.
        cut_off: Examples left out since everything supervised in them was beyond it.
        without_target: Examples left out since nothing in them is supervised.
        lengths: How many examples have how many tokens.
        notes: Rows by what encoding noted of them.
        unused: Rows by the fields of them that nothing was made of.
        first: Where the first of each of the counts above stands, by its name.
    """

    source: str
    rows: int
    examples: int
    tokens: int
    targets: int
    shortest: int
    median: int
    longest: int
    longest_row: int
    max_length: int
    truncated: int
    split: int
    too_long: int
    cut_off: int
    without_target: int
    lengths: list[Bar]
    notes: dict[str, int]
    unused: dict[str, int]
    first: dict[str, str]

    @property
    def learned(self) -> float:
        """The share of the tokens that are supervised."""
        return self.targets / self.tokens if self.tokens else 0.0


@dataclasses.dataclass(frozen=True)
class BatchFigures:
    """The batches of a run in numbers.

    Attributes:
        sequences: Sequences in a step.
        sequence_length: Tokens in a sequence.
        fill: The share of them that are not padding; None if it is not known.
        steps_per_epoch: Steps in which every example is seen once; None where nobody knows.
    """

    sequences: int
    sequence_length: int
    fill: float | None
    steps_per_epoch: int | None


def figures(source: str, reports: Sequence[Report], lengths: Integer[np.ndarray, " n"]) -> Figures:
    """Return the numbers of one side.

    Args:
        source: What the rows were read from.
        reports: What encoding made of each source.
        lengths: Tokens in each example, of all sources.
    """
    first: dict[str, str] = {}
    for report in reports:
        first = {**report.first, **first}
    is_any = len(lengths) > 0
    return Figures(
        source=source,
        rows=sum(report.rows for report in reports),
        examples=len(lengths),
        tokens=int(lengths.sum(dtype=np.int64)),
        targets=sum(report.targets for report in reports),
        shortest=int(lengths.min()) if is_any else 0,
        median=int(np.median(lengths)) if is_any else 0,
        longest=int(lengths.max()) if is_any else 0,
        longest_row=max((report.longest for report in reports), default=0),
        max_length=max((report.max_length for report in reports), default=0),
        truncated=sum(report.truncated for report in reports),
        split=sum(report.split for report in reports),
        too_long=sum(report.too_long for report in reports),
        cut_off=sum(report.cut_off for report in reports),
        without_target=sum(report.without_target for report in reports),
        lengths=histogram(lengths),
        notes=dict(sum((Counter(report.notes) for report in reports), Counter())),
        unused=dict(sum((Counter(report.unused) for report in reports), Counter())),
        first=first,
    )


def histogram(lengths: Integer[np.ndarray, " n"]) -> list[Bar]:
    """Return how many examples have how many tokens, in bars as wide as a power of two.

    Bars at either end that would be empty are left out; the last one goes up to the longest.
    """
    if not len(lengths):
        return []
    width = _NARROWEST
    while np.percentile(lengths, 99) > width * _MOST_BARS:
        width *= 2
    bars = np.minimum((np.maximum(lengths, 1) - 1) // width, _MOST_BARS)
    counts = np.bincount(bars)
    low = int(bars.min())
    highs = [(bar + 1) * width for bar in range(len(counts))]
    if len(counts) > _MOST_BARS:
        highs[-1] = int(lengths.max())
    return [Bar(bar * width + 1, highs[bar], int(counts[bar])) for bar in range(low, len(counts))]
