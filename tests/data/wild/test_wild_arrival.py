"""What a row says arrives in the text, or the row is refused with its place, or a note says so."""

from __future__ import annotations

import pytest
from wild_build import (
    Family,
    assistant,
    encode,
    encode_or_refuse,
    make_tokenizer,
    system,
    tool,
    user,
)
from wild_families import FAMILIES, each_family
from wild_oracle import text_of
from wild_templates_ends import MISTRAL_3
from wild_templates_plain import ALPACA, CHATML, DEEPSEEK_2, GEMMA_2, LLAMA_2, LLAMA_3
from wild_templates_thinking import QWEN_25, R1_DISTILL, SMOLLM_3

from jaxft.errors import DataError


def refusal(family: Family, *messages, **further) -> str:
    with pytest.raises(DataError) as caught:
        encode(family, *messages, **further)
    found, remedy = str(caught.value).split("\n")
    assert found.startswith("f.jsonl:7: ")
    assert remedy
    return found


def written(family: Family, *messages, **further) -> str:
    """Return all that is written of a chat, or "" where the row is refused with its place."""
    encoded = encode_or_refuse(family, *messages, **further)
    return "".join(text_of(make_tokenizer(family), encoded)) if encoded else ""


@each_family
@pytest.mark.parametrize("role", ["developer", "tool", "system", "critic", "ipython", "function"])
def test_words_of_any_role_anywhere_arrive_or_are_refused(family: Family, role: str):
    for at in range(4):
        chat = [user("2 + 2?"), assistant("four"), user("3?"), assistant("five")]
        chat.insert(at, {"role": role, "content": "Palimpsest", "tool_call_id": "abcde1234"})
        text = written(family, *chat)
        assert not text or "Palimpsest" in text


@each_family
def test_words_that_stand_elsewhere_too_are_not_mistaken_for_arrived(family: Family):
    """A message whose letters occur by chance in others: is it there as often as it is said?"""
    for words in ("4", "2", "a", "four", "user", "2 + 2?"):
        result = tool(words, tool_call_id="abcde1234")
        before = (user("2 + 2?"), assistant("four"))
        behind = (user("4?"), assistant("four user 2 + 2?"))
        text = written(family, *before, result, *behind)
        if text:
            assert text.count(words) > written(family, *before, *behind).count(words)


def test_a_role_without_a_place_is_named():
    chat = (user("2 + 2?"), assistant("four"))
    for family in (ALPACA, DEEPSEEK_2, R1_DISTILL):
        for role in ("developer", "tool", "critic"):
            if family is ALPACA or (family is R1_DISTILL and role == "tool"):
                continue
            found = refusal(family, {"role": role, "content": "Be brief."}, *chat)
            assert role in found
            assert "message 0" in found


def test_what_a_template_raises_is_quoted():
    chat = (user("2 + 2?"), assistant("four"))
    assert "there is no role system" in refusal(GEMMA_2, system("Be brief."), *chat)
    assert "there is no role critic" in refusal(
        MISTRAL_3, {"role": "critic", "content": "a"}, *chat
    )
    assert "take turns" in refusal(LLAMA_2, *chat, assistant("five"))


def test_results_that_are_written_as_json_have_arrived():
    result = 'a "quoted" word\nand\ta tab \\ \ud55c\uad6d'
    text = written(LLAMA_3, user("2 + 2?"), tool(result), assistant("four"))
    assert 'a \\"quoted\\" word\\nand\\ta tab' in text


def test_a_system_message_in_the_middle_is_written_or_refused():
    for family in FAMILIES:
        chat = (user("2 + 2?"), assistant("four"), system("Palimpsest"), user("3?"))
        text = written(family, *chat, assistant("five"))
        assert not text or "Palimpsest" in text


def test_modes_in_a_system_message_are_not_missed_in_its_words():
    """SmolLM3 takes /no_think out of the words; what is left of them arrives."""
    text = written(SMOLLM_3, system("Be brief. /no_think"), user("2 + 2?"), assistant("four"))
    assert "Be brief." in text
    text = written(SMOLLM_3, system("/no_think"), user("2 + 2?"), assistant("four"))
    assert "Reasoning Mode: /no_think" in text


@each_family
def test_a_chat_without_a_reply_teaches_nothing_and_is_not_refused(family: Family):
    encoded = encode(family, user("2 + 2?"))
    assert not any(example.loss_mask.any() for example in encoded.examples)


@each_family
def test_a_reply_without_a_question_is_refused(family: Family):
    assert "first message" in refusal(family, assistant("four"), user("2 + 2?"))


@each_family
def test_a_template_that_fails_is_an_error_with_the_place(family: Family):
    broken = family._replace(template="{{ messages[9].content.nothing() }}")
    refusal(broken, user("2 + 2?"), assistant("four"))
    refusal(family._replace(template="{% if %}"), user("2 + 2?"), assistant("four"))


def test_further_fields_of_messages_and_kwargs_do_no_harm():
    message = assistant("four", name="Ann", weight=1, id="x", refusal=None)
    for family in (CHATML, QWEN_25):
        plain = encode(family, user("2 + 2?"), assistant("four"))
        named = encode(family, user("2 + 2?"), message, template_kwargs={"unheard_of": [1]})
        assert plain.examples[0].input_ids.tolist() == named.examples[0].input_ids.tolist()
        assert plain.examples[0].loss_mask.tolist() == named.examples[0].loss_mask.tolist()
