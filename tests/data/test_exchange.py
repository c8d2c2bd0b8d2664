from __future__ import annotations

import numpy as np
import pytest
from data_builders import make_tokenizer

from jaxft.data.chats import exchange
from jaxft.data.rows.row import Dialogue, RowPlace, Text, TextCompletion, Tokenized

PLACE = RowPlace("f", 1)
SYSTEM = {"role": "system", "content": "Sys."}
TURNS = (
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": " 1. "},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "2.\n"},
)


def tokens_row(text: str, supervised: str) -> Tokenized:
    """Return bytes as tokens, of which those under a 1 are supervised."""
    ids = np.array(make_tokenizer()(text)["input_ids"], np.int32)
    return Tokenized(PLACE, ids, np.array(list(supervised), np.uint8))


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        (Dialogue(PLACE, (SYSTEM, *TURNS)), (SYSTEM, TURNS[0]), " 1. "),
        (Dialogue(PLACE, TURNS[:1]), TURNS[:1], ""),
        (Dialogue(PLACE, TURNS, num_prompt=3), TURNS[:3], "2.\n"),
        (TextCompletion(PLACE, "a", "b"), "a", "b"),
        (Text(PLACE, "a b c d e f"), "a b c", " d e f"),
        (Text(PLACE, "abcdef"), "abc", "def"),
        (Text(PLACE, "a"), "a", ""),
        (Text(PLACE, ""), "", ""),
        (Text(PLACE, "abcd " * 99), "abcd " * 11 + "abcd", " " + "abcd " * 87),
        (tokens_row("abcd", "0011"), "ab", "cd"),
        (tokens_row("abcd", "1111"), "ab", "cd"),
        (tokens_row("abcd", "0000"), "abcd", ""),
        (tokens_row("<s>abc", "0001"), "<s>ab", "c"),
    ],
)
def test_the_first_exchange_is_the_first_question_and_its_answer(row, prompt, answer):
    assert exchange.first_exchange(row, make_tokenizer()) == (prompt, answer)
