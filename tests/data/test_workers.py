from __future__ import annotations

import signal

import pytest
from data_builders import CHAT, VALUES, make_encoding, make_tokenizer

from jaxft.data.examples import chunk, encode, workers
from jaxft.data.sources.source import rows_of
from jaxft.errors import DataError

# A process takes about a second to start.


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(chunk, "_BATCH_ROWS", 5)


@pytest.fixture
def started(monkeypatch):
    """The processes that a test starts."""
    processes = []
    own_start = workers._Worker.__init__

    def start(self, encoding):
        own_start(self, encoding)
        processes.append(self._process)

    monkeypatch.setattr(workers._Worker, "__init__", start)
    return processes


def test_processes_encode_the_same_in_the_same_order(
    monkeypatch, small_batches, started, cache_folder
):
    values = [{"text": f"{number} " * (number % 7 + 1)} for number in range(60)]
    source = rows_of([*VALUES.values(), *values], "made")
    own = make_encoding(make_tokenizer(), max_length=8, overlong="split")
    alone = encode.encode_source(source, own, num_workers=1)
    # Left to itself it begins alone, and starts a process for each core but one.
    monkeypatch.setattr(encode, "_num_cores", lambda: 3)
    monkeypatch.setattr(encode, "_BATCHES_ALONE", 4)
    for num_workers in (2, None):
        monkeypatch.setattr(encode, "code_digest", lambda _, other=num_workers: str(other))
        shared = encode.encode_source(source, own, num_workers=num_workers)
        assert shared.report == alone.report
        assert shared.end_ids == alone.end_ids
    assert len(started) == 4
    first, *others = (cache_folder / "jaxft").iterdir()
    for name in ("tokens", "masks", "table", "facts.json"):
        expected = (first / name).read_bytes()
        assert [(other / name).read_bytes() == expected for other in others] == [True, True]


def test_of_rows_that_are_wrong_the_first_is_named_as_by_one_process(small_batches):
    good, unanswerable = {"text": "a"}, {"messages": CHAT[1:]}
    values = [*[good] * 7, unanswerable, *[good] * 3, {"text": 5}, *[good] * 9, unanswerable]
    batches = chunk.batches(rows_of(values, "made"))
    encoded = workers.encode_in_processes(batches, make_encoding(make_tokenizer()), 1)
    assert next(encoded).tally.rows == 5
    with pytest.raises(DataError, match=r"^made row 7: the first message"):
        next(encoded)


def test_a_row_that_cannot_be_read_is_named_after_those_before_it(small_batches):
    batches = chunk.batches(rows_of([*[{"text": "a"}] * 7, {"text": 5}], "made"))
    encoded = workers.encode_in_processes(batches, make_encoding(make_tokenizer()), 1)
    assert next(encoded).tally.rows == 5
    with pytest.raises(DataError, match=r"^made row 7: "):
        next(encoded)


def test_a_process_that_is_killed_is_an_error_and_no_endless_wait(small_batches, started):
    batches = chunk.batches(rows_of([{"text": "a"}] * 30, "made"))
    encoded = workers.encode_in_processes(batches, make_encoding(make_tokenizer()), 1)
    next(encoded)
    started[0].send_signal(signal.SIGKILL)
    with pytest.raises(DataError, match=r"was ended \(exit status -9\)"):
        list(encoded)
    assert started[0].returncode == -9


def test_no_process_is_left_when_nobody_wants_the_rest(small_batches, started):
    batches = chunk.batches(rows_of([{"text": "a"}] * 50, "made"))
    encoded = workers.encode_in_processes(batches, make_encoding(make_tokenizer()), 1)
    next(encoded)
    assert started[0].poll() is None
    encoded.close()
    assert started[0].poll() is not None
