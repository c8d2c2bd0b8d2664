"""Messages in the spellings that people bring, and the tools that are called in them."""

from __future__ import annotations

import json

import pytest
from data_builders import CHAT

from jaxft.data.rows import shapes
from jaxft.data.rows.row import RowPlace
from jaxft.errors import DataError

ADD = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}
CALL = {"name": "add", "arguments": {"a": 2}}
WRAPPED = {"type": "function", "function": CALL}
ASK = {"role": "user", "content": "hi"}


def parse(messages, name="messages", **fields):
    return shapes.parse_row({name: messages, **fields}, RowPlace("f", 7))


def complaint(messages, name="messages", **fields) -> str:
    with pytest.raises(DataError) as caught:
        parse(messages, name, **fields)
    assert len(str(caught.value).split("\n")) == 2
    assert str(caught.value).startswith("f:7: ")
    return str(caught.value)


def called(**fields):
    return parse([ASK, {"role": "assistant", **fields}]).messages[1]


@pytest.mark.parametrize("name", ["messages", "conversations"])
def test_both_spellings_may_be_mixed_in_either_field(name):
    mixed = [{"from": "human", "content": "hi"}, {"role": "gpt", "value": "ho"}]
    assert parse(mixed, name).messages == CHAT
    both = [{"role": "user", "from": "human", "content": "hi", "value": "hi"}, CHAT[1]]
    assert parse(both, name).messages == CHAT


def test_everyone_has_a_role():
    speakers = {
        "human": "user",
        "user": "user",
        "gpt": "assistant",
        "model": "assistant",
        "assistant": "assistant",
        "system": "system",
        "developer": "developer",
        "observation": "tool",
        "function_response": "tool",
        "tool": "tool",
    }
    for key in ("from", "role"):
        row = parse([{key: each, "content": each} for each in speakers], "conversations")
        assert {each["content"]: each["role"] for each in row.messages} == speakers
    assert parse([{"role": "ipython", "content": "a"}]).messages[0]["role"] == "ipython"


def test_parts_of_text_are_joined_and_others_refused_by_name():
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i", "image": None}]
    assert parse([{"role": "user", "content": parts}, CHAT[1]]).messages == CHAT
    cached = [{"type": "text", "text": "hi", "cache": 1}]
    assert parse([{"role": "user", "content": cached}]).unused == ("messages[].content[].cache",)
    image = [{"type": "image", "url": "x"}]
    found = complaint([{"role": "user", "content": image}])
    assert '"messages[0].content[0]" is a part of the type "image"' in found


def test_fields_that_templates_know_stay_and_others_are_named():
    named = [each | {"name": "Ann", "timestamp": 3, "id": None} for each in CHAT]
    row = parse(named)
    assert [each["name"] for each in row.messages] == ["Ann", "Ann"]
    assert all(set(each) == {"role", "content", "name"} for each in row.messages)
    assert row.unused == ("messages[].timestamp",)
    prompt = shapes.parse_row({"prompt": named[:1], "completion": named[1:]}, RowPlace("f", 7))
    assert prompt.unused == ("prompt[].timestamp", "completion[].timestamp")


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_stay_with_the_assistant(field):
    assert called(content="4", **{field: "Two and two."})[field] == "Two and two."
    assert field not in called(content="4", **{field: None})
    assert parse([ASK | {field: "a"}]).unused == (f"messages[].{field}",)
    assert "is a list" in complaint([CHAT[1] | {field: ["a"]}])


@pytest.mark.parametrize(
    "tools",
    [
        [ADD],
        [{"type": "function", "function": ADD}],
        [{"type": "function", **ADD}],
        [json.dumps(ADD)],
        json.dumps([ADD]),
        [{"type": "function", "function": ADD | {"strict": None}}],
    ],
)
@pytest.mark.parametrize("field", ["tools", "functions"])
def test_tools_have_one_form(field, tools):
    assert parse(CHAT, **{field: tools}).tools == ({"type": "function", "function": ADD},)


@pytest.mark.parametrize(
    "calls",
    [
        [WRAPPED],
        [CALL],
        json.dumps([CALL]),
        [{"function": CALL}],
        [{"name": "add", "parameters": {"a": 2}}],
        [{"type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}],
        [{"name": "add", "arguments": {"a": 2, "b": None}}],
    ],
)
@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
def test_calls_have_one_form_and_need_no_content(calls, content):
    expected = {"role": "assistant", "content": "", "tool_calls": [WRAPPED]}
    assert called(tool_calls=calls, **content) == expected


def test_a_call_keeps_its_identifier_its_order_and_nulls_in_text():
    text = '{"b": null, "a": [1, 2.5, "x"]}'
    call = {"id": "abc", "function": {"arguments": text, "name": "add"}, "index": 0}
    message = called(tool_calls=[call])
    arguments = {"b": None, "a": [1, 2.5, "x"]}
    assert json.dumps(message["tool_calls"][0]) == json.dumps(
        {"type": "function", "id": "abc", "function": {"arguments": arguments, "name": "add"}}
    )
    row = parse([ASK, {"role": "assistant", "tool_calls": [call]}])
    assert row.unused == ("messages[].tool_calls[].index",)


def test_a_call_without_arguments_has_none():
    for call in (
        {"name": "now"},
        {"name": "now", "arguments": ""},
        {"name": "now", "arguments": {}},
    ):
        assert called(tool_calls=[call])["tool_calls"][0]["function"]["arguments"] == {}


@pytest.mark.parametrize("none", [[], None, "", "[]"])
def test_no_calls_are_no_field(none):
    assert called(content="ho", tool_calls=none) == CHAT[1]
    assert parse([ASK | {"tool_calls": none}, CHAT[1]]).messages == CHAT


def test_calls_in_sharegpt_and_their_results_have_the_roles_of_templates():
    calls = json.dumps([CALL, CALL])
    turns = [
        {"from": "human", "value": "hi"},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "observation", "value": "3"},
        {"from": "function_call", "value": calls},
        {"from": "gpt", "value": "ho"},
    ]
    messages = parse(turns, "conversations", tools=json.dumps([ADD])).messages
    assert [each["role"] for each in messages] == [
        "user",
        *["assistant", "tool", "assistant", "assistant"],
    ]
    assert messages[1] == {"role": "assistant", "content": "", "tool_calls": [WRAPPED]}
    assert messages[3]["tool_calls"] == [WRAPPED, WRAPPED]


def test_the_older_spelling_of_a_call_is_a_call():
    older = {"name": "add", "arguments": '{"a": 2}'}
    assert called(content=None, function_call=older)["tool_calls"] == [WRAPPED]
    assert parse([ASK, {"role": "function", "content": "4"}]).messages[1]["role"] == "tool"


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("a", '"messages" is a string'),
        ([], '"messages" is an empty list'),
        (["a"], '"messages[0]" is a string'),
        ([{"role": "user"}], '"messages[0]" lacks "content"; its fields: "role"'),
        ([{"from": "human"}], '"messages[0]" lacks "value"'),
        ([{"content": "a"}], 'lacks "role"; its fields: "content"'),
        ([{"value": "a"}], 'lacks "from"; its fields: "value"'),
        ([{"role": "user", "content": None}], '"messages[0].content" is null'),
        ([{"role": 1, "content": "a"}], '"messages[0].role" is a number'),
        ([{"role": "user", "content": {"a": 1}}], '"messages[0].content" is an object'),
        ([{"role": "user", "content": ["a"]}], '"messages[0].content[0]" is a string'),
        ([{"role": "user", "content": [{"text": "a"}]}], "is a part without type"),
        ([{"role": "user", "content": [{"type": "text"}]}], 'lacks "text"'),
        ([{"from": "bing", "value": "a"}], '"messages[0]" is from "bing"'),
        ([{"from": "gpt", "role": "user", "value": "a"}], 'is by "user" and from "gpt"'),
        ([ASK | {"value": "b"}], '"content" and "value", which differ'),
        ([ASK | {"tool_calls": [CALL]}], 'of the role "user" has "tool_calls"'),
        (
            [CHAT[1] | {"tool_calls": [CALL], "function_call": CALL}],
            '"tool_calls", "function_call"',
        ),
        ([CHAT[1] | {"tool_calls": "add"}], '"add", not JSON'),
        ([CHAT[1] | {"tool_calls": [1]}], '"messages[0].tool_calls[0]" is a number'),
        ([CHAT[1] | {"tool_calls": [{"a": 1}]}], "no name of a function"),
        ([CHAT[1] | {"tool_calls": [{"function": "add"}]}], '.function" is a string'),
        ([CHAT[1] | {"tool_calls": [CALL | {"arguments": "a=2"}]}], "not JSON"),
        ([CHAT[1] | {"tool_calls": [CALL | {"arguments": [2]}]}], 'arguments" is a list'),
        ([CHAT[1] | {"tool_calls": [CALL | {"arguments": '{"a":1,"a":2}'}]}], "there twice"),
        ([CHAT[1] | {"tool_calls": [CALL | {"parameters": {}}]}], '"arguments", "parameters"'),
        ([{"from": "function_call", "value": "add(2)"}], '"add(2)", not JSON'),
        ([{"from": "function_call", "value": "[]"}], "has no call in it"),
        ([{"from": "function_call"}], '"messages[0]" lacks "value"'),
    ],
)
def test_a_bad_message_is_named_with_what_was_found(messages, words):
    assert words in complaint(messages)


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        ({"name": "add"}, '"tools" is an object'),
        ([3], '"tools[0]" is a number'),
        ([{"type": "web_search"}], "no name of a function"),
        ("[{]", "not JSON"),
        ('[{"name": "a", "name": "b"}]', "there twice"),
        ([{"name": "a", "x": {"y": float("nan")}}], '"tools[0].x.y" is nan'),
    ],
)
def test_bad_tools_are_named(tools, words):
    assert words in complaint(CHAT, tools=tools)


def test_two_lists_of_tools_are_refused():
    assert '"tools", "functions"' in complaint(CHAT, tools=[ADD], functions=[ADD])
