"""Sketches of examples, by which almost equal examples are found without comparing all pairs.

A sketch is 32 small numbers. Two examples that share nine tenths of their token 5-grams agree in
about 29 of the numbers, so they are found by sorting: examples that agree in four neighbouring
numbers are candidates, and `duplicates` compares the tokens of the candidates.

No library is used: `datasketch` hashes one 5-gram at a time in Python, which is 1 million tokens a
second on one core; this file does 15 million. Each 5-gram is hashed once, and its hash names one of
the 32 numbers, which becomes the lowest hash that names it (one permutation hashing). A number that
no 5-gram names is copied from another one (optimal densification).

Source: Li, Owen and Zhang 2012, "One permutation hashing"; Shrivastava 2017, "Optimal densification
for fast and accurate minwise hashing"; Li and König 2010, "b-bit minwise hashing".
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Bool, Int32, Int64, Integer, UInt16, UInt64

# Tokens in a gram: enough that two unrelated texts of one language share few grams.
GRAM = 5
# Numbers in a sketch. Four neighbouring numbers are a band, which is compared as one 64-bit number.
# Examples that agree in a band are candidates: 1 - (1 - 0.8^4)^8 = 98.5 % of examples that share
# 80 % of their grams, and 99.98 % of those that share 90 %.
BINS = 32

_BIN_BITS = 5
_EMPTY = np.uint64(2**64 - 1)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def mixed(values: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """Return well-mixed hashes: every bit depends on all bits of the given number.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"
    (SplitMix64, its last three lines).
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def positions(lengths: Integer[np.ndarray, " r"]) -> Int64[np.ndarray, " t"]:
    """Return the position of each token in its own example, for examples that stand end to end."""
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    return np.arange(int(lengths.sum())) - np.repeat(starts, lengths)


def example_hashes(
    ids: Int32[np.ndarray, " t"], lengths: Integer[np.ndarray, " r"]
) -> UInt64[np.ndarray, " r"]:
    """Return one hash for each example, from all its tokens.

    Args:
        ids: The tokens of examples, end to end.
        lengths: The number of tokens in each example.
    """
    at = positions(lengths).astype(np.uint64)
    values = mixed((ids.astype(np.uint64) + np.uint64(1)) * _MULTIPLIER + mixed(at))
    return _sums(values, lengths)


def grams(
    ids: Int32[np.ndarray, " t"], lengths: Integer[np.ndarray, " r"]
) -> tuple[UInt64[np.ndarray, " g"], Int64[np.ndarray, " g"]]:
    """Return the hash of every 5-gram, and the position in `ids` at which it begins.

    An example of fewer than five tokens is one gram.
    """
    total = len(ids)
    at, room = positions(lengths), np.repeat(lengths, lengths)
    padded = np.zeros(total + GRAM - 1, np.uint64)
    padded[:total] = ids.astype(np.uint64) + np.uint64(1)
    has_short = bool((lengths < GRAM).any())
    values = np.zeros(total, np.uint64)
    for offset in range(GRAM):
        token = padded[offset : offset + total]
        if has_short:
            token = np.where(at + offset < room, token, np.uint64(0))
        values = values * _MULTIPLIER + token
    first = np.flatnonzero(at <= np.maximum(room - GRAM, 0))
    return mixed(values[first]), first


def sketches(
    hashes: UInt64[np.ndarray, " g"], owners: Integer[np.ndarray, " g"], num_examples: int
) -> tuple[UInt16[np.ndarray, "r 32"], Bool[np.ndarray, " r"]]:
    """Return a sketch for each example, and whether it has one: whether it has any gram.

    Args:
        hashes: The hashes of grams.
        owners: The number of the example that each gram belongs to.
        num_examples: The number of examples.
    """
    flat = np.full(num_examples * BINS, _EMPTY, np.uint64)
    bins = (hashes >> np.uint64(64 - _BIN_BITS)).astype(np.int64)
    np.minimum.at(flat, owners.astype(np.int64) * BINS + bins, hashes)
    lowest = flat.reshape(num_examples, BINS)
    is_empty = lowest == _EMPTY
    _densify(lowest, is_empty)
    return (lowest & np.uint64(0xFFFF)).astype(np.uint16), ~is_empty.all(axis=1)


def similarity(
    sketch: UInt16[np.ndarray, "r 32"],
    first: Integer[np.ndarray, " p"],
    second: Integer[np.ndarray, " p"],
) -> np.ndarray:
    """Return the share of equal numbers in pairs of sketches, which estimates that of grams."""
    shares = np.empty(len(first), np.float32)
    for start in range(0, len(first), 65_536):
        part = slice(start, start + 65_536)
        shares[part] = (sketch[first[part]] == sketch[second[part]]).mean(axis=1)
    return shares


def candidates(
    sketch: UInt16[np.ndarray, "r 32"], num_old: int, least: float
) -> Int64[np.ndarray, "p 2"]:
    """Return pairs of examples with similar sketches, the earlier example first.

    Of the earlier examples that agree with an example in a band, only the first and the nearest are
    compared with it. So the work grows with the number of examples and not with its square.

    Args:
        sketch: The sketches of the examples.
        num_old: Each example from this number on is also compared with the nearest example before
            this number.
        least: The smallest share of equal numbers in the sketches of a pair.
    """
    found = np.empty(0, np.int64)
    num_examples = len(sketch)
    for keys in np.ascontiguousarray(sketch).view(np.uint64).T:
        order = np.argsort(keys, kind="stable")
        at = np.arange(num_examples)
        is_first = np.ones(num_examples, bool)
        is_first[1:] = keys[order[1:]] != keys[order[:-1]]
        first = np.maximum.accumulate(np.where(is_first, at, 0))
        old = np.maximum.accumulate(np.where(order < num_old, at, -1))
        for partner in (first, at - 1, np.minimum(old, at - 1)):
            chosen = np.flatnonzero((partner >= first) & (partner < at))
            pairs = np.unique(order[partner[chosen]] * num_examples + order[chosen])
            alike = similarity(sketch, pairs // num_examples, pairs % num_examples) >= least
            found = np.union1d(found, pairs[alike])
    return np.stack([found // num_examples, found % num_examples], axis=1)


def jaccard(one: UInt64[np.ndarray, " a"], other: UInt64[np.ndarray, " b"]) -> float:
    """Return the share of the grams of two examples that both have; 1 if neither has any."""
    one, other = np.unique(one), np.unique(other)
    shared = len(np.intersect1d(one, other, assume_unique=True))
    either = len(one) + len(other) - shared
    return shared / either if either else 1.0


def _sums(
    values: UInt64[np.ndarray, " t"], lengths: Integer[np.ndarray, " r"]
) -> UInt64[np.ndarray, " r"]:
    """Return the sum over each example, modulo 2^64."""
    before = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values, dtype=np.uint64)])
    stops = np.cumsum(lengths, dtype=np.int64)
    return before[stops] - before[stops - lengths]


def _densify(lowest: UInt64[np.ndarray, "r 32"], is_empty: Bool[np.ndarray, "r 32"]) -> None:
    """Fill empty bins from other bins of the same example. Each bin tries them in its own order."""
    examples, bins = np.nonzero(is_empty & ~is_empty.all(axis=1, keepdims=True))
    for step in range(BINS):
        if not len(examples):
            return
        source = _orders()[bins, step]
        is_full = ~is_empty[examples, source]
        lowest[examples[is_full], bins[is_full]] = lowest[examples[is_full], source[is_full]]
        examples, bins = examples[~is_full], bins[~is_full]


@functools.cache
def _orders() -> Int64[np.ndarray, "32 32"]:
    """Return a random order of all bins for each bin."""
    draws = np.random.Philox(key=0).random_raw(BINS * BINS).reshape(BINS, BINS)
    return np.argsort(draws, axis=1, kind="stable")
