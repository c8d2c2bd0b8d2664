"""What a row marks as not to be supervised, and marks that nobody acts upon."""

from __future__ import annotations

import numpy as np
import pytest
from data_builders import CHAT, VALUES
from hypothesis import given
from hypothesis import strategies as st

from jaxft.data.rows import flags, leftovers, shapes
from jaxft.data.rows.row import RowPlace
from jaxft.errors import DataError

FOUR = [*CHAT, *CHAT]
UNSUPERVISED = [
    {"weight": 0},
    {"weight": 0.0},
    {"weight": "0"},
    {"weight": np.int64(0)},
    {"loss": False},
    {"train": False},
    {"train": "False"},
    {"training": 0},
    {"trainable": False},
    {"learn": "false"},
    {"masked": True},
    {"masked": 1},
]
SUPERVISED = [{"weight": 1}, {"loss": True}, {"train": "true"}, {"masked": False}, {"learn": 1.0}]


def parse(value):
    return shapes.parse_row(value, RowPlace("f", 7))


def complaint(value) -> str:
    with pytest.raises(DataError) as caught:
        parse(value)
    assert len(str(caught.value).split("\n")) == 2
    assert str(caught.value).startswith("f:7: ")
    return str(caught.value)


@pytest.mark.parametrize("mark", UNSUPERVISED)
@pytest.mark.parametrize("name", ["messages", "conversations"])
def test_a_turn_with_a_mark_is_not_supervised_and_loses_the_mark(name, mark):
    row = parse({name: [CHAT[0], CHAT[1] | mark, *CHAT]})
    assert row.skipped == {1}
    assert list(row.messages) == FOUR
    assert row.unused == ()


@pytest.mark.parametrize("mark", SUPERVISED)
def test_a_turn_that_is_marked_as_supervised_is(mark):
    row = parse({"messages": [CHAT[0], CHAT[1] | mark]})
    assert row.skipped == frozenset()
    assert list(row.messages) == CHAT


@given(
    marks=st.lists(st.sampled_from([None, 0, 1, 0.0, True, False, "true", "0"]), max_size=6),
    field=st.sampled_from(sorted(flags.MARKS)),
    has_system=st.booleans(),
)
def test_each_turn_is_skipped_by_its_own_mark_wherever_it_stands(marks, field, has_system):
    messages = [CHAT[0]]
    for mark in marks:
        messages += [CHAT[1] | {field: mark}, CHAT[0]]
    row = parse({"messages": messages} | ({"system": "s"} if has_system else {}))
    off = {0, "0"} if field != "masked" else {1, "true"}  # False is 0 here, True is 1
    skipped = {index for index, mark in enumerate(marks) if mark in off}
    assert row.skipped == {2 * index + 1 + has_system for index in skipped}


@pytest.mark.parametrize("bad", [0.5, 2, -1, float("nan"), float("inf"), "yes", [0], {}, "\ud800"])
@pytest.mark.parametrize("field", ["weight", "loss", "masked"])
def test_a_mark_is_true_or_false(field, bad):
    assert f'"messages[1].{field}" is ' in complaint(
        {"messages": [CHAT[0], CHAT[1] | {field: bad}]}
    )


@pytest.mark.parametrize("mark", SUPERVISED)
def test_only_replies_can_be_marked_as_supervised(mark):
    asked = {"messages": [CHAT[0] | mark, CHAT[1]]}
    assert 'message of the role "user" to be learned' in complaint(asked)
    assert parse({"messages": [each | mark for each in CHAT]}).skipped == frozenset()
    prompt = {"prompt": [*CHAT[:1], CHAT[1] | mark, CHAT[0]], "completion": CHAT[1:]}
    assert "to be learned" in complaint(prompt)


def test_a_question_may_be_marked_as_not_supervised():
    for mark in UNSUPERVISED:
        row = parse({"messages": [CHAT[0] | mark, CHAT[1]]})
        assert (row.skipped, list(row.messages)) == (frozenset(), CHAT)


def test_marks_that_contradict_each_other_are_refused():
    both = CHAT[1] | {"weight": 1, "train": False}
    assert 'by "weight" and "train"' in complaint({"messages": [CHAT[0], both]})
    agreeing = CHAT[1] | {"weight": 0, "train": False, "masked": True}
    assert parse({"messages": [CHAT[0], agreeing]}).skipped == {1}


@pytest.mark.parametrize(
    ("turns", "skipped"),
    [
        ([1], {1}),
        ([0, 1], set()),
        ([], {1, 3}),
        (np.array([0]), {3}),
        ([True, False], {3}),
        (np.array([False, True]), {1}),
        ([False, True, False, False], {3}),
        ([True] * 4, set()),
        ("[false, true]", {1}),
    ],
)
def test_turns_to_train_on_are_told_by_number_or_by_flag(turns, skipped):
    assert parse({"messages": FOUR, "train_turns": turns}).skipped == skipped
    row = parse({"messages": FOUR, "train_turns": turns, "system": "s"})
    assert row.skipped == {index + 1 for index in skipped}


def test_turns_to_train_on_and_marks_are_both_heeded():
    marked = [CHAT[0], CHAT[1] | {"weight": 0}, *CHAT]
    assert parse({"messages": marked, "train_turns": [True, False]}).skipped == {1, 3}


@pytest.mark.parametrize(
    "turns", [[2], [-1], [1, 0], [0, 0], [True], [True] * 3, [0, True], [None], 1, "last", {"a": 1}]
)
def test_other_turns_to_train_on_are_refused(turns):
    assert '"train_turns"' in complaint({"messages": FOUR, "train_turns": turns})


def test_turns_to_train_on_are_replies():
    asked = {"messages": FOUR, "train_turns": [True, True, False, True]}
    assert '"train_turns" asks for a message of the role "user"' in complaint(asked)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loss_mask", [1, 0]),
        ("lossMask", [1, 0]),
        ("completion_mask", [1]),
        ("prompt-mask", [1]),
        ("mask", [0, 1]),
        ("mask", False),
        ("weight", 0),
        ("weight", 0.5),
        ("weight", "0.5"),
        ("sample_weight", 0.2),
        ("loss_weight", 2),
        ("loss_scale", 0.1),
        ("loss", False),
        ("train", False),
        ("trainable", 0),
        ("masked", True),
        ("ignore", True),
        ("no_loss", True),
        ("exclude_from_training", 1),
        ("train_on_inputs", True),
        ("roles_to_train", ["gpt"]),
        ("train_detail", [1]),
        ("loss_spans", [[0, 3]]),
        ("reward", 0.5),
        ("advantages", [0.1]),
        ("rejected_answer", "a"),
        ("shift_labels", [1]),
        ("kto_label", False),
        ("metadata", {"train_turns": [0]}),
        ("extra", {"loss_mask": [0]}),
    ],
)
@pytest.mark.parametrize("shape", ["messages", "question", "text", "tokens"])
def test_a_field_that_by_its_name_says_what_is_supervised_is_refused(shape, name, value):
    own = shape == "tokens" and name in ("loss_mask", "completion_mask")
    if not own:
        message = complaint(VALUES[shape] | {name: value})
        assert f'"{name}' in message
        assert "Remove the field" in message
    if name != "train_detail" and not isinstance(value, dict) and name not in flags.MARKS:
        message = complaint({"messages": [CHAT[0], CHAT[1] | {name: value}]})
        assert f'"messages[].{name}"' in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight", 1),
        ("weight", "1.0"),
        ("loss", True),
        ("masked", False),
        ("train_on_inputs", False),
        ("is_trainable", True),
        ("reward", None),
        ("loss_mask", []),
        ("weight", "70 kg"),
        ("loss", "water damage"),
        ("reward", "ten coins"),
        ("mask", "User"),
        ("metadata", {"weight": 70, "reward": 3}),
    ],
)
def test_what_cannot_change_what_is_supervised_is_only_counted(name, value):
    row = parse(VALUES["question"] | {name: value})
    assert row.unused == (() if value is None else (name,))


ORDINARY = """id train_id is_train split label_name labels score score_chosen quality_score
source_weight body_weight weight_kg loss_of_life training_data face_mask attention_mask
special_tokens_mask learning_rate mask_type answer_type rewarding retrain language"""


@pytest.mark.parametrize("name", ORDINARY.split())
def test_ordinary_names_are_only_counted(name):
    for value in (3, 0.5, False, [0], "0"):
        assert not leftovers.changes_learning(name, value)
    assert parse(VALUES["text"] | {name: 3}).unused == (name,)
