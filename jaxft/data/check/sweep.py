"""One pass over the tokens of a data set, for everything that needs no decoding.

For each example it keeps two hashes and a sketch, together 80 bytes, and no tokens. Of more than a
million examples, only evenly spaced ones get a sketch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection

import numpy as np
from jaxtyping import Bool, Int64, Integer, UInt16, UInt64

from jaxft.data.check import minhash
from jaxft.data.check.pool import ExampleBlock, Pool

# Called with the amount of work done since the last call, in tokens or rows.
Advance = Callable[[int], None]

# Sketches are 64 bytes each: 64 MB for so many.
MAX_SKETCHES = 1_000_000

# A gram outside the supervised part is form (a system message, words of a template) and not content
# if it stands in more than one of 50 examples, and in more than 4 examples.
_FORM_SHARE = 0.02
_FORM_LEAST = 4
_FORM_SAMPLE = 2_000
_FILTER_BITS = 20


@dataclasses.dataclass(frozen=True, eq=False)
class Form:
    """The grams that many prompts share, which do not distinguish one example from another.

    Attributes:
        grams: The hashes of these grams, sorted.
        may_be: For each value of the last 20 bits, whether one of the hashes has it. This makes
            most searches unnecessary.
    """

    grams: UInt64[np.ndarray, " g"]
    may_be: Bool[np.ndarray, " 1048576"]

    def is_content(self, hashes: UInt64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Return whether each gram is content, and not form."""
        doubtful = np.flatnonzero(self.may_be[_last_bits(hashes)])
        kept = np.ones(len(hashes), bool)
        kept[doubtful] = ~np.isin(hashes[doubtful], self.grams)
        return kept


@dataclasses.dataclass(frozen=True, eq=False)
class Sweep:
    """The results of a pass.

    Attributes:
        whole: A hash of each example.
        supervised: A hash of the supervised part of each example.
        sketched: The numbers of the examples that have a sketch.
        sketch: The sketches of these examples.
        unended: Examples whose last reply does not end with a token that stops generation.
        unknown: Examples with the tokenizer's unknown token.
        num_unknown: The number of unknown tokens.
    """

    whole: UInt64[np.ndarray, " n"]
    supervised: UInt64[np.ndarray, " n"]
    sketched: Int64[np.ndarray, " m"]
    sketch: UInt16[np.ndarray, "m 32"]
    unended: Int64[np.ndarray, " u"]
    unknown: Int64[np.ndarray, " k"]
    num_unknown: int


def find_form(pool: Pool) -> Form:
    """Return the grams that many prompts share, from up to 2,000 evenly spaced examples."""
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
    advance: Advance,
) -> Sweep:
    """Look at every example once.

    Args:
        pool: The examples.
        form: Grams to leave out of sketches; None to make no sketches.
        ends: Tokens that end a reply.
        unknown_id: The unknown token of the tokenizer, if it has one.
        max_length: Examples of this length may have been cut, and need no end.
        advance: Called with the number of tokens of each block.
    """
    step = max(1, -(-len(pool) // MAX_SKETCHES))
    whole, supervised = np.empty(len(pool), np.uint64), np.empty(len(pool), np.uint64)
    sketch, sketched = [np.zeros((0, minhash.BINS), np.uint16)], [np.zeros(0, np.int64)]
    unended, unknown = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    num_unknown = 0
    end_ids = np.array(sorted(ends), np.int64)
    for block in pool.blocks():
        numbers = np.arange(block.start, block.start + len(block.lengths))
        whole[numbers] = minhash.example_hashes(block.ids, block.lengths)
        is_supervised = block.mask == 1
        supervised_lengths = _sums(block.mask, block.lengths)
        supervised[numbers] = minhash.example_hashes(block.ids[is_supervised], supervised_lengths)
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
        advance(len(block.ids))
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
    """Return whether each example has a supervised reply without a supervised end.

    An example that is supervised as a whole is a text or a piece of one, and needs no end.
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
    """Return the sketches of chosen examples, and whether each example of the block has one."""
    hashes, first = minhash.grams(block.ids, block.lengths)
    owners = np.repeat(np.arange(len(block.lengths)), block.lengths)[first]
    kept = is_chosen[owners] & form.is_content(hashes)
    sketch, has_any = minhash.sketches(hashes[kept], owners[kept], len(block.lengths))
    return sketch[has_any], has_any


def _sums(
    values: Integer[np.ndarray, " t"] | Bool[np.ndarray, " t"], lengths: Int64[np.ndarray, " r"]
) -> Int64[np.ndarray, " r"]:
    """Return the sum of the values of each example."""
    before = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    stops = np.cumsum(lengths)
    return before[stops] - before[stops - lengths]


def _last_bits(hashes: UInt64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    return (hashes & np.uint64((1 << _FILTER_BITS) - 1)).astype(np.int64)
