"""Copies: equal or almost equal examples, among the training rows and between both sides.

Equal examples are found by a hash of their tokens. Two examples are almost equal if they share at
least four fifths of their token 5-grams, both in the whole example (without the text that many
prompts share) and in the supervised part. So two questions about one long text are not copies of
each other, and neither are two answers to one question.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int64, UInt64

from jaxft.data.check import minhash
from jaxft.data.check.pool import Pool
from jaxft.data.check.sweep import Form, Sweep
from jaxft.data.examples.tokens import Example
from jaxft.data.rows.row import RowPlace

# The share of equal 5-grams that makes two examples copies. Source: Lee et al. 2022, "Deduplicating
# training data makes language models better", take 0.8 of 5-grams for web text.
ALIKE = 0.8
# The similarity of sketches differs from the true one by 0.07 on average, where that is 0.8.
_SEEMS_ALIKE = ALIKE - 0.2
# Examples with fewer grams are too short to be called almost equal.
_FEWEST_GRAMS = 5
# The largest number of examples whose tokens are compared, at about 0.5 ms each.
_MAX_COMPARED = 2_000
_NUM_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Copies:
    """Copies of one kind.

    Attributes:
        count: The number of copies.
        of: The number of examples that were searched.
        is_exact: Whether the count is exact, and not an estimate.
        first: The places of the first copies, each with the place of its original.
    """

    count: int
    of: int
    is_exact: bool
    first: list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """All copies that were found.

    Attributes:
        exact: Training examples that are equal to an earlier one.
        near: Training examples that are almost equal to an earlier one; None if not searched.
        held_out: Held-out examples that are equal to a training example; None without held-out
            rows.
        near_held_out: Held-out examples that are almost equal to a training example; None without
            held-out rows, or if not searched.
        num_distinct: The number of different training examples.
        num_distinct_supervised: The number of different supervised parts of training examples.
    """

    exact: Copies
    near: Copies | None
    held_out: Copies | None
    near_held_out: Copies | None
    num_distinct: int
    num_distinct_supervised: int


def find(
    train: Pool, swept: Sweep, held_out: Pool | None, held_sweep: Sweep | None, form: Form | None
) -> Duplicates:
    """Find copies.

    Args:
        train: The training examples.
        swept: The results of the pass over them.
        held_out: The held-out examples.
        held_sweep: The results of the pass over them.
        form: The grams that many prompts share; None to find equal examples only.
    """
    originals, first = np.unique(swept.whole, return_index=True)
    exact = _copies_within(train, swept.whole, originals, first)
    leaked = near = near_leaked = None
    if held_out is not None and held_sweep is not None:
        leaked = _copies_across(train, held_out, held_sweep.whole, originals, first)
    if form is not None:
        near, near_leaked = _near(train, swept, held_out, held_sweep, form)
    distinct_supervised = len(np.unique(swept.supervised))
    return Duplicates(exact, near, leaked, near_leaked, len(originals), distinct_supervised)


def _copies_within(
    pool: Pool,
    hashes: UInt64[np.ndarray, " n"],
    originals: UInt64[np.ndarray, " o"],
    first: Int64[np.ndarray, " o"],
) -> Copies:
    original = first[np.searchsorted(originals, hashes)]
    count, shown = 0, list[tuple[RowPlace, RowPlace]]()
    for copy in np.flatnonzero(original != np.arange(len(hashes))).tolist():
        place, place_before = pool.place(copy), pool.place(int(original[copy]))
        # A long row may have been cut into several equal examples, which are not copies.
        if place != place_before:
            count += 1
            shown += [(place, place_before)] if count <= _NUM_SHOWN else []
    return Copies(count, len(hashes), True, _shown(shown))


def _copies_across(
    train: Pool,
    held_out: Pool,
    hashes: UInt64[np.ndarray, " n"],
    originals: UInt64[np.ndarray, " o"],
    first: Int64[np.ndarray, " o"],
) -> Copies:
    copies = np.flatnonzero(np.isin(hashes, originals))
    original = first[np.searchsorted(originals, hashes[copies[:_NUM_SHOWN]])]
    pairs = [
        (held_out.place(copy), train.place(index))
        for copy, index in zip(copies[:_NUM_SHOWN].tolist(), original.tolist(), strict=True)
    ]
    return Copies(len(copies), len(hashes), True, _shown(pairs))


def _near(
    train: Pool, swept: Sweep, held_out: Pool | None, held_sweep: Sweep | None, form: Form
) -> tuple[Copies, Copies | None]:
    """Find almost equal examples that are not equal, from all sketches at once."""
    old = swept.sketched[_firsts(swept.whole[swept.sketched])]
    sketch = swept.sketch[np.searchsorted(swept.sketched, old)]
    new = np.zeros(0, np.int64)
    if held_sweep is not None:
        hashes = held_sweep.whole[held_sweep.sketched]
        kept = _firsts(hashes)
        kept = kept[~np.isin(hashes[kept], swept.whole)]
        new = held_sweep.sketched[kept]
        sketch = np.concatenate([sketch, held_sweep.sketch[kept]])
    pairs = minhash.candidates(sketch, len(old), _SEEMS_ALIKE)
    is_new = pairs[:, 1] >= len(old)
    near = _compared(train, train, old, old, pairs[~is_new], form)
    if held_out is None:
        return near, None
    across = pairs[is_new & (pairs[:, 0] < len(old))] - [0, len(old)]
    return near, _compared(train, held_out, old, new, across, form)


def _compared(
    train: Pool,
    other: Pool,
    old: Int64[np.ndarray, " o"],
    new: Int64[np.ndarray, " n"],
    pairs: Int64[np.ndarray, "p 2"],
    form: Form,
) -> Copies:
    """Compare the tokens of candidate pairs, and count the second examples that are copies.

    If there are more than `_MAX_COMPARED` of them, an evenly spaced sample is compared, and the
    count is an estimate.

    Args:
        train: The pool of the first example of each pair.
        other: The pool of the second example.
        old: The numbers in `train` of the examples that have sketches.
        new: The numbers in `other` of the examples that have sketches.
        pairs: The candidate pairs, as positions in `old` and `new`.
        form: The grams that many prompts share.
    """
    copies = np.unique(pairs[:, 1])
    step = max(1, -(-len(copies) // _MAX_COMPARED))
    compared = pairs[np.isin(pairs[:, 1], copies[::step])]
    found: dict[int, tuple[RowPlace, RowPlace]] = {}
    for one, copy in zip(old[compared[:, 0]].tolist(), new[compared[:, 1]].tolist(), strict=True):
        places = other.place(copy), train.place(one)
        if copy in found or places[0] == places[1]:
            continue
        if _are_alike(train[one], other[copy], form):
            found[copy] = places
    shown = [found[copy] for copy in sorted(found)[:_NUM_SHOWN]]
    return Copies(len(found) * step, len(new), step == 1, _shown(shown))


def _are_alike(one: Example, other: Example, form: Form) -> bool:
    """Return whether two examples are almost equal, as a whole and in their supervised parts."""
    content = _content(one, form), _content(other, form)
    return (
        min(map(len, content)) >= _FEWEST_GRAMS
        and minhash.jaccard(*content) >= ALIKE
        and minhash.jaccard(_supervised(one), _supervised(other)) >= ALIKE
    )


def _content(example: Example, form: Form) -> UInt64[np.ndarray, " g"]:
    hashes, _ = minhash.grams(example.input_ids, np.array([len(example.input_ids)]))
    return hashes[form.is_content(hashes)]


def _supervised(example: Example) -> UInt64[np.ndarray, " g"]:
    ids = example.input_ids[example.loss_mask == 1]
    return minhash.grams(ids, np.array([len(ids)]))[0]


def _firsts(hashes: UInt64[np.ndarray, " n"]) -> Int64[np.ndarray, " m"]:
    """Return the positions of the first occurrence of each hash, in order."""
    return np.sort(np.unique(hashes, return_index=True)[1])


def _shown(pairs: Iterable[tuple[RowPlace, RowPlace]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((str(one), str(other)) for one, other in pairs))
