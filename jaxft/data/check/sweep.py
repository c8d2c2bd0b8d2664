"""One pass over the tokens of a data set: what can be seen of every example without decoding it.

For a million examples it keeps two numbers and a sketch of each, 80 bytes together, and no tokens.
Beyond that many, sketches are kept of evenly spaced ones only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection

import numpy as np
from jaxtyping import Bool, Int64, Integer, UInt16, UInt64

from jaxft.data.check import minhash
from jaxft.data.check.pool import ExampleBlock, Pool

# Told how many more tokens were looked at.
Advance = Callable[[int], None]

# Sketches are 64 bytes each: 64 MB for so many.
MAX_SKETCHES = 1_000_000

# A gram outside the supervised part is form, not content (a system message, words of a template)
# if it stands in more than one of 50 examples, and in more than 4 of them.
_FORM_SHARE = 0.02
_FORM_LEAST = 4
_FORM_SAMPLE = 2_000
_FILTER_BITS = 20


@dataclasses.dataclass(frozen=True, eq=False)
class Form:
    """Grams that so many prompts have that they say nothing about one of them.

    Attributes:
        grams: Their numbers, sorted.
        may_be: Whether a number with these last 20 bits is among them; spares most searches.
    """

    grams: UInt64[np.ndarray, " g"]
    may_be: Bool[np.ndarray, " 1048576"]

    def is_content(self, hashes: UInt64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Return which grams are not form."""
        doubtful = np.flatnonzero(self.may_be[_last_bits(hashes)])
        kept = np.ones(len(hashes), bool)
        kept[doubtful] = ~np.isin(hashes[doubtful], self.grams)
        return kept


@dataclasses.dataclass(frozen=True, eq=False)
class Sweep:
    """What a pass found.

    Attributes:
        whole: A number for each example; equal examples have equal ones.
        supervised: The same of the supervised part of each.
        sketched: The examples that have a sketch.
        sketch: Their sketches.
        unended: Examples whose last reply does not end with a token that stops generation.
        unknown: Examples with tokens that stand for anything the tokenizer does not know.
        num_unknown: How many such tokens there are.
    """

    whole: UInt64[np.ndarray, " n"]
    supervised: UInt64[np.ndarray, " n"]
    sketched: Int64[np.ndarray, " m"]
    sketch: UInt16[np.ndarray, "m 32"]
    unended: Int64[np.ndarray, " u"]
    unknown: Int64[np.ndarray, " k"]
    num_unknown: int


def find_form(pool: Pool) -> Form:
    """Return the grams that many prompts share, judged by up to 2,000 evenly spaced examples."""
    seen = []
    chosen = np.unique(np.linspace(0, len(pool) - 1, min(len(pool), _FORM_SAMPLE)).astype(int))
    for index in chosen:
        ids, mask = pool[int(index)]
        hashes, first = minhash.grams(ids, np.array([len(ids)]))
        last = np.minimum(first + minhash.GRAM, len(ids)) - 1
        seen.append(np.unique(hashes[mask[last] == 0]))
    found, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *seen]), return_counts=True)
    grams = found[counts > max(_FORM_LEAST, _FORM_SHARE * len(chosen))]
    may_be = np.zeros(1 << _FILTER_BITS, bool)
    may_be[_last_bits(grams)] = True
    return Form(grams, may_be)


def run(
    pool: Pool,
    form: Form | None,
    ends: Collection[int],
    unknown_id: int | None,
    max_length: int,
    count: Advance,
) -> Sweep:
    """Look at every example once.

    Args:
        pool: The examples.
        form: Grams to leave out of sketches; None to make no sketches.
        ends: Tokens that end a reply.
        unknown_id: The token for what the tokenizer does not know, if it has one.
        max_length: Examples of this length may have been cut, and need no end.
        count: Told how many more tokens were looked at.
    """
    step = max(1, -(-len(pool) // MAX_SKETCHES))
    whole, supervised = np.empty(len(pool), np.uint64), np.empty(len(pool), np.uint64)
    sketch, sketched = [np.zeros((0, minhash.BINS), np.uint16)], [np.zeros(0, np.int64)]
    unended, unknown = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    num_unknown = 0
    end_ids = np.array(sorted(ends), np.int64)
    for block in pool.blocks():
        numbers = np.arange(block.start, block.start + len(block.lengths))
        whole[numbers] = minhash.row_hashes(block.ids, block.lengths)
        is_supervised = block.mask == 1
        supervised_lengths = _sums(block.mask, block.lengths)
        supervised[numbers] = minhash.row_hashes(block.ids[is_supervised], supervised_lengths)
        if len(end_ids):
            unended.append(numbers[_has_no_end(block, supervised_lengths, end_ids, max_length)])
        if unknown_id is not None:
            is_unknown = block.ids == unknown_id
            num_unknown += int(is_unknown.sum())
            unknown.append(numbers[_sums(is_unknown, block.lengths) > 0])
        if form is not None:
            own, is_sketched = _sketches(block, form, numbers % step == 0)
            sketch.append(own)
            sketched.append(numbers[is_sketched])
        count(len(block.ids))
    return Sweep(
        whole,
        supervised,
        np.concatenate(sketched),
        np.concatenate(sketch),
        np.concatenate(unended),
        np.concatenate(unknown),
        num_unknown,
    )


def _has_no_end(
    block: ExampleBlock,
    targets: Int64[np.ndarray, " r"],
    ends: Int64[np.ndarray, " e"],
    max_length: int,
) -> Bool[np.ndarray, " r"]:
    """Return which examples learn a reply, and not where it ends.

    An example of which everything is supervised is a text, or a piece of one, and need not end.
    """
    stops = np.cumsum(block.lengths)
    at = np.arange(len(block.ids))
    supervised_at = np.where(block.mask == 1, at, -1)
    last = np.maximum.accumulate(supervised_at)[stops - 1]
    is_reply = (targets > 0) & (targets < block.lengths - 1) & (block.lengths < max_length)
    return is_reply & ~np.isin(block.ids[last], ends)


def _sketches(
    block: ExampleBlock, form: Form, is_chosen: Bool[np.ndarray, " r"]
) -> tuple[UInt16[np.ndarray, "s 32"], Bool[np.ndarray, " r"]]:
    """Return sketches of chosen examples, and which examples have one."""
    hashes, first = minhash.grams(block.ids, block.lengths)
    owners = np.repeat(np.arange(len(block.lengths)), block.lengths)[first]
    kept = is_chosen[owners] & form.is_content(hashes)
    sketch, has_any = minhash.sketches(hashes[kept], owners[kept], len(block.lengths))
    return sketch[has_any], has_any


def _sums(
    values: Integer[np.ndarray, " t"] | Bool[np.ndarray, " t"], lengths: Int64[np.ndarray, " r"]
) -> Int64[np.ndarray, " r"]:
    """Return the sum over each row."""
    before = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    stops = np.cumsum(lengths)
    return before[stops] - before[stops - lengths]


def _last_bits(hashes: UInt64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    return (hashes & np.uint64((1 << _FILTER_BITS) - 1)).astype(np.int64)
