from __future__ import annotations

import itertools

import pytest
from data_builders import CHAT, VALUES

from jaxft.data.rows import shapes
from jaxft.data.rows.row import Dialogue, RowPlace, Text, TextCompletion
from jaxft.errors import DataError

STRUCTURED = [name for name in VALUES if name not in ("text", "tokens")]
CHATS = ["messages", "chat completion", "sharegpt", "alpaca", "question"]
PLACE = RowPlace("f", 7)


def parse(value, **columns):
    return shapes.parse_row(value, PLACE, columns)


def complaint(value, **columns) -> str:
    with pytest.raises(DataError) as caught:
        parse(value, **columns)
    assert len(str(caught.value).split("\n")) == 2
    assert str(caught.value).startswith("f:7: ")
    return str(caught.value)


def dialogue(*contents, **further):
    roles = itertools.cycle(["user", "assistant"])
    messages = [{"role": next(roles), "content": content} for content in contents]
    return Dialogue(PLACE, messages, **further)


def said(value, **columns) -> list[str]:
    return [f"{each['role']}: {each['content']}" for each in parse(value, **columns).messages]


@pytest.mark.parametrize(
    ("value", "row"),
    [
        (VALUES["messages"], dialogue("hi", "ho")),
        (VALUES["chat completion"], dialogue("hi", "ho", num_prompt=1)),
        (VALUES["text completion"], TextCompletion(PLACE, "hi", "ho")),
        (VALUES["sharegpt"], dialogue("hi", "ho")),
        (VALUES["alpaca"], dialogue("hi", "ho")),
        ({"instruction": "hi", "output": "ho"}, dialogue("hi", "ho")),
        ({"instruction": "a", "input": "b\n", "output": ""}, dialogue("a\n\nb\n", "")),
        ({"instruction": "a", "input": " \n", "output": "c"}, dialogue("a", "c")),
        (VALUES["question"], dialogue("hi", "ho")),
        (VALUES["text"], Text(PLACE, "hi ho")),
    ],
)
def test_each_shape_is_told_by_its_fields(value, row):
    assert parse(value) == row
    assert parse(value | {"tools": None, "system": None, "label": None}) == row
    assert parse(dict.fromkeys(shapes.FIELDS) | value) == row


@pytest.mark.parametrize("name", STRUCTURED)
def test_fields_that_are_blank_or_empty_change_nothing(name):
    blank = {"system": "", "tools": [], "context": " ", "history": [], "train_turns": ""}
    filled = parse(VALUES[name] | blank)
    assert set(filled.unused) <= {"context", "history"}
    assert parse(VALUES[name]).unused == ()
    if name in CHATS:
        assert filled.messages == parse(VALUES[name]).messages


@pytest.mark.parametrize(
    ("one", "two"),
    [
        names
        for names in itertools.combinations(STRUCTURED, 2)
        if names != ("chat completion", "text completion")
    ],
)
def test_a_row_of_two_meanings_is_refused_with_both(one, two):
    message = complaint(VALUES[one] | VALUES[two])
    assert "two meanings" in message
    for name in (one, two):
        assert f'"{next(iter(VALUES[name]))}"' in message


@pytest.mark.parametrize("name", STRUCTURED)
def test_a_text_beside_another_shape_is_its_rendering(name):
    row = parse(VALUES[name] | {"text": "hi ho"})
    assert type(row) is type(parse(VALUES[name]))
    assert row.unused == ("text",)


@pytest.mark.parametrize("name", [*STRUCTURED, "text"])
def test_tokens_beside_another_shape_are_what_became_of_it(name):
    row = parse(VALUES[name] | VALUES["tokens"])
    assert row.input_ids.tolist() == [5, 6, 7]
    assert row.unused == tuple(VALUES[name])


@pytest.mark.parametrize("name", VALUES)
def test_every_field_that_nothing_was_made_of_is_named(name):
    more = {"id": 3, "source": "x", "timestamp": None, "year": float("nan"), "a\nb": 1}
    assert parse(VALUES[name] | more).unused == ("id", "source", "a\\nb")


@pytest.mark.parametrize("name", CHATS)
def test_a_system_field_is_the_first_message(name):
    value = VALUES[name] | {"system": "Be kind."}
    row = parse(value)
    assert said(value) == ["system: Be kind.", "user: hi", "assistant: ho"]
    assert row.num_prompt == (2 if name == "chat completion" else 0)
    assert row.unused == ()


def test_a_system_field_is_not_said_twice_and_must_be_what_the_messages_say():
    own = {"messages": [{"role": "system", "content": "Be kind."}, *CHAT]}
    assert parse(own | {"system": "Be kind.\n"}).messages == own["messages"]
    assert '"system" is not what the first message' in complaint(own | {"system": "Be harsh."})


@pytest.mark.parametrize("name", ["alpaca", "question"])
def test_what_a_question_is_about_and_what_was_said_before_stand_before_it(name):
    more = {"context": "It rains.", "history": [["a", "b"], ("c", "d")], "system": "s"}
    assert said(VALUES[name] | more) == [
        "system: s",
        "user: a",
        "assistant: b",
        "user: c",
        "assistant: d",
        "user: It rains.\n\nhi",
        "assistant: ho",
    ]
    assert said(VALUES[name] | {"history": '[["a", "b"]]'})[1] == "assistant: b"


def test_context_instruction_and_input_stand_in_this_order():
    value = {"context": "a", "instruction": "b", "input": "c", "output": "d"}
    assert said(value) == ["user: a\n\nb\n\nc", "assistant: d"]


def test_columns_give_fields_with_other_names_ours():
    assert said({"질문": "a", "답변": "b"}, question="질문", answer="답변") == said(
        {"question": "a", "answer": "b"}
    )
    mapped = parse({"prompt": "a", "response": "b", "question": "c"}, completion="response")
    assert mapped == TextCompletion(PLACE, "a", "b", unused=("question",))
    chat = parse({"대화": CHAT, "도구": [{"name": "add"}]}, messages="대화", tools="도구")
    assert len(chat.tools) == 1
    row = parse({"ids": [5, 6], "mask": [0, 1]}, input_ids="ids", loss_mask="mask")
    assert row.loss_mask.tolist() == [0, 1]
    assert row.unused == ()


def test_a_mapped_field_goes_before_one_of_that_name():
    value = {"question": "old", "query": "new", "answer": "b"}
    assert said(value, question="query")[0] == "user: new"
    swapped = {"question": "b", "answer": "a"}
    assert said(swapped, question="answer", answer="question") == ["user: a", "assistant: b"]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"question": "질"}, 'the row has no "질", which is to be read as "question"'),
        ({"questoin": "질문"}, 'Did you mean "question"?'),
        ({"xyz": "질문"}, 'the columns give a field named "xyz", which no row has'),
        ({"question": "질문", "answer": "number"}, '"number" is a number'),
    ],
)
def test_wrong_columns_are_named(columns, words):
    message = complaint({"질문": "a", "answer": "b", "number": 3}, **columns)
    assert words in message


def test_a_missing_column_is_answered_with_those_there_are():
    assert 'its fields: "질문", "답변"' in complaint({"질문": "a", "답변": "b"}, question="질")


@pytest.mark.parametrize("name", [*CHATS, "text completion"])
def test_an_answer_that_is_marked_as_bad_is_refused(name):
    for bad in (False, "false", "False"):
        for field in ("label", "kto_tag"):
            assert "marks a bad answer" in complaint(VALUES[name] | {field: bad})
    for good in (True, "true"):
        assert parse(VALUES[name] | {"label": good}) == parse(VALUES[name])


def test_a_label_beside_a_completion_is_a_verdict_and_elsewhere_a_label():
    pair = VALUES["text completion"]
    assert "marks a bad answer" in complaint(pair | {"label": 0})
    assert parse(pair | {"label": 1}) == parse(pair)
    assert parse(pair | {"label": float("nan")}) == parse(pair)  # as pandas writes null
    for neither in ("good", 2, 0.5):
        assert "neither true nor false" in complaint(pair | {"label": neither})
    for label in ("science", 0, 3):
        assert parse(VALUES["question"] | {"label": label}).unused == ("label",)
    assert parse(VALUES["text"] | {"label": False}).unused == ("label",)


@pytest.mark.parametrize("name", ["messages", "text completion", "question", "text"])
def test_rows_of_preferences_are_refused(name):
    for value in ({"chosen": "b", "rejected": "c"}, {"rejected": [CHAT]}, {"chosen": "b"}):
        assert "it compares answers" in complaint(VALUES[name] | value)
    assert "it compares answers" in complaint({"prompt": "a", "chosen": "b", "rejected": "c"})
    assert parse(VALUES[name] | {"chosen": None, "rejected": ""}).unused == ("rejected",)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1], "found a list where"),
        (None, "found null where"),
        ({}, "its fields: none"),
        ({"prompt": "a", "id": 3}, 'its fields: "prompt", "id"'),
        ({"text": None}, 'its fields: "text"'),
        ({"text": float("nan")}, 'its fields: "text"'),
        ({str(i): 1 for i in range(30)}, '"19" and 10 more'),
        ({"prompt": "a", "completion": 1}, '"prompt" is a string and "completion" is a number'),
        ({"prompt": "a", "completion": []}, '"completion" is an empty list'),
        ({"prompt": CHAT[:1], "completion": []}, '"completion" is an empty list'),
        ({"prompt": "\ud800", "completion": "a"}, "unpaired surrogate '\\ud800'"),
        ({"text": "a\udfff"}, "at character 1"),
        ({"text": 3}, '"text" is a number'),
        ({"question": "a", "answer": ["b"]}, '"answer" is a list'),
        ({"instruction": "a", "input": 1, "output": "b"}, '"input" is a number'),
        (VALUES["question"] | {"context": ["a"]}, '"context" is a list'),
        (VALUES["question"] | {"system": {"a": 1}}, '"system" is an object'),
        (VALUES["alpaca"] | {"history": "a"}, '"history" is "a", not JSON'),
        (VALUES["alpaca"] | {"history": [["a"]]}, '"history[0]" is not a pair'),
        (VALUES["alpaca"] | {"history": [["a", 3]]}, '"history[0][1]" is a number'),
        (VALUES["messages"] | {"history": [["a", "b"]]}, '"history", which is not used beside'),
        (VALUES["sharegpt"] | {"history": [["a", "b"]]}, '"history", which is not used beside'),
        (VALUES["text completion"] | {"system": "s"}, '"system" beside a prompt that is plain'),
        (VALUES["text completion"] | {"tools": [{"name": "a"}]}, '"tools" beside a prompt'),
        (VALUES["text completion"] | {"context": "c"}, '"context" beside a prompt'),
        (VALUES["messages"] | {"chat_template_kwargs": [1]}, '"chat_template_kwargs" is a list'),
        (VALUES["messages"] | {"chat_template_kwargs": {"tools": 1}}, 'has "tools"'),
    ],
)
def test_a_bad_value_is_named_with_what_was_found(value, words):
    assert words in complaint(value)


@pytest.mark.parametrize("name", CHATS)
def test_variables_of_the_template_arrive_as_object_or_text(name):
    for given in ({"enable_thinking": False}, '{"enable_thinking": false}'):
        row = parse(VALUES[name] | {"chat_template_kwargs": given})
        assert row.template_kwargs == {"enable_thinking": False}
