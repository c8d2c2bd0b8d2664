from __future__ import annotations

import collections
import gc
import threading
import time

import hypothesis
import numpy as np
import pytest
from data_builders import make_examples
from hypothesis import strategies as st

from jaxft.data import loader
from jaxft.errors import ConfigError, DataError

MAX_LENGTH = 24


@st.composite
def example_rows(draw):
    """Rows of which each token is unlike every other, so that any loss or repeat shows."""
    lengths = draw(st.lists(st.integers(2, MAX_LENGTH), min_size=1, max_size=12))
    rows, token = [], 1
    for length in lengths:
        mask = draw(st.lists(st.integers(0, 1), min_size=length - 1, max_size=length - 1))
        mask[draw(st.integers(0, length - 2))] = 1
        rows.append((list(range(token, token + length)), [0, *mask]))
        token += length
    return rows


def plan(rows, **changes) -> loader.Batches:
    options = {
        "max_length": MAX_LENGTH,
        "packing": True,
        "shuffle": True,
        "seed": 0,
        "global_batch": 4,
        "accumulation": 1,
        "shards": 1,
        "drop_last": False,
    }
    return loader.make_batches(make_examples(rows), **(options | changes))


def epoch(batches: loader.Batches, number: int = 0) -> list[loader.Batch]:
    start = number * batches.steps_per_epoch
    return [batches.batch(start + index) for index in range(batches.steps_per_epoch)]


def rows_seen(batches: list[loader.Batch]) -> collections.Counter:
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


def expected(rows) -> collections.Counter:
    """Return the same of rows as they were written, by the definition of a label."""
    seen: collections.Counter = collections.Counter()
    for ids, mask in rows:
        following = zip(ids[1:], mask[1:], strict=True)
        labels = [token if learned else -100 for token, learned in following]
        seen[tuple(ids), tuple(range(len(ids))), (*labels, -100)] += 1
    return seen


@hypothesis.given(
    rows=example_rows(),
    packing=st.booleans(),
    shuffle=st.booleans(),
    seed=st.integers(0, 9),
    number=st.integers(0, 3),
    global_batch=st.integers(1, 5),
)
def test_an_epoch_has_each_row_once_with_its_labels(
    rows, packing, shuffle, seed, number, global_batch
):
    batches = plan(rows, packing=packing, shuffle=shuffle, seed=seed, global_batch=global_batch)
    assert rows_seen(epoch(batches, number)) == expected(rows)


@hypothesis.given(rows=example_rows())
def test_padding_is_empty_in_every_array(rows):
    for batch in epoch(plan(rows)):
        padding = batch["segment_ids"] == 0
        assert not batch["input_ids"][padding].any()
        assert not batch["positions"][padding].any()
        assert (batch["labels"][padding] == -100).all()


@hypothesis.given(
    rows=example_rows(),
    packing=st.booleans(),
    accumulation=st.sampled_from([1, 2, 4]),
    shards=st.sampled_from([1, 2]),
    step=st.integers(0, 20),
)
def test_cutting_a_global_batch_changes_nothing_in_it(rows, packing, accumulation, shards, step):
    whole = plan(rows, packing=packing, global_batch=8).batch(step)
    cut = plan(
        rows, packing=packing, global_batch=8, accumulation=accumulation, shards=shards
    ).batch(step)
    assert cut["rows"].tolist() == np.arange(8).reshape(accumulation, -1).tolist()
    for name, array in cut.items():
        assert array.dtype == np.int32
        assert array.shape[:2] == (accumulation, 8 // accumulation)
        np.testing.assert_array_equal(array.reshape(whole[name].shape), whole[name])


@hypothesis.given(
    rows=example_rows(),
    packing=st.booleans(),
    accumulation=st.sampled_from([1, 2]),
    shards=st.sampled_from([1, 2, 4]),
)
def test_no_shard_of_a_micro_batch_has_more_targets_than_its_capacity(
    rows, packing, accumulation, shards
):
    batches = plan(rows, packing=packing, global_batch=8, accumulation=accumulation, shards=shards)
    assert batches.target_capacity <= 8 // (accumulation * shards) * batches.sequence_length
    for number in range(3):
        for batch in epoch(batches, number):
            labels = batch["labels"].reshape(accumulation, shards, -1)
            assert ((labels != -100).sum(-1) <= batches.target_capacity).all()


def test_the_target_capacity_is_the_richest_sequences_rounded_up():
    rows = [([1] * 24, [0] + [1] * count + [0] * (23 - count)) for count in range(1, 23)]
    capacities = [
        plan(rows * 4, packing=False, global_batch=2 * sequences, shards=2).target_capacity
        for sequences in (1, 5, 6, 20)
    ]
    # Targets: 22, 109, 130, 400. Rounded up: 128, 128, 256, 512. Tokens: 24, 120, 144, 480.
    assert capacities == [24, 120, 144, 480]
    tens = [([1] * 24, [0] + [1] * 10 + [0] * 13)] * 40
    assert plan(tens, packing=False, global_batch=32, shards=2).target_capacity == 256


@hypothesis.given(rows=example_rows(), start=st.integers(0, 7), count=st.integers(0, 5))
def test_iterating_from_a_step_gives_what_the_steps_give(rows, start, count):
    batches = plan(rows)
    seen = list(batches.iterate(start, count))
    assert [step for step, _ in seen] == list(range(start, start + count))
    for step, batch in seen:
        for name, array in batches.batch(step).items():
            np.testing.assert_array_equal(batch[name], array)


def test_iterating_may_be_left_early():
    batches = plan([([1, 2], [0, 1])] * 9)
    for step, _ in batches.iterate(0, 1000):
        if step == 3:
            break
    assert step == 3
    gc.collect()
    deadline = time.monotonic() + 10
    while any("grain" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "threads are left behind"
        time.sleep(0.01)


def test_epochs_have_orders_of_their_own():
    rows = [([index + 1] * 20, [0] + [1] * 19) for index in range(40)]
    first = [plan(rows, seed=seed).batch(0)["input_ids"][0, :, 0].tolist() for seed in (0, 1)]
    batches = plan(rows)
    second = batches.batch(batches.steps_per_epoch)["input_ids"][0, :, 0].tolist()
    assert first[0] != first[1]
    assert first[0] != second


def test_without_shuffling_and_packing_batches_are_the_rows_in_order():
    rows = [([index + 1, index + 1], [0, 1]) for index in range(6)]
    batches = plan(rows, packing=False, shuffle=False)
    firsts = [batches.batch(step)["input_ids"][0, :, 0].tolist() for step in range(4)]
    assert firsts == [[1, 2, 3, 4], [5, 6, 0, 0], [1, 2, 3, 4], [5, 6, 0, 0]]


def test_packed_rows_lie_end_to_end():
    rows = [([1, 2, 3], [0, 0, 1]), ([4, 5], [0, 1])]
    batch = plan(rows, global_batch=1).batch(0)
    assert {name: array[0, 0].tolist() for name, array in batch.items()} == {
        "input_ids": [1, 2, 3, 4, 5, 0, 0, 0],
        "segment_ids": [1, 1, 1, 2, 2, 0, 0, 0],
        "positions": [0, 1, 2, 0, 1, 0, 0, 0],
        "labels": [-100, 3, -100, 5, -100, -100, -100, -100],
        "rows": 0,
    }


@pytest.mark.parametrize(
    ("lengths", "packing", "expected_length"),
    [([3, 9], False, 16), ([3, 9], True, 16), ([24, 1 + 1], True, 24), ([23], False, 24)],
)
def test_sequences_are_as_long_as_the_longest_rounded_up(lengths, packing, expected_length):
    rows = [([1] * length, [0] + [1] * (length - 1)) for length in lengths]
    assert plan(rows, packing=packing).sequence_length == expected_length
    assert plan(rows, packing=packing, max_length=50).sequence_length in (expected_length, 32)


def test_sequences_are_never_longer_than_the_maximum():
    assert plan([([1] * 21, [0] + [1] * 20)], max_length=21).sequence_length == 21


def test_dropping_the_last_batch_leaves_only_full_ones():
    rows = [([index + 1] * 20, [0] + [1] * 19) for index in range(10)]
    batches = plan(rows, drop_last=True)
    assert batches.steps_per_epoch == 2
    assert all((batch["segment_ids"][..., 0] == 1).all() for batch in epoch(batches))
    assert plan(rows).steps_per_epoch == 3
    assert plan(rows[:8]).steps_per_epoch == 2


def test_a_plan_without_a_single_batch_is_refused():
    with pytest.raises(DataError, match="1 sequences do not fill one global batch of 4"):
        plan([([1, 2], [0, 1])], drop_last=True)


def test_a_global_batch_that_cannot_be_cut_is_refused():
    with pytest.raises(ConfigError, match="cannot be cut evenly") as caught:
        plan([([1, 2], [0, 1])], global_batch=6, accumulation=2, shards=2)
    assert caught.value.remedy == "Make it a multiple of 4."


def test_the_fill_is_the_share_of_tokens_that_are_not_padding():
    assert plan([([1] * 12, [0] + [1] * 11)] * 3).fill == 36 / 48
