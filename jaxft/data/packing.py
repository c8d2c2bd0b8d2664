"""Which rows share a sequence.

Separate from the loader because it is pure arithmetic on lengths. The invariant: every row stands
in exactly one bin and no bin is fuller than its capacity.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Integer


def pack(lengths: Integer[np.ndarray, " n"], capacity: int, seed: int) -> list[tuple[int, ...]]:
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
        The bins, each with the indices of its rows, longest first.

    Raises:
        ValueError: A length is below 1 or above the capacity.

    Source: TRL 1.16, `packing_strategy="bfd"`: the same algorithm.
    """
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= capacity:
        raise ValueError(
            f"lengths from {lengths.min()} to {lengths.max()} for bins of {capacity} tokens"
        )
    bins: list[list[int]] = []
    bins_by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r is set while some bin has room for exactly r more tokens
    for row in _longest_first(lengths, seed):
        length = int(lengths[row])
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            bin_index = bins_by_room[room].pop()
            if not bins_by_room[room]:
                rooms ^= 1 << room
            bins[bin_index].append(row)
        else:
            room, bin_index = capacity, len(bins)
            bins.append([row])
        bins_by_room[room - length].append(bin_index)
        rooms |= 1 << (room - length)
    return [tuple(rows) for rows in bins]


def shuffled(count: int, seed: int, stream: int) -> Integer[np.ndarray, " n"]:
    """Return a permutation that is a pure function of its arguments, on every platform.

    The raw stream of the Philox counter generator is fixed by its definition and kept by numpy;
    the methods that draw from it (`Generator.permutation`) may change between versions.

    Args:
        count: How many to permute.
        seed: The run's seed.
        stream: Tells the permutations of one seed apart, such as the epoch.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    key = np.array([seed % 2**64, stream % 2**64], np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")


def _longest_first(lengths: Integer[np.ndarray, " n"], seed: int) -> list[int]:
    """Return the rows by falling length, those of one length in an order drawn from the seed."""
    # No epoch is ever numbered -1, so this order is unlike any epoch's.
    order = shuffled(len(lengths), seed, stream=-1)
    by_length = np.argsort(-lengths[order].astype(np.int64), kind="stable")
    rows: list[int] = order[by_length].tolist()
    return rows
