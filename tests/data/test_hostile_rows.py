"""Rows that mean harm, or that Python and Parquet fill with their own types."""

from __future__ import annotations

import datetime
import decimal
import json
import uuid

import hypothesis
import numpy as np
import pytest
from data_builders import CHAT, VALUES
from hypothesis import strategies as st

from jaxft.data.rows import flags, plain, shapes
from jaxft.data.rows.row import Dialogue, RowPlace, Text, TextCompletion
from jaxft.errors import DataError

PLACE = RowPlace("bad.jsonl", 7)


def parse(value, columns=None):
    return shapes.parse_row(value, PLACE, columns or {})


def complaint(value) -> str:
    with pytest.raises(DataError) as caught:
        parse(value)
    return str(caught.value)


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


def looped():
    value = {"name": "add"}
    value["self"] = value
    return value


CYCLE = looped()
HOSTILE_TEXTS = st.text(st.characters(codec=None), max_size=8)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.just(10**400),
    st.floats(),
    HOSTILE_TEXTS,
    st.sampled_from(["user", "assistant", "gpt", "true", "[]", "{}", "[{", '{"name": "a"}']),
    st.binary(max_size=4),
    st.dates(),
    st.decimals(),
    st.sampled_from(
        [np.int8(3), np.float32("nan"), np.bool_(True), np.datetime64("NaT", "s"), b"\xff"]
    ),
    st.sampled_from([deep(3), deep(200), "[" * 5000, CYCLE, object(), {1}, np.zeros((2, 2))]),
)
KNOWN = """role content from value type text tool_calls function name id arguments thinking
loss_mask"""
INNER = st.sampled_from([*KNOWN.split(), *flags.MARKS])


def objects_of(names, values):
    return st.dictionaries(st.one_of(names, HOSTILE_TEXTS, st.integers()), values, max_size=4)


VALUE = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), objects_of(INNER, inner)),
    max_leaves=8,
)
NAMES = st.sampled_from([*sorted(shapes.FIELDS), "id", "loss_weight", "metadata", "chosen_ids"])
SHAPES = st.sampled_from([{}, *VALUES.values()])


def assert_row_or_clear_error(value, columns=None):
    """Assert that a value is a row that can be written, or refused by its place."""
    try:
        row = parse(value, columns)
    except DataError as error:
        found, remedy = error.found, error.remedy
    else:
        assert_can_be_written(row)
        return
    assert found.startswith("bad.jsonl:7: ")
    assert (found + remedy).isprintable()


@hypothesis.example(base={"messages": CHAT}, row={"kto_tag": np.zeros((2, 2))})
@hypothesis.given(base=SHAPES, row=objects_of(NAMES, VALUE))
def test_a_hostile_row_is_a_row_or_an_error_that_names_its_place(base, row):
    assert_row_or_clear_error(base | row)


@hypothesis.given(
    messages=st.lists(
        st.builds(
            lambda known, more: known | more,
            st.sampled_from([*CHAT, {"from": "gpt"}, {"from": "function_call", "value": "[]"}]),
            objects_of(INNER, VALUE),
        ),
        min_size=1,
        max_size=3,
    ),
    name=st.sampled_from(["messages", "conversations", "completion"]),
)
def test_a_hostile_chat_is_a_row_or_an_error_that_names_its_place(messages, name):
    prompt = {"prompt": CHAT[:1]} if name == "completion" else {}
    assert_row_or_clear_error({name: messages} | prompt)


@hypothesis.given(value=VALUE, columns=st.dictionaries(NAMES, st.sampled_from("ab"), max_size=3))
def test_hostile_columns_are_a_row_or_an_error(value, columns):
    assert_row_or_clear_error({"a": value, "b": "b"}, columns)


def assert_can_be_written(row):
    """Assert that what leaves for the tokenizer and the template is plain text and numbers."""
    "".join(row.unused).encode("utf-8")
    assert all(name.isprintable() for name in row.unused)
    if isinstance(row, Dialogue):
        written = [row.messages, list(row.tools), row.template_kwargs]
        assert json.loads(json.dumps(written, allow_nan=False, ensure_ascii=False)) == written
        json.dumps(written, ensure_ascii=False).encode("utf-8")
        assert all(isinstance(each["content"], str) for each in row.messages)
        assert all(row.messages[index]["role"] == "assistant" for index in row.skipped)
    elif isinstance(row, Text | TextCompletion):
        text = row.text if isinstance(row, Text) else row.prompt + row.completion
        text.encode("utf-8")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"question": b"\xff", "answer": "a"}, '"question" is bytes that are not UTF-8, at byte 0'),
        ({"question": datetime.timedelta(1), "answer": "a"}, '"question" is a timedelta'),
        ({"question": decimal.Decimal(3), "answer": "a"}, '"question" is a Decimal'),
        ({"text": ["a"]}, '"text" is a list'),
        ({"text": {"a": "\ud800"}}, '"text" is an object'),
        ({"a\nb\x1b[2J\ud800": 1}, '"a\\nb\\x1b[2J\\ud800"'),
        ({"x" * 10_000: 1}, '"' + "x" * 57 + '..."'),
        ({"messages": {"role": "user"}}, '"messages" is an object'),
        ({"messages": json.dumps(CHAT)}, '"messages" is a string'),
        ({"messages": [None]}, '"messages[0]" is null'),
        ({"messages": [[]]}, '"messages[0]" is an empty list'),
        ({"messages": [{"role": "user", "content": "a\ud83d"}]}, "unpaired surrogate"),
        ({"messages": [{"role": "us\udc00er", "content": "a"}]}, "unpaired surrogate"),
        (
            {"messages": [CHAT[0] | {"name": {"a": {1: 2}}}]},
            'name in "messages[0].name.a" is a num',
        ),
        ({"messages": [CHAT[0] | {"name": float("inf")}]}, '"messages[0].name" is inf'),
        ({"messages": [CHAT[0] | {"name": 10**400}]}, "a number of more than 64 bits"),
        ({"messages": [CHAT[0] | {"name": object()}]}, '"messages[0].name" is a object'),
        (VALUES["messages"] | {"tools": [CYCLE]}, "nested more than 100 deep"),
        (VALUES["messages"] | {"tools": deep(5000)}, "nested more than 100 deep"),
        (VALUES["messages"] | {"tools": "[" * 100_000}, "not JSON"),
        (VALUES["messages"] | {"tools": "[" + "9" * 5000 + "]"}, "not JSON"),
        (VALUES["messages"] | {"tools": [decimal.Decimal("sNaN")]}, '"tools[0]" is nan'),
        (VALUES["messages"] | {"tools": "[NaN]"}, '"tools[0]" is nan'),
        (VALUES["messages"] | {"tools": '[{"name": "\\ud800"}]'}, "unpaired surrogate"),
        (VALUES["messages"] | {"chat_template_kwargs": "{"}, "not JSON"),
        (VALUES["messages"] | {"train_turns": float("inf")}, '"train_turns" is inf'),
        ({"input_ids": "[5, 6]"}, "not a flat list"),
        ({"input_ids": {"a": 1}}, "not a flat list"),
        ({"input_ids": [float("inf")]}, "not a flat list"),
        ({"input_ids": deep(100)}, "not a flat list"),
    ],
)
def test_a_hostile_value_is_named_with_its_place(value, words):
    message = complaint(value)
    assert message.startswith("bad.jsonl:7: ")
    assert words in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (datetime.datetime(2026, 1, 2, 3, 4), "2026-01-02T03:04:00"),
        (datetime.time(3, 4), "03:04:00"),
        (np.datetime64("2026-01-02"), "2026-01-02"),
        (np.array(["2026-01-02"], "datetime64[ns]"), ["2026-01-02T00:00:00.000000000"]),
        (decimal.Decimal("1.50"), 1.5),
        (decimal.Decimal("3"), 3),
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (b"caf\xc3\xa9", "café"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ((1, np.array([[2.0]])), [1, [[2.0]]]),
    ],
)
def test_values_of_python_and_parquet_become_plain(value, expected):
    found = plain.plain(value, "x", PLACE)
    assert (found, type(found)) == (expected, type(expected))
    call = {"name": "add", "arguments": {"a": value}}
    row = parse({"messages": [CHAT[0], {"role": "assistant", "tool_calls": [call]}]})
    assert row.messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": expected}
    json.dumps(row.messages)


def test_dates_and_bytes_in_texts_become_text():
    row = parse({"question": datetime.date(2026, 1, 2), "answer": b"caf\xc3\xa9"})
    assert [each["content"] for each in row.messages] == ["2026-01-02", "café"]


@pytest.mark.parametrize("null", [None, float("nan"), np.float32("nan"), decimal.Decimal("NaN")])
def test_what_pandas_writes_for_nothing_is_null(null):
    more = dict.fromkeys(["text", "system", "input_ids", "tools", "history", "id"], null)
    assert parse(VALUES["question"] | more) == parse(VALUES["question"])
    named = [each | {"name": null, "tool_calls": null} for each in CHAT]
    assert parse({"messages": named}) == parse({"messages": CHAT})
    missing = {"messages": [{"role": "user", "content": null}]}
    assert '"messages[0].content" is null' in complaint(missing)


def test_a_data_frame_of_messages_is_read():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"messages": [np.array(CHAT, object)], "day": [pandas.NaT]})
    row = parse(frame.to_dict("records")[0])
    assert (list(row.messages), row.unused) == (CHAT, ())
