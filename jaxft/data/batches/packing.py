"""Which rows share a sequence, and to which lengths sequences are padded.

`pack([5, 2, 4], capacity=8)` puts rows 0 and 1 into one bin and row 2 into another. Separate from
the loader because it is pure arithmetic on lengths. The invariant: every row stands in exactly one
bin and no bin is fuller than its capacity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int64, Integer

from jaxft.data.batches import order


@dataclasses.dataclass(frozen=True, eq=False)
class Bins:
    """Bins of rows, none of them empty: two arrays, however many rows there are.

    Attributes:
        rows: The rows of all bins, one bin after the other.
        starts: Where each bin begins in `rows`, and where the last one ends.
    """

    rows: Int64[np.ndarray, " n"]
    starts: Int64[np.ndarray, " m"]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> Int64[np.ndarray, " r"]:
        return self.rows[self.starts[index] : self.starts[index + 1]]

    def __iter__(self) -> Iterator[Int64[np.ndarray, " r"]]:
        return (self[index] for index in range(len(self)))

    def totals(self, counts: Integer[np.ndarray, " n"]) -> Int64[np.ndarray, " m"]:
        """Return the sum of a count of the rows in each bin."""
        return np.add.reduceat(counts[self.rows], self.starts[:-1], dtype=np.int64)


def singles(count: int) -> Bins:
    """Return bins of one row each, in order."""
    return Bins(np.arange(count), np.arange(count + 1))


def joined(parts: Sequence[Bins]) -> Bins:
    """Return the bins of several sources as one list; rows are numbered source after source."""
    offsets = np.cumsum([0] + [len(part.rows) for part in parts])
    rows = [part.rows + offset for part, offset in zip(parts, offsets[:-1], strict=True)]
    starts = [part.starts[1:] + offset for part, offset in zip(parts, offsets[:-1], strict=True)]
    return Bins(np.concatenate(rows), np.concatenate([np.zeros(1, np.int64), *starts]))


def pack(lengths: Integer[np.ndarray, " n"], capacity: int, seed: int) -> Bins:
    """Put rows into as few bins as best-fit decreasing finds.

    The longest rows are placed first, each into the fullest bin that still has room. Rows of one
    length are interchangeable to the algorithm; the seed decides among them, so how full the bins
    are depends on the lengths alone.

    Takes O(n log n) for the sort, then for each row a few operations on integers of `capacity`
    bits.

    Args:
        lengths: Tokens in each row, from 1 to `capacity`.
        capacity: The most tokens in a bin.
        seed: Decides which rows of equal length go together.

    Returns:
        The bins, each with its rows by falling length.

    Raises:
        ValueError: A length is below 1 or above the capacity.

    Source: TRL 1.16, `packing_strategy="bfd"`: the same algorithm.
    """
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= capacity:
        raise ValueError(
            f"lengths from {lengths.min()} to {lengths.max()} for bins of {capacity} tokens"
        )
    rows = _longest_first(lengths, seed)
    bin_of = np.empty(len(rows), np.int64)
    bins_by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r is set while some bin has room for exactly r more tokens
    num_bins = 0
    for place, length in enumerate(map(int, lengths[rows])):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            bin_index = bins_by_room[room].pop()
            if not bins_by_room[room]:
                rooms ^= 1 << room
        else:
            room, bin_index = capacity, num_bins
            num_bins += 1
        bin_of[place] = bin_index
        if room > length:
            bins_by_room[room - length].append(bin_index)
            rooms |= 1 << (room - length)
    sizes = np.bincount(bin_of, minlength=num_bins)
    return Bins(rows[np.argsort(bin_of, kind="stable")], np.cumsum([0, *sizes]))


def padded_lengths(
    lengths: Integer[np.ndarray, " n"], longest: int, multiple: int, most: int
) -> list[int]:
    """Choose a few lengths such that padding each sequence to the next of them adds the least.

    Args:
        lengths: Tokens in each sequence.
        longest: The last of the lengths; no sequence is longer.
        multiple: What the others are multiples of.
        most: How many lengths there may be.

    Returns:
        The lengths, ascending.
    """
    rounded = np.minimum(-(-lengths.astype(np.int64) // multiple) * multiple, longest)
    values, counts = np.unique(np.append(rounded, longest), return_counts=True)
    num_within = np.cumsum(counts)
    # least[j]: the fewest tokens that the sequences up to values[j] take, if values[j] is chosen.
    least = num_within * values
    steps: list[np.ndarray] = []
    for _ in range(most - 1):
        found, before = least.copy(), np.full(len(values), -1)
        for j in range(1, len(values)):
            taken = least[:j] + (num_within[j] - num_within[:j]) * values[j]
            i = np.argmin(taken)
            if taken[i] < least[j]:
                found[j], before[j] = taken[i], i
        steps.append(before)
        least = found
    return _chosen(values, steps)


def _chosen(values: np.ndarray, steps: Sequence[np.ndarray]) -> list[int]:
    """Walk back from the longest length to those that were chosen before it."""
    last = len(values) - 1
    chosen = [int(values[last])]
    for before in reversed(steps):
        if before[last] >= 0:  # otherwise as many lengths as the step before had are enough
            last = int(before[last])
            chosen.append(int(values[last]))
    return chosen[::-1]


def _longest_first(lengths: Integer[np.ndarray, " n"], seed: int) -> Int64[np.ndarray, " n"]:
    """Return the rows by falling length, those of one length in an order drawn from the seed."""
    # No epoch is ever numbered -1, so this order is unlike any epoch's.
    drawn = order.shuffled(len(lengths), seed, stream=-1)
    return drawn[np.argsort(-lengths[drawn].astype(np.int64), kind="stable")]
