r"""Tools: their calls are supervised, their results are not, and none of them is lost in silence.

Each case says by hand what a family generates for a call.
"""

from __future__ import annotations

import json

import pytest
from wild_build import (
    ADD,
    Family,
    assistant,
    calling,
    encode,
    encode_or_refuse,
    make_tokenizer,
    system,
    tool,
    user,
)
from wild_families import each_of
from wild_oracle import assert_supervised, supervised_texts, text_of
from wild_templates_ends import GLM_4, MISTRAL_3, MISTRAL_NEMO
from wild_templates_plain import (
    ALPACA,
    CHATML,
    COMMAND_R,
    DEEPSEEK_2,
    GEMMA_3,
    LLAMA_2,
    LLAMA_3,
    MISTRAL_1,
    ZEPHYR,
)
from wild_templates_thinking import QWEN_3, QWEN_3_THINKING, QWEN_25, QWEN_35, R1_DISTILL, SMOLLM_3

from jaxft.errors import DataError

CALL = calling("add", a=2, b=2)
RESULT = tool("4", name="add", tool_call_id="abcde1234")
ANSWER = assistant("four")

_HERMES = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 2}}\n</tool_call><|im_end|>'
_TAGS = (
    "<tool_call>\n<function=add>\n<parameter=a>\n2\n</parameter>\n"
    "<parameter=b>\n2\n</parameter>\n</function>\n</tool_call><|im_end|>"
)
_MISTRAL = '[TOOL_CALLS][{"name": "add", "arguments": {"a": 2, "b": 2}, "id": "abcde1234"}]</s>'
_EMPTY = "<think>\n\n</think>\n\n"

# A family, the call as it is generated, the answer as it is generated after the result.
CASES = [
    (LLAMA_3, '{"name": "add", "parameters": {"a": 2, "b": 2}}<|eot_id|>', "four<|eot_id|>"),
    (QWEN_25, _HERMES, "four<|im_end|>"),
    (QWEN_3, _EMPTY + _HERMES, _EMPTY + "four<|im_end|>"),
    (QWEN_3_THINKING, _EMPTY[8:] + _HERMES, _EMPTY[8:] + "four<|im_end|>"),
    (QWEN_35, _EMPTY[8:] + _TAGS, _EMPTY[8:] + "four<|im_end|>"),
    (MISTRAL_3, _MISTRAL, " four</s>"),
    (MISTRAL_NEMO, _MISTRAL, "four</s>"),
    (GLM_4, 'add\n{"a": 2, "b": 2}<|observation|>', "\nfour<|user|>"),
]
each_case = pytest.mark.parametrize(
    ("family", "call", "answer"), CASES, ids=lambda value: getattr(value, "name", "")
)


@each_case
def test_a_call_is_supervised_and_its_result_is_not(family: Family, call: str, answer: str):
    chat = (user("2 + 2?"), CALL, RESULT, ANSWER)
    encoded = encode(family, *chat, tools=[ADD])
    assert_supervised(family, chat, encoded, {1: call, 3: answer}, tools=[ADD])
    for text in text_of(make_tokenizer(family), encoded):
        assert "Add two numbers." in text


@each_case
def test_calls_stand_anywhere_in_a_chat(family: Family, call: str, answer: str):
    chat = (
        user("1 + 3?"),
        ANSWER,
        user("2 + 2?"),
        CALL,
        RESULT,
        ANSWER,
        user("again"),
        CALL,
        RESULT,
        ANSWER,
    )
    replies = {1: answer, 3: call, 5: answer, 7: call, 9: answer}
    encoded = encode(family, *chat, tools=[ADD])
    assert_supervised(family, chat, encoded, replies, tools=[ADD])
    if family in (MISTRAL_3, MISTRAL_NEMO):
        return
    chat = (system("Be brief."), *chat)
    replies = {index + 1: reply for index, reply in replies.items()}
    encoded = encode(family, *chat, tools=[ADD])
    assert_supervised(family, chat, encoded, replies, tools=[ADD])


@each_of([MISTRAL_3, MISTRAL_NEMO])
def test_a_system_message_that_generation_is_not_given_after_a_result_is_not_supervised(
    family: Family,
):
    """Mistral's template writes it only where a question is last, so not behind a result."""
    chat = (system("Be brief."), user("2 + 2?"), CALL, RESULT, ANSWER)
    call, answer = next((call, answer) for each, call, answer in CASES if each is family)
    encoded = encode(family, *chat, tools=[ADD])
    assert_supervised(family, chat, encoded, {2: call, 4: answer}, tools=[ADD])
    first, second = text_of(make_tokenizer(family), encoded)
    assert "Be brief." in first
    assert "Be brief." not in second


@each_case
def test_a_call_may_be_the_last_turn(family: Family, call: str, answer: str):
    chat = (user("2 + 2?"), CALL)
    encoded = encode(family, *chat, tools=[ADD])
    if family is GLM_4:  # nothing in the text says which token stops it
        (text,) = supervised_texts(make_tokenizer(family), encoded)
        words, _, stop = text.rpartition("<|")
        assert words == call.removesuffix("<|observation|>")
        assert f"<|{stop}" in family.stops
        return
    assert_supervised(family, chat, encoded, {1: call}, tools=[ADD])


@each_case
def test_tools_without_a_call_change_the_prompt_alone(family: Family, call: str, answer: str):
    chat = (user("2 + 2?"), ANSWER)
    encoded = encode(family, *chat, tools=[ADD])
    assert_supervised(family, chat, encoded, {1: answer}, tools=[ADD])
    (text,) = text_of(make_tokenizer(family), encoded)
    assert "Add two numbers." in text


def test_two_calls_and_two_results_are_in_order():
    one, two = calling("add", a=1), calling("add", a=3)
    both = {**one, "tool_calls": [*one["tool_calls"], *two["tool_calls"]]}
    chat = (user("?"), both, RESULT, tool("5", tool_call_id="abcde1234"), ANSWER)
    hermes = "\n".join(_HERMES[:-10].replace('{"a": 2, "b": 2}', f'{{"a": {n}}}') for n in (1, 3))
    encoded = encode(QWEN_25, *chat, tools=[ADD])
    replies = {1: f"{hermes}<|im_end|>", 4: "four<|im_end|>"}
    assert_supervised(QWEN_25, chat, encoded, replies, tools=[ADD])


@pytest.mark.parametrize("words", ["let me see", " let me see ", "x\ny"])
def test_words_beside_a_call_are_supervised_or_reported(words: str):
    message = {**CALL, "content": words}
    for family, _, answer in CASES:
        chat = (user("2 + 2?"), message, RESULT, ANSWER)
        encoded = encode(family, *chat, tools=[ADD])
        first, second = supervised_texts(make_tokenizer(family), encoded)
        assert second == answer
        assert "add" in first
        assert (words.strip() in first) != ("words_left_out" in encoded.notes)


def test_a_thought_before_a_call_is_supervised():
    message = {**CALL, "reasoning_content": "I add"}
    chat = (user("2 + 2?"), message, RESULT, ANSWER)
    thought = "<think>\nI add\n</think>\n\n" + _HERMES
    assert_supervised(
        QWEN_3,
        chat,
        encode(QWEN_3, *chat, tools=[ADD]),
        {1: thought, 3: _EMPTY + "four<|im_end|>"},
        tools=[ADD],
    )
    without = encode(QWEN_3, *chat, tools=[ADD], train_on_reasoning=False)
    texts = supervised_texts(make_tokenizer(QWEN_3), without)
    assert texts[0].removeprefix("<think>\nI add\n</think>").lstrip() in (_HERMES, thought)
    assert texts == [_HERMES, "four<|im_end|>"]


without_tools = each_of(
    [CHATML, ALPACA, COMMAND_R, DEEPSEEK_2, GEMMA_3, LLAMA_2, MISTRAL_1, SMOLLM_3, ZEPHYR]
)


@without_tools
def test_a_call_that_a_template_has_no_place_for_is_refused(family: Family):
    with pytest.raises(DataError, match=r"^f\.jsonl:7: "):
        encode(family, user("2 + 2?"), CALL)


@without_tools
def test_tools_that_a_template_has_no_place_for_are_refused_or_reported(family: Family):
    chat = (user("2 + 2?"), ANSWER)
    encoded = encode_or_refuse(family, *chat, tools=[ADD])
    assert encoded is None or encoded.notes != encode(family, *chat).notes


def test_a_call_is_written_where_the_template_asks_for_null_beside_it():
    """R1's template writes a call where the content is null, and drops it where it is "" ."""
    begin, end = R1_DISTILL.tokens[4:6]
    encoded = encode(R1_DISTILL, user("2 + 2?"), CALL)
    (text,) = supervised_texts(make_tokenizer(R1_DISTILL), encoded)
    assert str(begin) in text
    assert json.dumps({"a": 2, "b": 2}) in text
    assert text.endswith(f"{end}{R1_DISTILL.eos}")
