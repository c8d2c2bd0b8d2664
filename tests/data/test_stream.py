from __future__ import annotations

import collections
import itertools
import json
import tracemalloc
from concurrent.futures import Future

import hypothesis
import numpy as np
import pytest
from batch_builders import (
    MAX_LENGTH,
    assert_equal,
    assert_parts_are_the_whole,
    example_rows,
    make_source,
    rows_expected,
    rows_seen,
    uniform_rows,
)
from data_builders import make_encoding, make_tokenizer
from hypothesis import strategies as st

from jaxft.config import SourceConfig
from jaxft.data.batches import stream
from jaxft.data.batches.journal import START, Journal, Mark
from jaxft.data.batches.stream import StreamBatches
from jaxft.data.examples import chunk
from jaxft.data.sources.source import RowSource, open_rows, rows_of
from jaxft.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _properties_need_no_threads(request, monkeypatch):
    """Encode at once what is encoded ahead.

    What checks types draws random numbers, and a thread that does so while hypothesis draws the
    next example disturbs it.
    """
    if getattr(request.function, "is_hypothesis_test", False):
        monkeypatch.setattr(stream, "ThreadPoolExecutor", InTurn)


class InTurn:
    """An executor without threads."""

    def __init__(self, *_, **__):
        pass

    def submit(self, function, *arguments) -> Future:
        future: Future = Future()
        try:
            future.set_result(function(*arguments))
        except DataError as error:
            future.set_exception(error)
        return future


def stream_of(*rows, encoding=None, **changes) -> StreamBatches:
    """Return the batches of sources, each given as rows of tokens or as a RowSource."""
    options = {
        "max_length": MAX_LENGTH,
        "packing": True,
        "shuffle": True,
        "shuffle_buffer": 4,
        "seed": 0,
        "global_batch": 4,
        "accumulation": 1,
        "shards": 1,
        "vocab_size": 10_000,
        "journal": None,
    } | changes
    found = [each if isinstance(each, RowSource) else make_source(each) for each in rows]
    own = encoding or make_encoding(None, max_length=options["max_length"])
    return stream.make_stream(found, [own] * len(found), **options)


def blocks_of(rows, size) -> list:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


STREAMS = {
    "rows": example_rows(max_size=10),
    "packing": st.booleans(),
    "shuffle": st.booleans(),
    "shuffle_buffer": st.integers(1, 12),
}


@hypothesis.given(**STREAMS, num_passes=st.integers(1, 3), seed=st.integers(0, 9))
def test_every_pass_has_each_row_once_with_its_labels(rows, num_passes, **options):
    one_by_one = stream_of(rows, **options, global_batch=1)
    seen: collections.Counter = collections.Counter()
    wanted = collections.Counter()
    step = 0
    for _ in range(num_passes):
        # Nothing of the next pass comes before the last row of this one.
        wanted += rows_expected(rows)
        while seen.total() < wanted.total():
            seen += rows_seen([one_by_one.batch(step)])
            step += 1
        assert seen == wanted


@hypothesis.given(**STREAMS)
def test_a_block_is_seen_before_the_next_one(rows, **options):
    batches = stream_of(rows, **options, global_batch=1)
    step = 0
    for block in blocks_of(rows, options["shuffle_buffer"]):
        seen: collections.Counter = collections.Counter()
        while seen.total() < len(block):
            seen += rows_seen([batches.batch(step)])
            step += 1
        assert seen == rows_expected(block)


@hypothesis.given(**STREAMS, global_batch=st.integers(2, 6))
@hypothesis.settings(max_examples=30)
def test_batches_are_the_sequences_in_order_without_a_gap(rows, global_batch, **options):
    many = stream_of(rows, **options, global_batch=global_batch)
    single = stream_of(rows, **options, global_batch=1)
    for step in range(3):
        batch = many.batch(step)
        assert (batch["segment_ids"][..., 0] == 1).all()
        for row in range(global_batch):
            of_one = single.batch(step * global_batch + row)
            for name in ("input_ids", "labels", "positions", "segment_ids"):
                np.testing.assert_array_equal(batch[name][:, row], of_one[name][:, 0])


@hypothesis.given(
    **STREAMS,
    steps=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    has_journal=st.booleans(),
)
@hypothesis.settings(max_examples=30)
def test_a_batch_does_not_depend_on_what_was_asked_before(
    rows, steps, has_journal, tmp_path_factory, **options
):
    journal = tmp_path_factory.mktemp("run") / "stream.jsonl" if has_journal else None
    straight = stream_of(rows, **options)
    expected = [straight.batch(step) for step in range(7)]
    asked = stream_of(rows, **options, journal=journal)
    for step in steps:
        assert_equal(asked.batch(step), expected[step])
    resumed = stream_of(rows, **options, journal=journal)
    for step in steps:
        assert_equal(resumed.batch(step), expected[step])


@hypothesis.given(**STREAMS, accumulation=st.sampled_from([1, 2]), step=st.integers(0, 5))
@hypothesis.settings(max_examples=30)
def test_what_processes_and_micro_batches_get_is_the_whole_batch(
    rows, accumulation, step, **options
):
    batches = stream_of(rows, **options, global_batch=8, accumulation=accumulation, shards=4)
    assert_parts_are_the_whole(batches, step)
    whole = stream_of(rows, **options, global_batch=8).batch(step)
    for name, array in batches.batch(step).items():
        np.testing.assert_array_equal(array.reshape(whole[name].shape), whole[name])


def test_a_resumed_stream_encodes_nothing_that_was_seen(tmp_path, monkeypatch):
    rows = uniform_rows(*[10] * 60)
    journal = tmp_path / "run" / "stream.jsonl"
    straight = [stream_of(rows, packing=False).batch(step) for step in range(14)]
    first = stream_of(rows, packing=False, journal=journal)
    for step in range(13):
        first.batch(step)
    encoded: list[int] = []
    encode = chunk.encode_chunk

    def counting(rows, encoding):
        encoded.append(len(rows))
        return encode(rows, encoding)

    monkeypatch.setattr(chunk, "encode_chunk", counting)
    resumed = stream_of(rows, packing=False, journal=journal)
    assert_equal(resumed.batch(13), straight[13])
    # Blocks of 4 rows: the last one noted, that of step 13, and the one ahead.
    assert sum(encoded) <= 12


def test_the_journal_says_where_blocks_begin(tmp_path):
    path = tmp_path / "stream.jsonl"
    batches = stream_of(uniform_rows(*[10] * 6), packing=False, journal=path)
    for step in range(3):
        batches.batch(step)
    head, *lines = map(json.loads, path.read_text().splitlines())
    assert head == {"stream": batches.fingerprint}
    # Blocks of 4 rows, and 2 at the end of each pass.
    assert [tuple(line.values()) for line in lines] == [
        (0, 0, 0, 0),
        (1, 0, 4, 4),
        (2, 1, 0, 6),
        (3, 1, 4, 10),
    ]


@hypothesis.given(num_marks=st.integers(0, 6), cut=st.integers(0, 400), noted=st.integers(0, 8))
def test_a_journal_that_was_cut_anywhere_goes_on_from_what_is_whole(
    num_marks, cut, noted, tmp_path_factory
):
    path = tmp_path_factory.mktemp("run") / "stream.jsonl"
    marks = [Mark(n, 0, 10 * n, 3 * n) for n in range(9)]
    whole = Journal(path, "a")
    for mark in marks[:num_marks]:
        whole.note(mark)
    if path.exists():
        path.write_bytes(path.read_bytes()[:cut])
    found = Journal(path, "a")
    latest = found.find(1000)
    assert latest in [START, *marks[:num_marks]]
    for mark in marks[: max(latest.block, noted) + 1]:
        found.note(mark)
    again = Journal(path, "a")
    for sequence in range(30):
        last = min(sequence // 3, max(latest.block, noted))
        assert again.find(sequence) == found.find(sequence) == marks[last]


def test_a_journal_is_not_believed_from_a_missing_line_on(tmp_path):
    path = tmp_path / "stream.jsonl"
    journal = Journal(path, "a")
    for number in range(5):
        journal.note(Mark(number, 0, 10 * number, 3 * number))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3] + lines[4:]))
    assert Journal(path, "a").find(100) == Mark(1, 0, 10, 3)


def test_the_journal_of_another_stream_is_written_over(tmp_path):
    path = tmp_path / "stream.jsonl"
    Journal(path, "a").note(START)
    Journal(path, "a").note(Mark(1, 0, 5, 2))
    other = Journal(path, "b")
    assert other.find(100) == START
    other.note(START)
    assert len(path.read_text().splitlines()) == 2
    assert Journal(path, "a").find(100) == START


def test_a_journal_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"The journal of the stream, .*/s\.jsonl, cannot be"):
        stream_of(uniform_rows(4), journal=tmp_path / "file" / "s.jsonl").batch(0)


def test_iterating_gives_what_the_steps_give():
    rows = uniform_rows(*range(2, 20))
    expected = stream_of(rows)
    for step, batch in stream_of(rows).iterate(2, 6):
        assert_equal(batch, expected.batch(step))


def test_an_error_in_a_row_comes_out_of_the_feed_and_again_when_asked_again():
    rows = [*uniform_rows(*[4] * 9), ([20_000, 1], [0, 1])]
    batches = stream_of(rows, packing=False)
    with pytest.raises(DataError, match="made row 9: the row has the token 20000, and the model's"):
        list(batches.iterate(0, 5))
    with pytest.raises(DataError, match="made row 9"):
        batches.batch(2)
    assert batches.batch(0)["input_ids"].shape == (1, 4, MAX_LENGTH)


def test_rows_without_anything_to_learn_are_an_error_and_no_endless_search():
    batches = stream_of([([1, 2, 3], [0, 0, 0])] * 9)
    with pytest.raises(DataError, match="made: none of its 9 rows has a token to learn"):
        batches.batch(0)


def test_sources_are_read_one_after_the_other_with_encodings_of_their_own():
    texts = rows_of([{"text": "hello"}] * 3, "texts")
    tokens = make_source(uniform_rows(5, 6))
    own = make_tokenizer()
    batches = stream.make_stream(
        [texts, tokens],
        [make_encoding(own, max_length=16), make_encoding(None, max_length=16)],
        max_length=16,
        packing=False,
        shuffle=False,
        shuffle_buffer=2,
        seed=0,
        global_batch=6,
        accumulation=1,
        shards=1,
        vocab_size=1000,
        journal=None,
    )
    ids = batches.batch(0)["input_ids"][0]
    hello = [*own("hello")["input_ids"], own.eos_token_id]
    assert [row[: len(hello)].tolist() for row in ids[:3]] == [hello] * 3
    assert ids[3:5, 0].tolist() == [1, 2]
    assert ids[5, : len(hello)].tolist() == hello


def test_a_stream_has_no_epochs_and_room_for_targets_everywhere():
    batches = stream_of(uniform_rows(5), global_batch=8, accumulation=2, shards=2)
    assert (batches.steps_per_epoch, batches.num_sequences, batches.fill) == (None, None, None)
    assert batches.sequence_length == MAX_LENGTH
    assert batches.target_capacity == 2 * MAX_LENGTH
    with pytest.raises(ConfigError, match="cannot be cut evenly"):
        stream_of(uniform_rows(5), global_batch=6, accumulation=2, shards=2)


def test_the_report_counts_each_row_of_a_pass_once():
    rows = [*uniform_rows(*[10] * 6), ([1] * 30, [0] + [1] * 29)]
    batches = stream_of(rows, packing=False)
    for step in (0, 1, 0, 3, 8, 2):
        batches.batch(step)
    report = batches.report
    assert (report.rows, report.examples, report.truncated, report.longest) == (7, 7, 1, 30)


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"packing": False}, {"shuffle": False}, {"shuffle_buffer": 5}, {"max_length": 9}],
)
def test_the_fingerprint_tells_streams_apart(changes):
    rows = uniform_rows(5, 6, 7)
    assert stream_of(rows, **changes).fingerprint != stream_of(rows).fingerprint
    assert stream_of(rows[:2]).fingerprint != stream_of(rows).fingerprint
    assert stream_of(rows, global_batch=8).fingerprint == stream_of(rows).fingerprint


def test_orders_of_blocks_differ():
    batches = stream_of(uniform_rows(*[20] * 32), packing=False, shuffle_buffer=32, global_batch=32)
    one, two = (batches.batch(step)["input_ids"][0, :, 0].tolist() for step in (0, 1))
    assert sorted(one) == sorted(two) == list(range(1, 33))
    assert one != two


def test_memory_does_not_grow_with_the_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    line = json.dumps({"input_ids": list(range(1, 500))})
    with path.open("w") as file:
        file.writelines(itertools.repeat(line + "\n", 1000))
    source = open_rows([SourceConfig(path=str(path))], None, "train")[0]
    options = {"max_length": 512, "packing": False, "shuffle_buffer": 20}
    batches = stream_of(source, **options)
    far = stream_of(source, **options)
    batches.batch(0)
    peaks = []
    tracemalloc.start()
    for step in range(1, 240):
        batches.batch(step)
        if step in (60, 239):
            peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.reset_peak()
    far.batch(240)
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert peaks[2] < 2 * peaks[0]
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] < 1_500_000  # all rows take 5 MB
