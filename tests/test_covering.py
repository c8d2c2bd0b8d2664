"""Covering sets, which decide what is compared with the references."""

import covering
from hypothesis import given
from hypothesis import strategies as st

SIZES = st.lists(st.integers(1, 4), min_size=2, max_size=5)


@given(SIZES, st.sets(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=3))
def test_every_pair_that_is_possible_is_covered(sizes, forbidden):
    factors = {f"factor {i}": [f"level {j}" for j in range(size)] for i, size in enumerate(sizes)}

    def is_allowed(row):
        # Some levels do not go with the first level of the first factor.
        named = {(int(factor[-1]), int(level[-1])) for factor, level in row.items()}
        return not ((0, 0) in named and len(named & forbidden - {(0, 0)}) > 0)

    rows = covering.pairwise(factors, is_allowed)
    assert all(is_allowed(row) and row.keys() == factors.keys() for row in rows)
    possible = {
        pair for row in covering.cross(factors, is_allowed) for pair in covering.pairs_of(row)
    }
    assert {pair for row in rows for pair in covering.pairs_of(row)} == possible


@given(st.dictionaries(st.text(max_size=3), st.sets(st.sampled_from("abcdefg")), max_size=6))
def test_every_trait_is_covered_and_each_name_adds_one(traits):
    chosen = covering.covering(traits)
    seen = set()
    for name in chosen:
        assert traits[name] - seen
        seen |= traits[name]
    assert seen == set().union(*traits.values())


def test_it_takes_little_more_rows_than_the_two_largest_factors_need():
    factors = {str(i): [str(j) for j in range(size)] for i, size in enumerate([8, 6, 5, 3, 3, 2])}
    assert 48 <= len(covering.pairwise(factors, lambda _: True)) <= 55
    assert sum(1 for _ in covering.cross(factors, lambda _: True)) == 8 * 6 * 5 * 3 * 3 * 2
