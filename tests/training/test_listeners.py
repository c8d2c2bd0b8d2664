"""Listeners: told in order of what happens between steps, and heard when they want something."""

from __future__ import annotations

import shutil

import pytest
import runs

from jaxft.training.prepare import folder
from jaxft.training.run.listener import GO_ON, Listener, Listeners, Verdict

pytestmark = pytest.mark.slow


class Recorder(Listener):
    """Writes down what it is told, and answers as it is asked to at some step."""

    def __init__(self, answers=(), measured=None):
        self.events, self.answers = [], dict(answers)
        self.measured = measured

    def note(self, name, step):
        self.events.append((name, step))
        return self.answers.get((name, step), GO_ON)

    def began(self, now):
        return self.note("began", now.step)

    def read(self, step, figures, tokens):
        assert tokens > 0
        assert not figures.is_skipped
        return self.note("read", step)

    def stepped(self, now):
        assert int(now.state.step) == now.step
        return self.note("stepped", now.step)

    def ended(self, now):
        return self.note("ended", now.step)

    def logged(self, step, line):
        assert line["loss"] > 0
        return self.note("logged", step)

    def saved(self, step):
        return self.note("saved", step)

    def measure(self, now):
        return {} if self.measured is None else {"eval_step": float(self.measured + now.step)}

    def evaluated(self, step, line):
        return self.note("evaluated", step)


@pytest.fixture
def train(plan_of, leaves, make_trainer, tmp_path):
    """Return a function that trains with listeners, in this test's folder."""

    def run(*listeners, words=()):
        plan = plan_of(f"train.output_dir={tmp_path / 'run'}", "train.save_steps=4", *words)
        with folder.open_checkpoints(plan) as checkpoints:
            return make_trainer(plan, leaves, listeners).run(checkpoints)

    return run


def test_they_are_told_in_order_and_steps_are_read_one_behind_unless_something_is_due(train):
    train(told := Recorder())
    begin = [("began", 0), ("evaluated", 0)]
    assert sorted(told.events[:2]) == sorted(begin)
    assert told.events[2:] == [
        ("stepped", 1),
        ("logged", 1),
        ("read", 1),
        ("stepped", 2),
        ("logged", 2),
        ("read", 2),
        ("logged", 3),
        ("read", 3),
        ("evaluated", 3),
        ("stepped", 3),
        ("logged", 4),
        ("read", 4),
        ("saved", 4),
        ("stepped", 4),
        ("stepped", 5),
        ("logged", 5),
        ("read", 5),
        ("logged", 6),
        ("read", 6),
        ("saved", 6),
        ("evaluated", 6),
        ("stepped", 6),
        ("ended", 6),
    ]


@pytest.mark.parametrize("event", ["stepped", "logged", "evaluated"])
def test_any_of_them_stops_the_run_after_the_step_that_is_under_way(train, tmp_path, event):
    stopper = Recorder({(event, 3): Verdict(stop=True)})
    outcome = train(Recorder(), stopper, Recorder())
    assert outcome.num_steps == 3
    # As if it were the last: logged, evaluated, saved; the same command goes on from there.
    assert runs.saved_steps(tmp_path / "run") == [3]
    assert [line["step"] for line in runs.records(tmp_path / "run")] == [0, 1, 2, 3, 3]
    assert train().num_steps == 6


def test_a_run_that_is_stopped_as_it_begins_makes_no_step(train, tmp_path):
    outcome = train(Recorder({("evaluated", 0): Verdict(stop=True)}))
    assert outcome.num_steps == 0
    assert [line["step"] for line in runs.records(tmp_path / "run")] == [0]


def test_a_checkpoint_that_one_of_them_wants_is_gone_on_from_to_the_bit(straight, train, tmp_path):
    wanting = Recorder({("stepped", 3): Verdict(save=True), ("stepped", 4): Verdict(save=True)})
    logs_rarely = ("train.logging_steps=4",)
    train(wanting, words=logs_rarely)
    # Once of a step, though step 4 is saved in any case; with all that was read until then.
    assert [step for name, step in wanting.events if name == "saved"] == [3, 4, 6]
    whole = runs.records(tmp_path / "run")
    for step in (4, 6):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    train(words=logs_rarely)
    assert runs.records(tmp_path / "run") == whole


def test_their_figures_are_in_the_line_of_an_evaluation(train, tmp_path):
    train(Recorder(measured=10))
    lines = [line for line in runs.records(tmp_path / "run") if "eval_loss" in line]
    assert [line["eval_step"] for line in lines] == [10.0, 13.0, 16.0]


def test_several_are_one_that_wants_what_any_of_them_wants():
    both = Listeners()
    both.add([Recorder({("saved", 1): Verdict(stop=True)}), Recorder()])
    both.add([last := Recorder({("saved", 1): Verdict(save=True)})])
    assert both.saved(1) == Verdict(stop=True, save=True)
    assert both.saved(2) == GO_ON
    assert last.events == [("saved", 1), ("saved", 2)]
    assert not both.is_due(1)
