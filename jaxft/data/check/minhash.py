"""Sketches of rows, by which those that are almost alike find each other without comparing all.

A sketch is 32 small numbers. Two rows of which nine tenths of the token 5-grams are the same have
some 29 of them in common, so they are found by sorting: rows that agree in four neighbouring
numbers are candidates, and `duplicates` compares the candidates' tokens.

Written here and not taken from a library: `datasketch` hashes one 5-gram at a time in Python, which
is 1 million tokens a second on one core; this makes 15 million. Each 5-gram is hashed once and
fights for one of the 32 numbers (one permutation hashing), and a number that no 5-gram fell on is
borrowed from another (optimal densification).

Source: Li, Owen and Zhang 2012, "One permutation hashing"; Shrivastava 2017, "Optimal densification
for fast and accurate minwise hashing"; Li and König 2010, "b-bit minwise hashing".
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Bool, Int32, Int64, Integer, UInt16, UInt64

# Tokens in a gram: long enough that two unrelated texts of one language share few.
GRAM = 5
# Numbers in a sketch. Four of them side by side are a band, looked up as one 64-bit number. Rows
# that agree in a band are candidates: 1 - (1 - 0.8^4)^8 = 98.5 % of rows that are 80 % alike, and
# 99.98 % of those that are 90 % alike.
BINS = 32

_BIN_BITS = 5
_EMPTY = np.uint64(2**64 - 1)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def mixed(values: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """Return numbers whose bits all depend on all bits of the given ones.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"
    (SplitMix64, its last three lines).
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def positions(lengths: Integer[np.ndarray, " r"]) -> Int64[np.ndarray, " t"]:
    """Return each token's position in its own row, for rows that lie end to end."""
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    return np.arange(int(lengths.sum())) - np.repeat(starts, lengths)


def row_hashes(
    ids: Int32[np.ndarray, " t"], lengths: Integer[np.ndarray, " r"]
) -> UInt64[np.ndarray, " r"]:
    """Return one number a row; equal rows have equal ones, and others practically never have.

    Args:
        ids: The tokens of rows, end to end.
        lengths: Tokens in each row.
    """
    at = positions(lengths).astype(np.uint64)
    values = mixed((ids.astype(np.uint64) + np.uint64(1)) * _MULTIPLIER + mixed(at))
    return _sums(values, lengths)


def grams(
    ids: Int32[np.ndarray, " t"], lengths: Integer[np.ndarray, " r"]
) -> tuple[UInt64[np.ndarray, " g"], Int64[np.ndarray, " g"]]:
    """Return a number for every 5-gram, and the position in `ids` at which it begins.

    A row of fewer than five tokens is one gram.
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
    hashes: UInt64[np.ndarray, " g"], owners: Integer[np.ndarray, " g"], num_rows: int
) -> tuple[UInt16[np.ndarray, "r 32"], Bool[np.ndarray, " r"]]:
    """Return a sketch of each row, and which rows have one: those with a gram at all.

    Args:
        hashes: The grams of rows.
        owners: The row that each belongs to, from 0.
        num_rows: How many rows there are.
    """
    flat = np.full(num_rows * BINS, _EMPTY, np.uint64)
    bins = (hashes >> np.uint64(64 - _BIN_BITS)).astype(np.int64)
    np.minimum.at(flat, owners.astype(np.int64) * BINS + bins, hashes)
    lowest = flat.reshape(num_rows, BINS)
    is_empty = lowest == _EMPTY
    _densify(lowest, is_empty)
    return (lowest & np.uint64(0xFFFF)).astype(np.uint16), ~is_empty.all(axis=1)


def similarity(
    sketch: UInt16[np.ndarray, "r 32"],
    first: Integer[np.ndarray, " p"],
    second: Integer[np.ndarray, " p"],
) -> np.ndarray:
    """Return about how alike pairs of rows are, from 0 to 1: the share of numbers that agree."""
    shares = np.empty(len(first), np.float32)
    for start in range(0, len(first), 65_536):
        part = slice(start, start + 65_536)
        shares[part] = (sketch[first[part]] == sketch[second[part]]).mean(axis=1)
    return shares


def candidates(
    sketch: UInt16[np.ndarray, "r 32"], num_old: int, least: float
) -> Int64[np.ndarray, "p 2"]:
    """Return pairs of rows that seem alike, the earlier one first.

    Each row is compared with the first and the nearest earlier row of those that agree with it in a
    band, so the work grows with the number of rows and not with its square.

    Args:
        sketch: The sketches of rows.
        num_old: The rows from this one on are also compared with the nearest of those before it.
        least: How alike the sketches are at least.
    """
    found = np.empty(0, np.int64)
    num_rows = len(sketch)
    for keys in np.ascontiguousarray(sketch).view(np.uint64).T:
        order = np.argsort(keys, kind="stable")
        place = np.arange(num_rows)
        is_first = np.ones(num_rows, bool)
        is_first[1:] = keys[order[1:]] != keys[order[:-1]]
        first = np.maximum.accumulate(np.where(is_first, place, 0))
        old = np.maximum.accumulate(np.where(order < num_old, place, -1))
        for partner in (first, place - 1, np.minimum(old, place - 1)):
            chosen = np.flatnonzero((partner >= first) & (partner < place))
            pairs = np.unique(order[partner[chosen]] * num_rows + order[chosen])
            alike = similarity(sketch, pairs // num_rows, pairs % num_rows) >= least
            found = np.union1d(found, pairs[alike])
    return np.stack([found // num_rows, found % num_rows], axis=1)


def jaccard(one: UInt64[np.ndarray, " a"], other: UInt64[np.ndarray, " b"]) -> float:
    """Return the share of the grams of either row that both have; 1 where neither has any."""
    one, other = np.unique(one), np.unique(other)
    shared = len(np.intersect1d(one, other, assume_unique=True))
    either = len(one) + len(other) - shared
    return shared / either if either else 1.0


def _sums(
    values: UInt64[np.ndarray, " t"], lengths: Integer[np.ndarray, " r"]
) -> UInt64[np.ndarray, " r"]:
    """Return the sum over each row, modulo 2^64."""
    before = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values, dtype=np.uint64)])
    stops = np.cumsum(lengths, dtype=np.int64)
    return before[stops] - before[stops - lengths]


def _densify(lowest: UInt64[np.ndarray, "r 32"], is_empty: Bool[np.ndarray, "r 32"]) -> None:
    """Fill empty bins from others of the same row, in an order of each bin's own."""
    rows, bins = np.nonzero(is_empty & ~is_empty.all(axis=1, keepdims=True))
    for step in range(BINS):
        if not len(rows):
            return
        source = _orders()[bins, step]
        is_full = ~is_empty[rows, source]
        lowest[rows[is_full], bins[is_full]] = lowest[rows[is_full], source[is_full]]
        rows, bins = rows[~is_full], bins[~is_full]


@functools.cache
def _orders() -> Int64[np.ndarray, "32 32"]:
    """Return, for each bin, all bins in an order drawn for it."""
    draws = np.random.Philox(key=0).random_raw(BINS * BINS).reshape(BINS, BINS)
    return np.argsort(draws, axis=1, kind="stable")
