"""Examples without any tokenizer, and what batches hold, as counts that can be compared."""

from __future__ import annotations

import collections

import numpy as np
from data_builders import make_encoding
from hypothesis import strategies as st

from jaxft.data.batches.batch import Batch
from jaxft.data.examples import chunk, encode
from jaxft.data.examples.cache import Fingerprint, StoredExamples
from jaxft.data.sources.source import RowSource, rows_of

Rows = list[tuple[list[int], list[int]]]

MAX_LENGTH = 24


@st.composite
def example_rows(draw, max_size: int = 12, first_token: int = 1) -> Rows:
    """Rows of which each token is unlike every other, so that any loss or repeat shows."""
    lengths = draw(st.lists(st.integers(2, MAX_LENGTH), min_size=1, max_size=max_size))
    rows, token = [], first_token
    for length in lengths:
        mask = draw(st.lists(st.integers(0, 1), min_size=length - 1, max_size=length - 1))
        mask[draw(st.integers(0, length - 2))] = 1
        rows.append((list(range(token, token + length)), [0, *mask]))
        token += length
    return rows


def uniform_rows(*lengths: int, first_token: int = 1) -> Rows:
    """Return a row of each length; row `n` has the token `first_token + n` throughout."""
    return [
        ([token] * length, [0] + [1] * (length - 1))
        for token, length in enumerate(lengths, start=first_token)
    ]


def make_source(rows: Rows, name: str = "made") -> RowSource:
    """Return rows of tokens as a source."""
    labels = [
        [token if supervised else -100 for token, supervised in zip(*row, strict=True)]
        for row in rows
    ]
    values = [{"input_ids": ids, "labels": own} for (ids, _), own in zip(rows, labels, strict=True)]
    return rows_of(values, name)


def make_examples(rows: Rows) -> encode.Examples:
    """Return examples of the given tokens and masks, in memory."""
    made = chunk.encode_chunk(list(make_source(rows)), make_encoding(None))
    digest = Fingerprint()
    for ids, mask in rows:
        digest.add(np.array(ids, np.int32), np.array(mask, np.uint8))
    report = made.tally.report(MAX_LENGTH)
    return encode.Examples(StoredExamples(*made[:4], report, digest.hexdigest(), (), ()))


def rows_seen(batches: list[Batch]) -> collections.Counter:
    """Count the segments of all batches as (tokens, positions, labels)."""
    seen: collections.Counter = collections.Counter()
    for batch in batches:
        names = ("input_ids", "positions", "labels", "segment_ids")
        flat = [batch[name].reshape(-1, batch[name].shape[-1]) for name in names]
        for ids, positions, labels, segments in zip(*flat, strict=True):
            for segment in range(1, segments.max() + 1):
                here = segments == segment
                key = tuple(tuple(array[here].tolist()) for array in (ids, positions, labels))
                seen[key] += 1
    return seen


def rows_expected(rows: Rows) -> collections.Counter:
    """Return the same of rows as they were written, by the definition of a label."""
    seen: collections.Counter = collections.Counter()
    for ids, mask in rows:
        following = zip(ids[1:], mask[1:], strict=True)
        labels = [token if supervised else -100 for token, supervised in following]
        seen[tuple(ids), tuple(range(len(ids))), (*labels, -100)] += 1
    return seen


def assert_equal(one: Batch, other: Batch) -> None:
    """Compare two batches array by array."""
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == np.int32
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def assert_parts_are_the_whole(batches, step: int) -> None:
    """Check that what 1, 2 and 4 processes get of a batch is all of it, in order."""
    whole = batches.batch(step)
    for num_processes in (1, 2, 4):
        parts = [batches.batch(step, each, num_processes) for each in range(num_processes)]
        joined = {name: np.concatenate([part[name] for part in parts], axis=1) for name in whole}
        assert_equal(joined, whole)
