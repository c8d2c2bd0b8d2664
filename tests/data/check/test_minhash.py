"""Sketches against what they estimate: the share of 5-grams that two rows have in common."""

from __future__ import annotations

import itertools

import hypothesis
import numpy as np
from hypothesis import strategies as st

from jaxft.data.check import minhash

ROWS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), min_size=1, max_size=8)


def flat(rows):
    ids = np.array([token for row in rows for token in row], np.int32)
    return ids, np.array([len(row) for row in rows], np.int64)


def true_grams(row):
    return {tuple(row[start : start + 5]) for start in range(max(1, len(row) - 4))}


def true_jaccard(one, other):
    one, other = true_grams(one), true_grams(other)
    return len(one & other) / len(one | other)


def make_sketches(rows):
    ids, lengths = flat(rows)
    hashes, first = minhash.grams(ids, lengths)
    owners = np.repeat(np.arange(len(rows)), lengths)[first]
    return minhash.sketches(hashes, owners, len(rows))


def changed(row, share, random):
    """Return a row in which about that share of the tokens is another one."""
    return [int(random.integers(1000, 2000)) if random.random() < share else token for token in row]


@hypothesis.given(ROWS)
def test_hashes_of_rows_are_equal_where_the_rows_are(rows):
    hashes = minhash.example_hashes(*flat(rows))
    for (one, row), (other, row_too) in itertools.combinations(zip(hashes, rows, strict=True), 2):
        assert (one == other) == (row == row_too)


@hypothesis.given(ROWS)
def test_a_hash_does_not_depend_on_the_rows_around_it(rows):
    together = minhash.example_hashes(*flat(rows))
    alone = [minhash.example_hashes(*flat([row]))[0] for row in rows]
    assert together.tolist() == alone


@hypothesis.given(ROWS)
def test_grams_are_those_that_stand_in_each_row(rows):
    ids, lengths = flat(rows)
    hashes, first = minhash.grams(ids, lengths)
    owners = np.repeat(np.arange(len(rows)), lengths)[first]
    expected = [
        (owner, tuple(row[start : start + 5]))
        for owner, row in enumerate(rows)
        for start in range(max(1, len(row) - 4))
    ]
    assert owners.tolist() == [owner for owner, _ in expected]
    known = {}
    for number, (_, gram) in zip(hashes.tolist(), expected, strict=True):
        assert known.setdefault(gram, number) == number
    assert len(set(known.values())) == len(known)


@hypothesis.given(ROWS, ROWS)
def test_jaccard_is_the_share_of_common_grams(rows, others):
    one, other = rows[0], others[0]
    hashes = [minhash.grams(*flat([row]))[0] for row in (one, other)]
    assert minhash.jaccard(*hashes) == true_jaccard(one, other)


def test_sketches_agree_as_often_as_grams_are_shared():
    random = np.random.default_rng(0)
    for share in (0.01, 0.05, 0.2):
        errors = []
        for length in (20, 60, 300):
            rows = []
            for _ in range(40):
                row = random.integers(0, 1000, length).tolist()
                rows += [row, changed(row, share, random)]
            sketch, _ = make_sketches(rows)
            pairs = np.arange(len(rows)).reshape(-1, 2)
            about = minhash.similarity(sketch, pairs[:, 0], pairs[:, 1])
            truth = [true_jaccard(rows[one], rows[other]) for one, other in pairs]
            errors += (about - truth).tolist()
        # 32 numbers have a standard error of at most 0.09 each; here are 120 pairs.
        assert abs(np.mean(errors)) < 0.025
        assert np.sqrt(np.mean(np.square(errors))) < 0.1


def test_every_row_with_a_gram_has_a_full_sketch_and_no_other_row_has_one():
    hashes = np.array([5, 2**63 + 9], np.uint64)
    sketch, has_any = minhash.sketches(hashes, np.array([1, 2]), 4)
    assert has_any.tolist() == [False, True, True, False]
    assert len(np.unique(sketch[1])) == len(np.unique(sketch[2])) == 1
    # Borrowed numbers are the row's own.
    assert sketch[1, 0] == 5
    assert sketch[2, 0] == 9


def test_candidates_are_nearly_all_pairs_that_are_alike():
    random = np.random.default_rng(1)
    rows = [random.integers(0, 1000, int(random.integers(30, 200))).tolist() for _ in range(200)]
    rows += [changed(row, 0.015, random) for row in rows[:100]]
    sketch, _ = make_sketches(rows)
    found = {tuple(pair) for pair in minhash.candidates(sketch, len(rows), 0.6).tolist()}
    alike = {
        (one, other)
        for one, other in itertools.combinations(range(len(rows)), 2)
        if true_jaccard(rows[one], rows[other]) >= 0.8
    }
    assert 60 < len(alike) <= 100
    assert len(alike - found) <= 3
    # And few others: nothing that shares less than half.
    assert all(true_jaccard(rows[one], rows[other]) > 0.4 for one, other in found)


def test_new_rows_find_an_old_one_behind_other_new_ones():
    row = list(range(50))
    sketch, _ = make_sketches([row, *[row] * 5])
    found = {tuple(pair) for pair in minhash.candidates(sketch, 1, 0.6).tolist()}
    assert {(0, new) for new in range(1, 6)} <= found


def test_new_rows_find_an_old_one_where_others_are_first_in_every_band():
    random = np.random.default_rng(2)
    wanted = random.integers(0, 2**16, 32, dtype=np.uint16)
    decoys = random.integers(0, 2**16, (8, 32), dtype=np.uint16)
    for band in range(8):
        decoys[band, 4 * band : 4 * band + 4] = wanted[4 * band : 4 * band + 4]
    sketch = np.concatenate([decoys, [wanted] * 4])
    found = {tuple(pair) for pair in minhash.candidates(sketch, 9, 0.6).tolist()}
    assert {(8, 9), (8, 10), (8, 11)} <= found


def test_work_grows_with_the_rows_and_not_with_their_pairs():
    sketch, _ = make_sketches([list(range(50))] * 3000)
    assert len(minhash.candidates(sketch, 3000, 0.6)) <= 2 * 3000
