from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxft.data import packing

CAPACITY = 64
LENGTHS = st.lists(st.integers(1, CAPACITY), max_size=60)


def totals(bins, lengths) -> list[int]:
    return [sum(lengths[row] for row in rows) for rows in bins]


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
    assert packing.pack(lengths, CAPACITY, 3) == packing.pack(lengths, CAPACITY, 3)
    assert packing.pack(lengths, CAPACITY, 3) != packing.pack(lengths, CAPACITY, 4)


def test_real_lengths_need_few_more_bins_than_their_sum():
    # Log-normal, as the lengths of answers are.
    lengths = np.random.default_rng(0).lognormal(4.5, 0.7, 5000).astype(int).clip(8, 1024)
    bins = packing.pack(lengths, 1024, 0)
    assert len(bins) <= 1.01 * np.ceil(lengths.sum() / 1024)


@pytest.mark.parametrize("length", [0, CAPACITY + 1])
def test_a_length_that_no_bin_can_hold_is_refused(length):
    with pytest.raises(ValueError, match=str(length)):
        packing.pack(np.array([3, length]), CAPACITY, 0)


def test_shuffles_have_the_values_that_earlier_runs_were_trained_on():
    # Golden: a change here means that no run can be resumed across it.
    assert packing.shuffled(10, 0, 0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert packing.shuffled(10, 42, 3).tolist() == [1, 6, 3, 4, 5, 9, 2, 8, 0, 7]
    assert packing.shuffled(5, 7, -1).tolist() == [1, 4, 0, 2, 3]


@hypothesis.given(st.integers(0, 200), st.integers(-(2**63), 2**64), st.integers(-1, 2**40))
def test_a_shuffle_is_a_permutation(count, seed, stream):
    assert sorted(packing.shuffled(count, seed, stream)) == list(range(count))
