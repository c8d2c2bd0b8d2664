from __future__ import annotations

import gc
import threading
import time

import hypothesis
import numpy as np
import pytest
from batch_builders import (
    MAX_LENGTH,
    assert_equal,
    assert_parts_are_the_whole,
    example_rows,
    make_examples,
    rows_expected,
    rows_seen,
    uniform_rows,
)
from hypothesis import strategies as st

from jaxft.data.batches import loader
from jaxft.data.batches.batch import Batch, Feed
from jaxft.data.batches.loader import PlannedBatches
from jaxft.errors import ConfigError, DataError


def plan_of(*sources, **changes) -> PlannedBatches:
    options = {
        "weights": None,
        "max_length": MAX_LENGTH,
        "packing": True,
        "group_by_length": False,
        "shuffle": True,
        "seed": 0,
        "global_batch": 4,
        "accumulation": 1,
        "shards": 1,
        "drop_last": False,
    }
    return loader.make_batches([make_examples(rows) for rows in sources], **(options | changes))


def epoch(batches: PlannedBatches, number: int = 0) -> list[Batch]:
    start = number * batches.steps_per_epoch
    return [batches.batch(start + index) for index in range(batches.steps_per_epoch)]


def firsts(batch: Batch) -> list[int]:
    """Return the first token of each sequence."""
    return batch["input_ids"][..., 0].ravel().tolist()


PACKING_AND_GROUPING = st.sampled_from([(True, False), (False, True), (False, False)])


@hypothesis.given(
    rows=example_rows(),
    packing_and_grouping=PACKING_AND_GROUPING,
    shuffle=st.booleans(),
    seed=st.integers(0, 9),
    number=st.integers(0, 3),
    global_batch=st.integers(1, 5),
)
def test_an_epoch_has_each_row_once_with_its_labels(
    rows, packing_and_grouping, shuffle, seed, number, global_batch
):
    packing, grouping = packing_and_grouping
    batches = plan_of(
        rows,
        packing=packing,
        group_by_length=grouping,
        shuffle=shuffle,
        seed=seed,
        global_batch=global_batch,
    )
    assert rows_seen(epoch(batches, number)) == rows_expected(rows)


@hypothesis.given(
    rows=example_rows(),
    others=example_rows(first_token=1000),
    packing=st.booleans(),
    number=st.integers(0, 2),
)
def test_without_weights_each_row_of_each_source_comes_once_and_sources_share_no_sequence(
    rows, others, packing, number
):
    batches = epoch(plan_of(rows, others, packing=packing), number)
    assert rows_seen(batches) == rows_expected(rows + others)
    for batch in batches:
        is_other = batch["input_ids"] >= 1000
        is_row = (batch["segment_ids"] > 0) & ~is_other
        assert not (is_other.any(-1) & is_row.any(-1)).any()


@hypothesis.given(rows=example_rows(), packing_and_grouping=PACKING_AND_GROUPING)
def test_padding_is_empty_in_every_array(rows, packing_and_grouping):
    packing, grouping = packing_and_grouping
    for batch in epoch(plan_of(rows, packing=packing, group_by_length=grouping)):
        padding = batch["segment_ids"] == 0
        assert not batch["input_ids"][padding].any()
        assert not batch["positions"][padding].any()
        assert (batch["labels"][padding] == -100).all()


@hypothesis.given(
    rows=example_rows(),
    packing_and_grouping=PACKING_AND_GROUPING,
    accumulation=st.sampled_from([1, 2, 4]),
    shards=st.sampled_from([1, 2]),
    step=st.integers(0, 20),
)
def test_cutting_a_global_batch_changes_nothing_in_it(
    rows, packing_and_grouping, accumulation, shards, step
):
    packing, grouping = packing_and_grouping
    options = {"packing": packing, "group_by_length": grouping, "global_batch": 8}
    whole = plan_of(rows, **options).batch(step)
    cut = plan_of(rows, **options, accumulation=accumulation, shards=shards).batch(step)
    assert cut["row_ids"].tolist() == np.arange(8).reshape(accumulation, -1).tolist()
    for name, array in cut.items():
        assert array.shape[:2] == (accumulation, 8 // accumulation)
        np.testing.assert_array_equal(array.reshape(whole[name].shape), whole[name])


@hypothesis.given(
    rows=example_rows(),
    packing_and_grouping=PACKING_AND_GROUPING,
    accumulation=st.sampled_from([1, 2]),
    step=st.integers(0, 20),
)
def test_what_processes_get_is_the_whole_batch(rows, packing_and_grouping, accumulation, step):
    packing, grouping = packing_and_grouping
    options = {"packing": packing, "group_by_length": grouping}
    batches = plan_of(rows, **options, global_batch=8, accumulation=accumulation, shards=4)
    assert_parts_are_the_whole(batches, step)


def test_a_micro_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(ConfigError, match="4 sequences cannot be divided evenly over 3 processes"):
        plan_of(uniform_rows(2)).batch(0, process=0, num_processes=3)


@hypothesis.given(
    rows=example_rows(),
    others=example_rows(),
    weights=st.sampled_from([None, [1.0, 1.0], [7.0, 1.0]]),
    grouping=st.booleans(),
    steps=st.lists(st.integers(0, 30), min_size=2, max_size=3),
)
def test_a_batch_does_not_depend_on_what_was_asked_before(rows, others, weights, grouping, steps):
    hypothesis.assume(weights is None or len(rows) + len(others) > 8)
    options = {"weights": weights, "packing": False, "group_by_length": grouping}
    asked = plan_of(rows, others, **options)
    for step in steps:
        assert_equal(asked.batch(step), plan_of(rows, others, **options).batch(step))


@hypothesis.given(
    rows=example_rows(),
    others=example_rows(max_size=3),
    packing_and_grouping=PACKING_AND_GROUPING,
    weights=st.sampled_from([None, [1.0, 1.0], [1.0, 2.0], [1.0, 6.0]]),
    accumulation=st.sampled_from([1, 2]),
    shards=st.sampled_from([1, 2, 4]),
)
def test_no_shard_of_a_micro_batch_has_more_targets_than_its_capacity(
    rows, others, packing_and_grouping, weights, accumulation, shards
):
    packing, grouping = packing_and_grouping
    hypothesis.assume(weights is None or len(rows) + len(others) > 8)
    hypothesis.assume(weights is None or not packing)
    batches = plan_of(
        rows,
        others,
        packing=packing,
        group_by_length=grouping,
        weights=weights,
        global_batch=8,
        accumulation=accumulation,
        shards=shards,
    )
    assert batches.target_capacity <= 8 // (accumulation * shards) * batches.sequence_length
    for number in range(3):
        for batch in epoch(batches, number):
            labels = batch["labels"].reshape(accumulation, shards, -1)
            assert ((labels != -100).sum(-1) <= batches.target_capacity).all()


def test_the_target_capacity_is_the_richest_sequences_rounded_up():
    rows = [([1] * 24, [0] + [1] * count + [0] * (23 - count)) for count in range(1, 23)]
    capacities = [
        plan_of(rows * 4, packing=False, global_batch=2 * sequences, shards=2).target_capacity
        for sequences in (1, 5, 6, 20)
    ]
    # Targets: 22, 109, 130, 400. Rounded up: 128, 128, 256, 512. Tokens: 24, 120, 144, 480.
    assert capacities == [24, 120, 144, 480]
    tens = [([1] * 24, [0] + [1] * 10 + [0] * 13)] * 40
    assert plan_of(tens, packing=False, global_batch=32, shards=2).target_capacity == 256


def test_a_source_that_is_repeated_within_an_epoch_brings_its_richest_rows_again():
    rich = [([1] * 200, [0] + [1] * 199)]
    poor = [([2] * 200, [0] + [1] * 5 + [0] * 194)] * 19
    options = {"packing": False, "max_length": 200, "global_batch": 4}
    once = plan_of(rich, poor, **options)
    again = plan_of(rich, poor, weights=[1.0, 1.0], **options)
    assert once.target_capacity == 256  # 199 + 3 * 5, rounded up
    assert again.target_capacity == 800  # 4 * 199, rounded up, but no more than all tokens


@hypothesis.given(rows=example_rows(), start=st.integers(0, 7), count=st.integers(0, 5))
def test_iterating_from_a_step_gives_what_the_steps_give(rows, start, count):
    batches = plan_of(rows)
    seen = list(batches.iterate(start, count))
    assert [step for step, _ in seen] == list(range(start, start + count))
    for step, batch in seen:
        assert_equal(batch, batches.batch(step))


def test_iterating_as_one_of_two_processes_gives_its_part():
    batches = plan_of(uniform_rows(*[20] * 8))
    for step, batch in batches.iterate(0, 2, process=1, num_processes=2):
        assert_equal(batch, batches.batch(step, 1, 2))


def test_iterating_may_be_left_early():
    batches = plan_of([([1, 2], [0, 1])] * 9)
    for step, _ in batches.iterate(0, 1000):
        if step == 3:
            break
    assert step == 3
    gc.collect()
    deadline = time.monotonic() + 10
    while any("grain" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "threads are left behind"
        time.sleep(0.01)


def test_a_feed_counts_the_time_spent_waiting_and_not_the_time_between():
    def slow():
        for step in range(3):
            time.sleep(0.05)
            yield step, {}

    feed = Feed(slow())
    assert (feed.waited_s, feed.total_s) == (0, 0)
    for _ in feed:
        time.sleep(0.1)
    assert feed.waited_s >= 0.15
    assert feed.total_s - feed.waited_s >= 0.3


def test_epochs_have_orders_of_their_own():
    rows = uniform_rows(*[20] * 40)
    one, other = plan_of(rows), plan_of(rows, seed=1)
    assert firsts(one.batch(0)) != firsts(other.batch(0))
    assert firsts(one.batch(0)) != firsts(one.batch(one.steps_per_epoch))


def test_without_shuffling_and_packing_batches_are_the_rows_in_order():
    batches = plan_of(uniform_rows(*[2] * 6), packing=False, shuffle=False)
    seen = [firsts(batches.batch(step)) for step in range(4)]
    assert seen == [[1, 2, 3, 4], [5, 6, 0, 0], [1, 2, 3, 4], [5, 6, 0, 0]]


def test_packed_rows_lie_end_to_end():
    rows = [([1, 2, 3], [0, 0, 1]), ([4, 5], [0, 1])]
    batch = plan_of(rows, global_batch=1).batch(0)
    assert {name: array[0, 0].tolist() for name, array in batch.items()} == {
        "input_ids": [1, 2, 3, 4, 5, 0, 0, 0],
        "segment_ids": [1, 1, 1, 2, 2, 0, 0, 0],
        "positions": [0, 1, 2, 0, 1, 0, 0, 0],
        "labels": [-100, 3, -100, 5, -100, -100, -100, -100],
        "row_ids": 0,
    }


@pytest.mark.parametrize(
    ("lengths", "packing", "expected_length"),
    [([3, 9], False, 16), ([3, 9], True, 16), ([24, 1 + 1], True, 24), ([23], False, 24)],
)
def test_sequences_are_as_long_as_the_longest_rounded_up(lengths, packing, expected_length):
    rows = uniform_rows(*lengths)
    assert plan_of(rows, packing=packing).sequence_length == expected_length
    wide = plan_of(rows, packing=packing, max_length=50)
    assert wide.sequence_length in (expected_length, 32)


def test_sequences_are_never_longer_than_the_maximum():
    assert plan_of(uniform_rows(21), max_length=21).sequence_length == 21


def test_dropping_the_last_batch_leaves_only_full_ones():
    rows = uniform_rows(*[20] * 10)
    batches = plan_of(rows, drop_last=True)
    assert batches.steps_per_epoch == 2
    assert all((batch["segment_ids"][..., 0] == 1).all() for batch in epoch(batches))
    assert plan_of(rows).steps_per_epoch == 3
    assert plan_of(rows[:8]).steps_per_epoch == 2


def test_a_plan_without_a_single_batch_is_refused():
    with pytest.raises(DataError, match="1 sequences do not fill one global batch of 4"):
        plan_of([([1, 2], [0, 1])], drop_last=True)


def test_a_global_batch_that_cannot_be_cut_is_refused():
    with pytest.raises(ConfigError, match="cannot be cut evenly") as caught:
        plan_of([([1, 2], [0, 1])], global_batch=6, accumulation=2, shards=2)
    assert caught.value.remedy == "Make it a multiple of 4."


def test_the_fill_is_the_share_of_tokens_that_are_not_padding():
    assert plan_of([([1] * 12, [0] + [1] * 11)] * 3).fill == 36 / 48


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"packing": False},
        {"shuffle": False},
        {"max_length": 30},
        {"weights": [1.0, 1.0]},
        {"weights": [2.0, 1.0]},
        {"packing": False, "group_by_length": True},
        {"drop_last": True},
    ],
)
def test_the_fingerprint_tells_plans_apart(changes):
    rows, others = uniform_rows(*[20] * 5), uniform_rows(*[20] * 5, first_token=50)
    one = plan_of(rows, others)
    assert plan_of(rows, others, **changes).fingerprint != one.fingerprint
    assert plan_of(others, rows).fingerprint != one.fingerprint
    assert plan_of(rows, others, global_batch=2, accumulation=2).fingerprint == one.fingerprint
