"""Random conversations, made to mislead: the law of `wild_oracle` holds for every one of them."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from wild_build import Family, assistant, dialogue, encode, encoding, make_tokenizer, system, user
from wild_families import FAMILIES, each_family, each_of
from wild_oracle import assert_supervised, replies_of, supervised_texts
from wild_templates_ends import GLM_4, PHI_3, QWEN_25_BASE, ZEPHYR_GEMMA
from wild_templates_plain import ALPACA, CHATML, DEEPSEEK_2, PHI_4, ZEPHYR
from wild_templates_thinking import QWEN_3, QWEN_25, SMOLLM_3, THINKING

from jaxft.data.examples import tokens

TOKENIZERS = {family.name: make_tokenizer(family) for family in FAMILIES}

# What may mislead whoever looks for contents in a rendered text.
PIECES = (
    "a",
    "four",
    "assistant",
    "user",
    "\n",
    " ",
    "\n\n",
    "\t",
    "\r\n",
    "!",  # token 0
    ":",
    "{{ messages }}",
    "{% generation %}",
    "{#",
    "\\n",
    "### Response:\n",
    "Assistant:",
    "[INST]",
    "[/INST]",
    "<|im_start|>",
    "<|im_end|>",
    "<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|>",
    "</s>",
    "<|eot_id|>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>\n",
    "\ud55c\uae00",
    "\u1112\u1161\u11ab",
    "\U0001f44d\U0001f3fd",
    "\ufeff",
    "\u2028",
    "\x85",
    "\xa0",
    "\u200b",
    "\x00",
)
WORDS = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)


# Each family has a share of the examples that one law usually has.
few = hypothesis.settings(max_examples=hypothesis.settings().max_examples // 10)


def chats_of(family: Family) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Return chats that the family's template takes: questions and answers in turn."""
    answers = WORDS if family.settles_blanks else WORDS.filter(str.strip)
    pairs = st.lists(st.tuples(WORDS.map(user), answers.map(assistant)), min_size=1, max_size=4)
    chats = pairs.map(lambda some: [message for pair in some for message in pair])
    endings = st.lists(WORDS.map(user), max_size=1)
    openings = st.lists(WORDS.map(system), max_size=1) if family.takes_system else st.just([])
    return st.tuples(openings, chats, endings).map(lambda parts: [*parts[0], *parts[1], *parts[2]])


@each_family
@few
@hypothesis.given(data=st.data())
def test_any_chat_that_alternates_is_supervised_exactly(family: Family, data: st.DataObject):
    chat = data.draw(chats_of(family))
    tokenizer = TOKENIZERS[family.name]
    assert_supervised(family, chat, encode(family, *chat, tokenizer=tokenizer), tokenizer=tokenizer)


@each_family
@few
@hypothesis.given(data=st.data())
def test_any_choice_of_turns_is_supervised_exactly(family: Family, data: st.DataObject):
    chat = data.draw(chats_of(family))
    answers = [index for index, message in enumerate(chat) if message["role"] == "assistant"]
    skipped = data.draw(st.sets(st.sampled_from(answers), max_size=len(answers) - 1))
    tokenizer = TOKENIZERS[family.name]
    encoded = encode(family, *chat, tokenizer=tokenizer, skipped=frozenset(skipped))
    supervised = {
        index: reply for index, reply in replies_of(family, chat).items() if index not in skipped
    }
    assert_supervised(family, chat, encoded, supervised, tokenizer=tokenizer)


@each_of(
    [CHATML, ALPACA, DEEPSEEK_2, PHI_4, ZEPHYR, GLM_4, PHI_3, QWEN_25_BASE, ZEPHYR_GEMMA, QWEN_25]
)
@few
@hypothesis.given(data=st.data())
def test_any_order_of_roles_is_supervised_exactly(family: Family, data: st.DataObject):
    """Templates that take any order: two answers in a row, questions that follow each other."""
    answers = WORDS if family.settles_blanks else WORDS.filter(str.strip)
    messages = st.one_of(WORDS.map(user), answers.map(assistant))
    chat = [user("a"), *data.draw(st.lists(messages, min_size=1, max_size=6))]
    hypothesis.assume(any(message["role"] == "assistant" for message in chat))
    tokenizer = TOKENIZERS[family.name]
    encoded = encode(family, *chat, tokenizer=tokenizer)
    replies = replies_of(family, chat)
    if family is GLM_4:  # an answer ends with the opening of the turn that follows it
        hypothesis.assume(not any({index, index + 1} <= set(replies) for index in replies))
    assert_supervised(family, chat, encoded, replies, tokenizer=tokenizer)


@each_of([CHATML, PHI_3, QWEN_3, SMOLLM_3])
@few
@hypothesis.given(data=st.data())
def test_rows_do_not_change_each_other(family: Family, data: st.DataObject):
    chats = data.draw(st.lists(chats_of(family), min_size=2, max_size=4))
    tokenizer = TOKENIZERS[family.name]
    rows = [dialogue(*chat) for chat in chats]
    together = tokens.encode_rows(rows, encoding(family, tokenizer))
    for chat, encoded in zip(chats, together, strict=True):
        assert_supervised(family, chat, encoded, tokenizer=tokenizer)


@pytest.mark.parametrize("family", [QWEN_3, *THINKING[3:6]], ids=lambda family: family.name)
@few
@hypothesis.given(data=st.data())
def test_any_thought_in_its_field_is_supervised_with_its_answer(
    family: Family, data: st.DataObject
):
    answers = st.tuples(WORDS.filter(str.strip), WORDS.filter(str.strip)).map(
        lambda pair: assistant(pair[1], reasoning_content=pair[0])
    )
    pairs = data.draw(st.lists(st.tuples(WORDS.map(user), answers), min_size=1, max_size=3))
    chat = [message for pair in pairs for message in pair]
    tokenizer = TOKENIZERS[family.name]
    texts = supervised_texts(tokenizer, encode(family, *chat, tokenizer=tokenizer))
    assert len(texts) == len(pairs)
    for text, (_, message) in zip(texts, pairs, strict=True):
        thought, _, answer = text.removeprefix("<think>\n").rpartition("\n</think>\n\n")
        assert thought.strip() == message["reasoning_content"].strip()
        assert answer.removesuffix(family.closing).strip() == message["content"].strip()
    answers_alone = encode(family, *chat, tokenizer=tokenizer, train_on_reasoning=False)
    for text, (_, message) in zip(supervised_texts(tokenizer, answers_alone), pairs, strict=True):
        assert text.removesuffix(family.closing).strip() == message["content"].strip()
