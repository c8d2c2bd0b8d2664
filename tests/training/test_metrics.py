"""The record of a run: sums that travel, lines that survive being killed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxft.training.run import metrics


def test_a_window_weighs_every_target_alike():
    window = metrics.Window()
    window.add({"loss": (2.0, 1), "margin": (3.0, 2)}, tokens=10)
    window.add({"loss": (15.0, 3), "margin": (1.0, 2)}, tokens=30)
    assert window.means() == {"loss": 17 / 4, "margin": 1.0}
    assert (window.target_tokens, window.tokens) == (4, 40)


def test_an_empty_window_has_no_terms():
    assert metrics.Window().means() == {}
    assert metrics.Window().target_tokens == 0


def test_the_record_of_an_earlier_version_is_read():
    record = {"loss_sum": 17.0, "target_tokens": 4, "tokens": 40}
    assert metrics.Window.from_record(record) == metrics.Window({"loss": (17.0, 4)}, 40)


TERM = st.tuples(st.floats(0, 50, width=32), st.integers(0, 2**20))
STEPS = st.tuples(st.fixed_dictionaries({"loss": TERM, "margin": TERM}), st.integers(0, 2**20))


@given(st.lists(STEPS), st.lists(STEPS))
def test_a_window_that_travelled_as_json_goes_on_exactly(before, after):
    straight, stopped = metrics.Window(), metrics.Window()
    for step in before:
        straight.add(*step)
        stopped.add(*step)
    resumed = metrics.Window.from_record(json.loads(json.dumps(stopped.record())))
    for step in after:
        straight.add(*step)
        resumed.add(*step)
    assert resumed == straight


@pytest.fixture
def path(tmp_path):
    """A record of steps 1 to 3, the last with an evaluation."""
    log = metrics.MetricsFile(tmp_path / "metrics.jsonl", None)
    for step in (1, 2, 3):
        log.write(step, {"loss": 1 / step})
    log.write(3, {"eval_loss": 0.25})
    return tmp_path / "metrics.jsonl"


def test_a_line_is_an_object_that_begins_with_its_step(path):
    assert path.read_text().splitlines()[1:] == [
        '{"step": 2, "loss": 0.5}',
        '{"step": 3, "loss": 0.3333333333333333}',
        '{"step": 3, "eval_loss": 0.25}',
    ]


def test_a_resumed_record_forgets_what_will_be_done_again(path):
    metrics.MetricsFile(path, resumed_step=2).write(3, {"loss": 0.5})
    assert [line["step"] for line in metrics.read(path, 9)] == [1, 2, 3]
    assert metrics.read(path, 9)[2]["loss"] == 0.5


def test_a_record_that_starts_anew_is_empty(path):
    metrics.MetricsFile(path, None)
    assert path.read_text() == ""


@pytest.mark.parametrize("torn", ['{"step": 4, "lo', "4", '{"loss": 1}', "[]"])
def test_a_line_cut_off_by_a_crash_is_left_out(path, torn):
    with path.open("a") as file:
        file.write(torn)
    metrics.MetricsFile(path, resumed_step=4).write(5, {"loss": 0.1})
    assert [line["step"] for line in metrics.read(path, 9)] == [1, 2, 3, 3, 5]


def test_a_crash_while_the_record_is_cut_back_loses_nothing(path, monkeypatch):
    before = path.read_text()

    def crash(*names):
        raise KeyboardInterrupt

    monkeypatch.setattr(metrics.os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        metrics.MetricsFile(path, resumed_step=1)
    assert path.read_text() == before


def test_a_lines_value_is_found_by_step_and_name(path):
    log = metrics.MetricsFile(path, resumed_step=3)
    assert log.find(3, "eval_loss") == {"step": 3, "eval_loss": 0.25}
    assert log.find(2, "eval_loss") is None
    assert log.find(4, "loss") is None
