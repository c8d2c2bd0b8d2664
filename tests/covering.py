"""Small sets that meet everything once.

`covering` chooses names such that every trait is met. `pairwise` chooses one level for each of
several factors such that every pair of levels is met: most mistakes of combination are of two
things. All pairs of levels need a small part of the rows that the full cross has, about the product
of the two largest factors.

Source: Cohen, Dalal, Fredman and Patton 1997, "The AETG System", section 4, with a fixed order in
place of its random one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

Row = Mapping[str, str]  # a level for each factor
Pair = tuple[tuple[str, str], tuple[str, str]]

Factors = Mapping[str, Sequence[str]]
Rule = Callable[[Row], bool]  # whether a row, or what there is of it yet, is allowed


def cross(factors: Factors, is_allowed: Rule) -> Iterator[dict[str, str]]:
    """Yield every allowed row."""
    for levels in itertools.product(*factors.values()):
        row = dict(zip(factors, levels, strict=True))
        if is_allowed(row):
            yield row


def pairwise(factors: Factors, is_allowed: Rule) -> list[dict[str, str]]:
    """Return allowed rows that have every pair of levels that an allowed row can have."""
    missing = dict.fromkeys(
        pair
        for first, second in itertools.combinations(factors, 2)
        for pair in itertools.product(
            *([(factor, level) for level in factors[factor]] for factor in (first, second))
        )
    )
    rows = []
    while missing:
        pair = next(iter(missing))
        row = _completed(dict(pair), factors, is_allowed, missing)
        if row is None:  # no allowed row has it
            del missing[pair]
            continue
        rows.append(row)
        for seen in pairs_of(row):
            missing.pop(seen, None)
    return rows


def covering(traits: Mapping[str, Collection[str]]) -> list[str]:
    """Return names whose traits, together, are those of all: always the one with most new ones."""
    missing = {trait for of_one in traits.values() for trait in of_one}
    chosen = []
    while missing:
        name = max(traits, key=lambda name: len(missing.intersection(traits[name])))
        chosen.append(name)
        missing.difference_update(traits[name])
    return chosen


def pairs_of(row: Row) -> Iterator[Pair]:
    """Yield the pairs of levels that a row has, as `pairwise` orders them."""
    return itertools.combinations(row.items(), 2)


def _completed(
    start: Row, factors: Factors, is_allowed: Rule, missing: Mapping[Pair, None]
) -> dict[str, str] | None:
    """Return an allowed row with what `start` has, and many missing pairs; `None` for none."""
    if not is_allowed(start):
        return None
    open_factors = [factor for factor in factors if factor not in start]
    if not open_factors:
        return {factor: start[factor] for factor in factors}

    def gain(level: str) -> int:
        new = (open_factors[0], level)
        either = [pair for old in start.items() for pair in ((old, new), (new, old))]
        return sum(pair in missing for pair in either)

    for level in sorted(factors[open_factors[0]], key=gain, reverse=True):
        row = _completed({**start, open_factors[0]: level}, factors, is_allowed, missing)
        if row is not None:
            return row
    return None
