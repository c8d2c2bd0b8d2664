"""What is supervised in each mode, and of rows with skipped turns; plain text; odd tokenizers."""

from __future__ import annotations

import pytest
from wild_build import (
    Family,
    assistant,
    dialogue,
    encode,
    encoding,
    make_tokenizer,
    system,
    user,
)
from wild_families import each_family
from wild_oracle import assert_supervised, supervised_texts, text_of
from wild_templates_ends import MISTRAL_3, PHI_3
from wild_templates_plain import CHATML
from wild_templates_thinking import QWEN_3

from jaxft.data.examples import tokens
from jaxft.data.rows.row import RowPlace, Text, TextCompletion

CHAT = (
    user("2 + 2?"),
    assistant("four"),
    user("3?"),
    assistant("five"),
    user("4?"),
    assistant("six"),
)


def expected(family: Family, *indices: int) -> dict[int, str]:
    return {index: family.reply(CHAT[index]) for index in indices}


@each_family
def test_the_last_reply_alone_is_supervised_if_that_is_asked(family: Family):
    encoded = encode(family, *CHAT, train_on="last_assistant")
    assert_supervised(family, CHAT, encoded, expected(family, 5))


@each_family
@pytest.mark.parametrize(
    ("num_prompt", "supervised"), [(0, [5]), (1, [1, 3, 5]), (3, [3, 5]), (5, [5])]
)
def test_a_completion_is_what_the_row_says_or_what_follows_the_last_question(
    family: Family, num_prompt: int, supervised: list[int]
):
    encoded = encode(family, *CHAT, train_on="completion", num_prompt=num_prompt)
    assert_supervised(family, CHAT, encoded, expected(family, *supervised))


@each_family
@pytest.mark.parametrize("num_prompt", [1, 3, 5])
def test_replies_of_a_prompt_are_not_supervised(family: Family, num_prompt: int):
    encoded = encode(family, *CHAT, num_prompt=num_prompt)
    supervised = [index for index in (1, 3, 5) if index >= num_prompt]
    assert_supervised(family, CHAT, encoded, expected(family, *supervised))


@each_family
@pytest.mark.parametrize("skipped", [{1}, {3}, {5}, {1, 3}, {1, 5}, {3, 5}], ids=str)
def test_skipped_turns_are_not_supervised(family: Family, skipped: set[int]):
    encoded = encode(family, *CHAT, skipped=frozenset(skipped))
    assert_supervised(family, CHAT, encoded, expected(family, *({1, 3, 5} - skipped)))


@each_family
def test_a_chat_with_every_reply_skipped_teaches_nothing(family: Family):
    encoded = encode(family, *CHAT, skipped=frozenset({1, 3, 5}))
    assert not any(example.loss_mask.any() for example in encoded.examples)
    assert encoded.end_ids == frozenset()


@each_family
def test_all_is_every_token_but_the_first_and_ends_with_a_stop(family: Family):
    tokenizer = make_tokenizer(family)
    for chat in (CHAT[:2], CHAT):
        (example,) = encode(family, *chat, train_on="all").examples
        assert example.loss_mask.tolist() == [0] + [1] * (len(example.input_ids) - 1)
        whole = tokenizer.apply_chat_template(list(chat), return_dict=True, **family.kwargs)
        ids = whole["input_ids"]
        assert example.input_ids[: len(ids)].tolist() == ids or family is MISTRAL_3
        last = family.reply(chat[-1]).strip()
        assert last in tokenizer.decode(example.input_ids.tolist()) or "<think>" in family.template


@each_family
def test_rows_of_one_batch_are_encoded_as_alone(family: Family):
    """A layout that was found for one chat must not be taken for another."""
    chats = [
        CHAT,
        CHAT[:2],
        CHAT[:4],
        (user("a"), assistant("")),
        (user(""), assistant("b")),
        (user("four"), assistant("four"), user("four"), assistant("four")),
        (user("a"), assistant("</think>b"), user("c"), assistant("d")),
        CHAT[:4],
    ]
    if family.takes_system:
        chats += [(system("Be brief."), *chat) for chat in chats]
    rows = [dialogue(*chat) for chat in chats]
    together = tokens.encode_rows(rows, encoding(family))
    for row, one in zip(rows, together, strict=True):
        alone = tokens.encode_row(row, encoding(family))
        assert alone[1:] == one[1:]
        for left, right in zip(alone.examples, one.examples, strict=True):
            assert left.input_ids.tolist() == right.input_ids.tolist()
            assert left.loss_mask.tolist() == right.loss_mask.tolist()


@each_family
def test_plain_text_is_closed_with_the_end_token_and_no_template(family: Family):
    tokenizer = make_tokenizer(family)
    settings = encoding(family, tokenizer)
    pair = tokens.encode_row(TextCompletion(RowPlace("f", 1), "2 + 2 =", " 4"), settings)
    assert text_of(tokenizer, pair) == [f"2 + 2 = 4{family.eos}"]
    assert supervised_texts(tokenizer, pair) == [f" 4{family.eos}"]
    text = tokens.encode_row(Text(RowPlace("f", 1), "2 + 2 = 4"), settings)
    assert text_of(tokenizer, text) == [f"2 + 2 = 4{family.eos}"]
    assert pair.end_ids == text.end_ids == {tokenizer.eos_token_id}


def test_padding_and_start_tokens_change_nothing():
    chat = CHAT[:4]
    for changes in (
        {"pad": None},
        {"pad": CHATML.eos},
        {"bos": None},
        {"bos": "<|endoftext|>"},
        {"bos": CHATML.eos, "pad": CHATML.eos},
    ):
        family = CHATML._replace(**changes)
        assert_supervised(family, chat, encode(family, *chat))
        left = make_tokenizer(family)
        left.padding_side = left.truncation_side = "left"
        left(["a", "b b"], padding=bool(family.pad), truncation=True, max_length=2)
        assert_supervised(family, chat, encode(family, *chat, tokenizer=left))


def test_token_0_is_a_token_like_any_other():
    tokenizer = make_tokenizer(PHI_3)
    zero = tokenizer.convert_ids_to_tokens(0)
    for family in (CHATML, PHI_3, QWEN_3):
        chat = (user(zero), assistant(zero * 3), user(zero), assistant(zero))
        encoded = encode(family, *chat)
        assert_supervised(family, chat, encoded)
        assert sum((example.input_ids == 0).sum() for example in encoded.examples) >= 6
