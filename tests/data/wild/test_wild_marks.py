"""Templates that mark what the assistant generates: what is supervised is what they mark.

The oracle is transformers' own mask, cut to what is generated: from the end of a generation prompt
to the stop. Marks that end with the words of a reply take its stop along.
"""

from __future__ import annotations

import numpy as np
import pytest
from wild_build import Family, assistant, encode, make_tokenizer, system, user
from wild_families import each_of
from wild_oracle import render, supervised_texts
from wild_templates_plain import CHATML
from wild_templates_thinking import SMOLLM_3

CHAT = (
    system("Be brief."),
    user("2 + 2?"),
    assistant("four"),
    user("3?"),
    assistant("<think>\nby heart\n</think>\n\nfive"),
)

_HEAD = "{{ '<|im_start|>' ~ m.role ~ '\n' }}"
_WORDS = "{{ m.content }}"
_STOP = "{{ '<|im_end|>' }}"
_LINE = "{{ '\n' }}"
_ON, _OFF = "{% generation %}", "{% endgeneration %}"
_LAST_ON, _LAST_OFF = "{% if loop.last %}" + _ON, _OFF + "{% endif %}"


def marking(name: str, *reply: str) -> Family:
    """Return ChatML with another way to write the assistant's turns."""
    return CHATML._replace(
        name=name,
        template=(
            "{% for m in messages %}{% if m.role == 'assistant' %}"
            + "".join(reply)
            + "{% else %}"
            + "".join((_HEAD, _WORDS, _STOP, _LINE))
            + "{% endif %}{% endfor %}{% if add_generation_prompt %}"
            "{{ '<|im_start|>assistant\n' }}{% endif %}"
        ),
    )


MARKED = [
    SMOLLM_3,
    SMOLLM_3._replace(name="SmolLM3, not thinking", kwargs={"enable_thinking": False}),
    marking("the whole turn", _ON, _HEAD, _WORDS, _STOP, _LINE, _OFF),
    marking("words and stop", _HEAD, _ON, _WORDS, _STOP, _OFF, _LINE),
    marking("words and line", _HEAD, _ON, _WORDS, _STOP, _LINE, _OFF),
    marking("other spelling", _HEAD, "{%- generation -%}", _WORDS, _STOP, "{%- endgeneration -%}"),
]


@each_of(MARKED)
@pytest.mark.parametrize("chat", [CHAT[:3], CHAT, CHAT[1:]], ids=["one", "two", "no system"])
def test_what_is_supervised_is_what_the_template_marks_of_what_is_generated(family: Family, chat):
    tokenizer = make_tokenizer(family)
    whole = tokenizer.apply_chat_template(
        list(chat), return_dict=True, return_assistant_tokens_mask=True, **family.kwargs
    )
    generated = np.zeros(len(whole["input_ids"]), np.uint8)
    for index, message in enumerate(chat):
        if message["role"] == "assistant":
            prompt = render(tokenizer, chat[:index], is_prompt=True, **family.kwargs)
            start = len(tokenizer(prompt)["input_ids"])
            stop = whole["input_ids"].index(tokenizer.convert_tokens_to_ids("<|im_end|>"), start)
            generated[start : stop + 1] = 1
    (example,) = encode(family, *chat).examples
    assert example.input_ids.tolist() == whole["input_ids"]
    assert example.loss_mask.tolist() == (generated & whole["assistant_masks"]).tolist()
    assert example.loss_mask.any()


def test_marks_around_the_words_alone_take_the_stop_along():
    """Else nobody would teach the model to stop."""
    family = marking("words", _HEAD, _ON, _WORDS, _OFF, _STOP, _LINE)
    texts = supervised_texts(make_tokenizer(family), encode(family, *CHAT))
    assert texts == ["four<|im_end|>", CHAT[-1]["content"] + "<|im_end|>"]


def test_turns_that_are_not_marked_are_not_supervised():
    family = marking(
        "the last",
        "{% if loop.last %}" + _HEAD + _ON + _WORDS + _STOP + _OFF + "{% else %}",
        _HEAD + _WORDS + _STOP + "{% endif %}" + _LINE,
    )
    tokenizer = make_tokenizer(family)
    whole = tokenizer.apply_chat_template(
        list(CHAT), return_dict=True, return_assistant_tokens_mask=True
    )
    (example,) = encode(family, *CHAT).examples
    assert example.input_ids.tolist() == whole["input_ids"]
    assert example.loss_mask.tolist() == whole["assistant_masks"]


def test_marks_around_the_answer_leave_the_thought_out():
    family = marking(
        "the answer",
        _HEAD,
        "{% set parts = m.content.split('</think>') %}",
        "{% if parts | length == 2 %}{{ parts[0] ~ '</think>' }}{% endif %}",
        _ON + "{{ parts[-1] ~ '<|im_end|>' }}" + _OFF + _LINE,
    )
    tokenizer = make_tokenizer(family)
    whole = tokenizer.apply_chat_template(
        list(CHAT), return_dict=True, return_assistant_tokens_mask=True
    )
    encoded = encode(family, *CHAT)
    assert supervised_texts(tokenizer, encoded) == ["four<|im_end|>", "\n\nfive<|im_end|>"]
    (example,) = encoded.examples
    assert example.loss_mask.tolist() == whole["assistant_masks"]


def test_marks_and_skipped_turns_and_thoughts_meet():
    tokenizer = make_tokenizer(SMOLLM_3)
    skipped = encode(SMOLLM_3, *CHAT, skipped=frozenset({2}))
    assert supervised_texts(tokenizer, skipped) == [CHAT[-1]["content"] + "<|im_end|>"]
    answers = encode(SMOLLM_3, *CHAT, train_on_reasoning=False)
    assert supervised_texts(tokenizer, answers) == ["four<|im_end|>", "five<|im_end|>"]
