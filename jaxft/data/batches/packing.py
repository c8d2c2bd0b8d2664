"""The packing of examples into sequences, and the lengths to which sequences are padded.

`pack([5, 2, 4], capacity=8)` puts examples 0 and 1 into one bin and example 2 into another. All of
it is arithmetic on lengths. Every example is in exactly one bin, and no bin exceeds its capacity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int64, Integer

from jaxft.data.batches import order


@dataclasses.dataclass(frozen=True, eq=False)
class Bins:
    """Bins of examples, none of them empty, held as two arrays.

    Attributes:
        examples: The numbers of the examples, one bin after the other.
        starts: Where each bin begins in `examples`, and where the last one ends.
    """

    examples: Int64[np.ndarray, " n"]
    starts: Int64[np.ndarray, " m"]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> Int64[np.ndarray, " r"]:
        return self.examples[self.starts[index] : self.starts[index + 1]]

    def __iter__(self) -> Iterator[Int64[np.ndarray, " r"]]:
        return (self[index] for index in range(len(self)))

    def totals(self, counts: Integer[np.ndarray, " n"]) -> Int64[np.ndarray, " m"]:
        """Return, for each bin, the sum of the counts of its examples."""
        return np.add.reduceat(counts[self.examples], self.starts[:-1], dtype=np.int64)


def singles(count: int) -> Bins:
    """Return bins of one example each, in order."""
    return Bins(np.arange(count), np.arange(count + 1))


def joined(parts: Sequence[Bins]) -> Bins:
    """Return the bins of several sources as one list; examples are numbered source after source."""
    offsets = np.cumsum([0] + [len(part.examples) for part in parts])
    examples = [part.examples + offset for part, offset in zip(parts, offsets[:-1], strict=True)]
    starts = [part.starts[1:] + offset for part, offset in zip(parts, offsets[:-1], strict=True)]
    return Bins(np.concatenate(examples), np.concatenate([np.zeros(1, np.int64), *starts]))


def pack(lengths: Integer[np.ndarray, " n"], capacity: int, seed: int) -> Bins:
    """Put examples into few bins by the best-fit-decreasing algorithm.

    The longest examples are placed first, each into the fullest bin that still has room. Examples
    of equal length are interchangeable to the algorithm, and the seed decides their order. So the
    number of tokens in each bin depends only on the lengths.

    The sort takes O(n log n). After it each example takes a few operations on integers of
    `capacity` bits.

    Args:
        lengths: The number of tokens in each example, from 1 to `capacity`.
        capacity: The largest number of tokens in a bin.
        seed: Decides which examples of equal length go together.

    Returns:
        The bins; in each, the examples stand by falling length.

    Raises:
        ValueError: A length is below 1 or above the capacity.

    Source: TRL 1.16, `packing_strategy="bfd"`: the same algorithm.
    """
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= capacity:
        raise ValueError(
            f"lengths from {lengths.min()} to {lengths.max()} for bins of {capacity} tokens"
        )
    examples = _longest_first(lengths, seed)
    bin_of = np.empty(len(examples), np.int64)
    bins_by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r is set while some bin has room for exactly r more tokens
    num_bins = 0
    for position, length in enumerate(map(int, lengths[examples])):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            bin_index = bins_by_room[room].pop()
            if not bins_by_room[room]:
                rooms ^= 1 << room
        else:
            room, bin_index = capacity, num_bins
            num_bins += 1
        bin_of[position] = bin_index
        if room > length:
            bins_by_room[room - length].append(bin_index)
            rooms |= 1 << (room - length)
    sizes = np.bincount(bin_of, minlength=num_bins)
    return Bins(examples[np.argsort(bin_of, kind="stable")], np.cumsum([0, *sizes]))


def padded_lengths(
    lengths: Integer[np.ndarray, " n"], longest: int, multiple: int, most: int
) -> list[int]:
    """Choose a few lengths so that padding each sequence to the next length adds the least padding.

    Args:
        lengths: The number of tokens in each sequence.
        longest: The largest of the lengths; no sequence is longer.
        multiple: The other lengths are multiples of this.
        most: The largest number of lengths.

    Returns:
        The lengths, ascending.
    """
    rounded = np.minimum(-(-lengths.astype(np.int64) // multiple) * multiple, longest)
    values, counts = np.unique(np.append(rounded, longest), return_counts=True)
    num_within = np.cumsum(counts)
    # least[j] is the smallest number of tokens, padding included, of all sequences up to the length
    # values[j], if values[j] is one of the chosen lengths.
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
    """Return the chosen lengths, found by walking back from the largest."""
    last = len(values) - 1
    chosen = [int(values[last])]
    for before in reversed(steps):
        if before[last] >= 0:  # otherwise one length more does not help
            last = int(before[last])
            chosen.append(int(values[last]))
    return chosen[::-1]


def _longest_first(lengths: Integer[np.ndarray, " n"], seed: int) -> Int64[np.ndarray, " n"]:
    """Return the examples by falling length; the seed decides the order of equal lengths."""
    # No epoch has the number -1, so this order differs from that of every epoch.
    drawn = order.shuffled(len(lengths), seed, stream=-1)
    return drawn[np.argsort(-lengths[drawn].astype(np.int64), kind="stable")]
