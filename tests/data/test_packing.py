from __future__ import annotations

import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxft.data.batches import packing

CAPACITY = 64
# Short rows are what fills the last gaps.
LENGTHS = st.lists(st.one_of(st.integers(1, 4), st.integers(1, CAPACITY)), max_size=60)


def totals(bins, lengths) -> list[int]:
    return [sum(lengths[row] for row in rows) for rows in bins]


def lists(bins) -> list[list[int]]:
    return [rows.tolist() for rows in bins]


def best_fit_decreasing(lengths) -> list[int]:
    """Return how full the bins are, by the textbook and in quadratic time."""
    filled: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [index for index, used in enumerate(filled) if used + length <= CAPACITY]
        if fitting:
            filled[max(fitting, key=lambda index: filled[index])] += length
        else:
            filled.append(length)
    return filled


@hypothesis.given(lengths=LENGTHS, seed=st.integers(0, 2**32))
def test_every_row_is_packed_once_and_no_bin_overflows(lengths, seed):
    bins = packing.pack(np.array(lengths, np.int32), CAPACITY, seed)
    assert sorted(row for rows in bins for row in rows) == list(range(len(lengths)))
    assert all(0 < total <= CAPACITY for total in totals(bins, lengths))


@hypothesis.given(lengths=LENGTHS, seed=st.integers(0, 2**32))
def test_bins_are_as_full_as_the_textbook_makes_them(lengths, seed):
    bins = packing.pack(np.array(lengths, np.int32), CAPACITY, seed)
    assert sorted(totals(bins, lengths)) == sorted(best_fit_decreasing(lengths))


@hypothesis.given(lengths=LENGTHS, data=st.data())
def test_neither_the_order_of_rows_nor_the_seed_changes_how_full_bins_are(lengths, data):
    other = data.draw(st.permutations(lengths))
    one = packing.pack(np.array(lengths, np.int32), CAPACITY, 0)
    two = packing.pack(np.array(other, np.int32), CAPACITY, 1)
    assert sorted(totals(one, lengths)) == sorted(totals(two, other))


def test_the_seed_alone_decides_which_equal_rows_meet():
    lengths = np.full(40, 20)
    one, same, other = (lists(packing.pack(lengths, CAPACITY, seed)) for seed in (3, 3, 4))
    assert one == same
    assert one != other


def test_real_lengths_need_few_more_bins_than_their_sum():
    # Log-normal, as the lengths of answers are.
    lengths = np.random.default_rng(0).lognormal(4.5, 0.7, 5000).astype(int).clip(8, 1024)
    bins = packing.pack(lengths, 1024, 0)
    assert len(bins) <= 1.01 * np.ceil(lengths.sum() / 1024)


@pytest.mark.parametrize("length", [0, CAPACITY + 1])
def test_a_length_that_no_bin_can_hold_is_refused(length):
    with pytest.raises(ValueError, match=str(length)):
        packing.pack(np.array([3, length]), CAPACITY, 0)


@hypothesis.given(st.lists(LENGTHS.filter(len), min_size=1, max_size=3), st.booleans())
def test_joined_bins_are_those_of_each_source_with_rows_counted_on(sources, is_packed):
    arrays = [np.array(lengths, np.int32) for lengths in sources]
    parts = [
        packing.pack(lengths, CAPACITY, 0) if is_packed else packing.singles(len(lengths))
        for lengths in arrays
    ]
    joined = packing.joined(parts)
    expected, first = [], 0
    for part in parts:
        expected += [[row + first for row in rows] for rows in lists(part)]
        first += len(part.examples)
    assert lists(joined) == expected
    assert len(joined) == len(expected)
    every = np.concatenate(arrays)
    assert joined.totals(every).tolist() == totals(joined, every)


def cost(lengths, chosen) -> int:
    """Return how many tokens sequences take that are padded to the chosen lengths."""
    return sum(min(each for each in chosen if each >= length) for length in lengths)


@hypothesis.given(LENGTHS.filter(len), st.integers(1, 3), st.sampled_from([1, 8, 16]))
def test_padded_lengths_are_the_best_choice_of_so_many(lengths, most, multiple):
    longest = min(60, -(-max(lengths) // multiple) * multiple)
    lengths = [min(length, longest) for length in lengths]
    chosen = packing.padded_lengths(np.array(lengths), longest, multiple, most)
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= most
    assert chosen[-1] == longest
    assert all(length % multiple == 0 for length in chosen[:-1])
    others = {min(-(-length // multiple) * multiple, longest) for length in lengths}
    best = min(
        cost(lengths, [*some, longest])
        for some in itertools.combinations_with_replacement(sorted(others), most - 1)
    )
    assert cost(lengths, chosen) == best
