from __future__ import annotations

import itertools

import pytest
from data_builders import CHAT, VALUES

from jaxft.data import shapes
from jaxft.data.rows import ChatCompletion, Conversation, Place, Question, Text, TextCompletion
from jaxft.errors import DataError

STRUCTURED = [name for name in VALUES if name not in ("text", "tokens")]


def parse(value):
    return shapes.parse_row(value, Place("f", 7))


def complaint(value) -> str:
    with pytest.raises(DataError) as caught:
        parse(value)
    assert len(str(caught.value).split("\n")) == 2
    assert str(caught.value).startswith("f:7: ")
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "row"),
    [
        (VALUES["messages"] | {"prompt": "hi"}, Conversation("f", 7, tuple(CHAT))),
        (VALUES["chat completion"], ChatCompletion("f", 7, tuple(CHAT[:1]), tuple(CHAT[1:]))),
        (VALUES["text completion"], TextCompletion("f", 7, "hi", "ho")),
        (VALUES["sharegpt"], Conversation("f", 7, tuple(CHAT))),
        (VALUES["alpaca"], Question("f", 7, "hi", "ho")),
        ({"instruction": "hi", "output": "ho"}, Question("f", 7, "hi", "ho")),
        ({"instruction": "a", "input": "b\n", "output": ""}, Question("f", 7, "a\n\nb\n", "")),
        ({"instruction": "a", "input": " \n", "output": "c"}, Question("f", 7, "a", "c")),
        (VALUES["question"] | {"source": "x"}, Question("f", 7, "hi", "ho")),
        (VALUES["text"], Text("f", 7, "hi ho")),
    ],
)
def test_each_shape_is_told_by_its_fields_and_others_are_ignored(value, row):
    assert parse(value) == row
    assert parse(value | {"id": 3, "tools": None, "system": ""}) == row
    assert parse(dict.fromkeys(shapes.FIELDS) | value) == row


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
    assert parse(VALUES[name] | {"text": "hi ho"}) == parse(VALUES[name])


@pytest.mark.parametrize("name", [*STRUCTURED, "text"])
def test_tokens_beside_another_shape_are_what_became_of_it(name):
    row = parse(VALUES[name] | VALUES["tokens"])
    assert row.input_ids.tolist() == [5, 6, 7]


def test_everyone_in_sharegpt_has_a_role():
    speakers = {
        "human": "user",
        "user": "user",
        "gpt": "assistant",
        "assistant": "assistant",
        "system": "system",
    }
    row = parse({"conversations": [{"from": each, "value": each} for each in speakers]})
    assert {message["content"]: message["role"] for message in row.messages} == speakers


def test_fields_of_messages_that_are_null_are_as_good_as_absent():
    padded = [message | {"name": None, "tool_calls": None} for message in CHAT]
    assert parse({"messages": padded}) == parse({"messages": CHAT})
    named = [message | {"name": "Ann"} for message in CHAT]
    assert parse({"messages": named}).messages[0]["name"] == "Ann"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1], "found a list where"),
        (None, "found null where"),
        ({}, "its fields: none"),
        ({"prompt": "a", "id": 3}, 'its fields: "prompt", "id"'),
        ({"text": None}, 'its fields: "text"'),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, '"chosen"'),
        ({"prompt": "a", "completion": 1}, '"prompt" is a string and "completion" is a number'),
        ({"prompt": "a", "completion": []}, '"completion" is an empty list'),
        ({"messages": "a"}, '"messages" is a string'),
        ({"messages": []}, '"messages" is an empty list'),
        ({"messages": ["a"]}, '"messages[0]" is a string'),
        ({"messages": [{"role": "user"}]}, '"messages[0]" lacks "content"; its fields: "role"'),
        ({"messages": [{"role": "user", "content": None}]}, '"messages[0].content" is null'),
        ({"messages": [{"role": 1, "content": "a"}]}, '"messages[0].role" is a number'),
        ({"messages": [CHAT[0] | {"tool_calls": [1]}]}, '"messages[0]" has "tool_calls"'),
        ({"prompt": "\ud800", "completion": "a"}, "unpaired surrogate '\\ud800'"),
        ({"text": "a\udfff"}, "at character 1"),
        ({"text": 3}, '"text" is a number'),
        ({"question": "a", "answer": ["b"]}, '"answer" is a list'),
        ({"instruction": "a", "input": 1, "output": "b"}, '"input" is a number'),
        ({"conversations": [{"from": "human"}]}, '"conversations[0]" lacks "value"'),
        ({"conversations": CHAT}, 'lacks "from"; its fields: "role", "content"'),
        ({"conversations": [{"from": "tool", "value": "a"}]}, "calls of tools are not supported"),
        ({"conversations": [{"from": "function_call", "value": "a"}]}, "calls of tools"),
        ({"conversations": [{"from": "bing", "value": "a"}]}, '"conversations[0]" is from "bing"'),
        (VALUES["messages"] | {"tools": [{}]}, '"tools", which jaxft does not support yet'),
        (VALUES["alpaca"] | {"history": [["a", "b"]]}, '"history"'),
        (VALUES["sharegpt"] | {"system": "Be kind."}, '"system"'),
    ],
)
def test_a_bad_value_is_named_with_what_was_found(value, words):
    assert words in complaint(value)
