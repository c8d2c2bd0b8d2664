"""One exchange, written as rows of every shape, gives the same tokens and the same targets."""

from __future__ import annotations

import pytest
from wild_build import ADD, Family, assistant, encoding, user
from wild_families import each_family, each_of
from wild_oracle import assert_supervised
from wild_templates_ends import MISTRAL_3, MISTRAL_NEMO
from wild_templates_thinking import QWEN_3, QWEN_25, R1_DISTILL

from jaxft.data.examples import tokens
from jaxft.data.examples.tokens import Encoded
from jaxft.data.rows import shapes
from jaxft.data.rows.row import RowPlace


def encoded_value(family: Family, value: object) -> Encoded:
    """Return what becomes of a row as files have it."""
    return tokens.encode_row(shapes.parse_row(value, RowPlace("f", 1)), encoding(family))


def assert_equal(left: Encoded, right: Encoded) -> None:
    assert left[1:] == right[1:]
    for one, other in zip(left.examples, right.examples, strict=True):
        assert one.input_ids.tolist() == other.input_ids.tolist()
        assert one.loss_mask.tolist() == other.loss_mask.tolist()


@each_family
@pytest.mark.parametrize("answer", ["four", " four\n", "{{ a }}", "\ud55c\uad6d"])
def test_one_exchange_in_every_form_is_the_same(family: Family, answer: str):
    """Messages, prompt and completion, sharegpt, alpaca, question and answer."""
    question = "2 + 2?"
    chat = [user(question), assistant(answer)]
    values = (
        {"messages": chat},
        {"prompt": chat[:1], "completion": chat[1:]},
        {
            "conversations": [
                {"from": "human", "value": question},
                {"from": "gpt", "value": answer},
            ]
        },
        {"instruction": question, "input": "", "output": answer},
        {"question": question, "answer": answer},
    )
    first, *others = [encoded_value(family, value) for value in values]
    assert_supervised(family, chat, first)
    for other in others:
        assert_equal(first, other)


@each_family
def test_a_system_message_beside_the_chat_is_one_in_it(family: Family):
    if not family.takes_system:
        pytest.skip("this family refuses a system message")
    chat = [user("2 + 2?"), assistant("four")]
    inside = {"messages": [{"role": "system", "content": "Be brief."}, *chat]}
    turns = [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "four"}]
    first = encoded_value(family, inside)
    for value in (
        {"instruction": "2 + 2?", "input": "", "output": "four", "system": "Be brief."},
        {"conversations": turns, "system": "Be brief."},
        {"conversations": [{"from": "system", "value": "Be brief."}, *turns]},
    ):
        assert_equal(first, encoded_value(family, value))


@each_of([QWEN_25, QWEN_3, MISTRAL_3, MISTRAL_NEMO])
def test_calls_of_tools_are_the_same_as_objects_and_as_text(family: Family):
    arguments = {"a": 2, "b": 2}
    values = []
    for content in (None, ""):
        for written in (arguments, '{"a": 2, "b": 2}'):
            call = {
                "id": "abcde1234",
                "type": "function",
                "function": {"name": "add", "arguments": written},
            }
            message = {"role": "assistant", "content": content, "tool_calls": [call]}
            values.append({"messages": [user("2 + 2?"), message], "tools": [ADD]})
    first, *others = [encoded_value(family, value) for value in values]
    for other in others:
        assert_equal(first, other)


@each_family
def test_an_empty_list_of_calls_is_no_call(family: Family):
    plain = [user("2 + 2?"), assistant("four"), user("3?"), assistant("five")]
    listed = [{**message, "tool_calls": []} for message in plain]
    nulled = [{**message, "tool_calls": None, "name": None} for message in plain]
    first = encoded_value(family, {"messages": plain})
    assert_equal(first, encoded_value(family, {"messages": listed}))
    assert_equal(first, encoded_value(family, {"messages": nulled}))


def test_a_call_with_null_content_is_written_where_the_template_asks_for_null():
    call = {"id": "abcde1234", "type": "function", "function": {"name": "add", "arguments": {}}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    encoded = encoded_value(R1_DISTILL, {"messages": [user("2 + 2?"), message]})
    (example,) = encoded.examples
    tokenizer = encoding(R1_DISTILL).tokenizer
    supervised = example.input_ids[example.loss_mask == 1].tolist()
    assert "add" in tokenizer.decode(supervised)
