"""The figures of one side of a data set: its numbers of rows and tokens, and its lengths.

For example: 1,000 training rows with 52,300 tokens, 41 % of them supervised, 12 to 256 a row, and a
histogram of the lengths. Everything here is added up from the reports of encoding, which is quick.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer

from jaxft.data.examples.report import Report

# The largest number of bars for 99 of 100 examples; one more bar holds the rest.
_MOST_BARS = 10
_NARROWEST = 8


@dataclasses.dataclass(frozen=True)
class Bar:
    """A bar of a histogram: the examples with lengths in one range.

    Attributes:
        low: The smallest number of tokens in the range.
        high: The largest number of tokens in the range.
        count: The number of examples.
    """

    low: int
    high: int
    count: int


@dataclasses.dataclass(frozen=True)
class Figures:
    """The figures of the training rows, or of the held-out rows.

    Attributes:
        source: The names of the sources, such as "train.jsonl".
        rows: The number of rows read.
        examples: The number of examples that were made of them.
        tokens: The number of tokens in the examples.
        targets: The number of supervised tokens in them.
        shortest: The number of tokens in the shortest example.
        median: The median number of tokens in an example.
        longest: The number of tokens in the longest example.
        longest_row: The number of tokens in the longest example before any was cut.
        max_length: The largest number of tokens in an example.
        truncated: Examples that were cut at `max_length`.
        split: Examples that were cut into several.
        too_long: Examples left out because they are longer than `max_length`.
        cut_off: Examples left out because all their supervised tokens are beyond `max_length`.
        without_target: Examples left out because they have no supervised token.
        lengths: The histogram of the lengths.
        notes: The number of rows with each note of encoding, by its name.
        unused: The number of rows with each unused field, by its name.
        first: The place of the first row of each of the counts above, by the name of the count.
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
    def supervised_share(self) -> float:
        """The share of the tokens that are supervised."""
        return self.targets / self.tokens if self.tokens else 0.0


@dataclasses.dataclass(frozen=True)
class BatchFigures:
    """The figures of a run's batches.

    Attributes:
        sequences: The number of sequences in a step.
        sequence_length: The number of tokens in a sequence.
        fill: The share of tokens that are not padding; None if it is not known.
        steps_per_epoch: The number of steps in an epoch; None if it is not known.
    """

    sequences: int
    sequence_length: int
    fill: float | None
    steps_per_epoch: int | None


def figures(source: str, reports: Sequence[Report], lengths: Integer[np.ndarray, " n"]) -> Figures:
    """Return the figures of one side.

    Args:
        source: The names of the sources.
        reports: The report on the encoding of each source.
        lengths: The number of tokens in each example of all sources.
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
    """Return a histogram of lengths, in bars whose width is a power of two.

    Empty bars at either end are left out. The last bar reaches to the longest example.
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
