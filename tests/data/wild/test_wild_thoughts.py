r"""Thoughts: supervised where they are generated, and not where they are not wanted.

Each case says by hand what the model generates from the end of its generation prompt on.
"""

from __future__ import annotations

import pytest
from wild_build import Family, assistant, encode, make_tokenizer, system, user
from wild_families import each_of
from wild_oracle import assert_supervised, supervised_texts, text_of
from wild_templates_plain import CHATML, LLAMA_3
from wild_templates_thinking import (
    QWEN_3,
    QWEN_3_THINKING,
    QWEN_3_WITHOUT,
    QWEN_35,
    R1_DISTILL,
    SMOLLM_3,
)

FIELD = assistant("four", reasoning_content="2 and 2")
INLINE = assistant("<think>\n2 and 2\n</think>\n\nfour")
HEADLESS = assistant("2 and 2\n</think>\n\nfour")  # as a model gives it whose prompt opens <think>
NONE = assistant("four")

WHOLE = "<think>\n2 and 2\n</think>\n\nfour<|im_end|>"
EMPTY = "<think>\n\n</think>\n\nfour<|im_end|>"
OPENED = "2 and 2\n</think>\n\nfour<|im_end|>"
OPENED_EMPTY = "\n</think>\n\nfour<|im_end|>"
R1_WHOLE = OPENED.replace("<|im_end|>", R1_DISTILL.eos)
R1_EMPTY = OPENED_EMPTY.replace("<|im_end|>", R1_DISTILL.eos)

# A family, a message, and what is generated for it.
CASES = [
    (QWEN_3, FIELD, WHOLE),
    (QWEN_3, INLINE, WHOLE),
    (QWEN_3, HEADLESS, WHOLE),
    (QWEN_3, NONE, EMPTY),
    (QWEN_3_WITHOUT, NONE, "four<|im_end|>"),
    (QWEN_3_THINKING, FIELD, OPENED),
    (QWEN_3_THINKING, INLINE, OPENED),
    (QWEN_3_THINKING, HEADLESS, OPENED),
    (QWEN_3_THINKING, NONE, OPENED_EMPTY),
    (QWEN_35, FIELD, OPENED),
    (QWEN_35, INLINE, OPENED),
    (QWEN_35, HEADLESS, OPENED),
    (QWEN_35, NONE, OPENED_EMPTY),
    (R1_DISTILL, FIELD, R1_WHOLE),
    (R1_DISTILL, INLINE, R1_WHOLE),
    (R1_DISTILL, HEADLESS, R1_WHOLE),
    (R1_DISTILL, NONE, R1_EMPTY),
    (SMOLLM_3, INLINE, WHOLE),
    (SMOLLM_3, NONE, "four<|im_end|>"),
    (CHATML, INLINE, WHOLE),
]
each_case = pytest.mark.parametrize(
    ("family", "message", "generated"), CASES, ids=lambda value: getattr(value, "name", None)
)


@each_case
def test_a_thought_is_supervised_as_it_is_generated(family: Family, message, generated):
    chat = (user("2 + 2?"), message)
    assert_supervised(family, chat, encode(family, *chat), {1: generated})


@each_case
@pytest.mark.parametrize("other", [FIELD, INLINE, NONE], ids=["field", "inline", "none"])
def test_every_turn_of_a_chat_has_its_thought(family: Family, message, generated, other):
    found = [each for name, one, each in CASES if name is family and one is other]
    if not found:
        pytest.skip("this family leaves the field out")
    chat = (system("Be brief."), user("1 + 3?"), other, user("2 + 2?"), message)
    encoded = encode(family, *chat)
    assert_supervised(family, chat, encoded, {2: found[0], 4: generated})
    turned = (*chat[:2], message, chat[3], other, user("3?"), NONE)
    none = (
        next(each for name, one, each in CASES if name is family and one is NONE)
        if (family is not CHATML)
        else "four<|im_end|>"
    )
    assert_supervised(family, turned, encode(family, *turned), {2: generated, 4: found[0], 6: none})


@each_case
def test_without_reasoning_the_answer_and_its_stop_are_supervised(
    family: Family, message, generated
):
    chat = (user("1 + 3?"), message, user("2 + 2?"), message)
    tokenizer = make_tokenizer(family)
    encoded = encode(family, *chat, train_on_reasoning=False)
    stop = family.closing
    assert supervised_texts(tokenizer, encoded) == [f"four{stop}"] * 2
    # The tokens are the same; the thought is there and is not supervised.
    with_thoughts = encode(family, *chat)
    assert text_of(tokenizer, encoded) == text_of(tokenizer, with_thoughts)


def test_thoughts_of_earlier_turns_are_not_in_the_prompts_of_later_ones():
    chat = (user("1 + 3?"), INLINE, user("2 + 2?"), NONE)
    for family in (QWEN_3, QWEN_3_THINKING, QWEN_35, R1_DISTILL):
        first, second = text_of(make_tokenizer(family), encode(family, *chat))
        assert "2 and 2" in first
        assert "2 and 2" not in second


def test_cutting_is_counted():
    chat = (user("1 + 3?"), INLINE, user("2 + 2?"), NONE)
    assert "cut_into_replies" in encode(QWEN_3, *chat).notes
    assert "cut_into_replies" not in encode(QWEN_3, *chat[:2]).notes
    assert "cut_into_replies" in encode(QWEN_3_WITHOUT, user("a"), NONE, user("b"), NONE).notes
    assert "cut_into_replies" not in encode(CHATML, *chat).notes


def test_a_thought_that_the_template_has_no_place_for_is_reported():
    for family in (CHATML, LLAMA_3, SMOLLM_3):
        for field in ("reasoning_content", "reasoning", "thinking"):
            message = assistant("four", **{field: "2 and 2"})
            encoded = encode(family, user("2 + 2?"), message)
            assert "reasoning_left_out" in encoded.notes
            texts = supervised_texts(make_tokenizer(family), encoded)
            assert texts == [f"four{family.closing}"]
    for family in (QWEN_3, QWEN_35, R1_DISTILL):
        assert "reasoning_left_out" not in encode(family, user("2 + 2?"), FIELD).notes


@pytest.mark.parametrize("field", ["reasoning", "thinking"])
def test_a_thought_under_another_name_is_supervised_or_reported(field: str):
    for family in (QWEN_3, QWEN_3_THINKING, QWEN_35, R1_DISTILL):
        message = assistant("four", **{field: "2 and 2"})
        encoded = encode(family, user("2 + 2?"), message)
        (text,) = supervised_texts(make_tokenizer(family), encoded)
        assert ("2 and 2" in text) != ("reasoning_left_out" in encoded.notes)


def test_a_thought_where_thinking_is_off_is_not_written_twice():
    for message in (FIELD, INLINE):
        encoded = encode(QWEN_3_WITHOUT, user("2 + 2?"), message)
        (text,) = text_of(make_tokenizer(QWEN_3_WITHOUT), encoded)
        assert text.count("</think>") == 1
        assert ("2 and 2" in text) != ("reasoning_left_out" in encoded.notes)


@each_of([QWEN_3, QWEN_35])
def test_a_row_may_turn_thinking_off_and_the_recipe_too(family: Family):
    chat = (user("1 + 3?"), NONE, user("2 + 2?"), NONE)
    off = {"enable_thinking": False}
    tokenizer = make_tokenizer(family)
    for encoded in (
        encode(family, *chat, template_kwargs=off),
        encode(family._replace(kwargs=off), *chat),
        encode(family._replace(kwargs={"enable_thinking": True}), *chat, template_kwargs=off),
    ):
        assert_supervised(family, chat, encoded, dict.fromkeys((1, 3), "four<|im_end|>"), **off)
        assert supervised_texts(tokenizer, encoded) == ["four<|im_end|>"] * 2


def test_the_mode_of_smollm_may_stand_in_the_system_message():
    chat = (system("Be brief. /no_think"), user("2 + 2?"), NONE, user("3?"), NONE)
    encoded = encode(SMOLLM_3, *chat)
    assert_supervised(SMOLLM_3, chat, encoded, dict.fromkeys((2, 4), "four<|im_end|>"))
    assert len(encoded.examples) == 1


@pytest.mark.parametrize(
    "content",
    [
        "a <think> in the middle of </think> words",
        "</think>",
        "<think>",
        "<think></think>",
        "<think>only a thought</think>",
        "<think>one</think> two <think>three</think> four",
        "  <think>\n spaced \n</think>  four  ",
        "see `</think>` in code",
    ],
)
def test_odd_thoughts_are_supervised_after_the_prompt_or_reported(content: str):
    """Whatever a template makes of them: the prompt is exact, and the reply ends with a stop."""
    for family in (QWEN_3, QWEN_3_THINKING, QWEN_35, R1_DISTILL, SMOLLM_3, CHATML, QWEN_3_WITHOUT):
        tokenizer = make_tokenizer(family)
        chat = (user("2 + 2?"), assistant(content), user("3?"), assistant(content))
        encoded = encode(family, *chat)
        runs = supervised_texts(tokenizer, encoded)
        assert len(runs) == 2
        for run in runs:
            assert run.endswith(family.closing)
            if not {"reasoning_left_out", "words_left_out"} & set(encoded.notes):
                assert _without_tags(content) in _without_tags(run)


def _without_tags(text: str) -> str:
    """Return a text's letters: what an empty thought, or a closed one, adds to it is no word."""
    return "".join(text.replace("<think>", "").replace("</think>", "").split())
