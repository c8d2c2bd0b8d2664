"""What a model is asked in a row, and what the row answers: to show what a model makes of it.

`{"question": "2 + 2?", "answer": "4"}` asks `user: 2 + 2?` and answers `4`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxft.data.chats.encoding import Tokenizer
from jaxft.data.rows.row import Dialogue, Message, Row, Text, TextCompletion, Tokenized

# How much of a text is shown as a prompt to continue.
_OPENING_CHARACTERS = 60


class Exchange(NamedTuple):
    """What a model is asked in a row, and what the row answers."""

    prompt: str | Sequence[Message]
    answer: str


def first_exchange(row: Row, tokenizer: Tokenizer) -> Exchange:
    """Return the first question of a row and its answer.

    A text, or tokens that are all supervised, are asked by how they begin.
    """
    match row:
        case Dialogue():
            roles = [message["role"] for message in row.messages]
            start = row.num_prompt or 1
            index = next((i for i in range(start, len(roles)) if roles[i] == "assistant"), None)
            answer = "" if index is None else row.messages[index]["content"]
            return Exchange(row.messages[:index], answer)
        case TextCompletion():
            return Exchange(row.prompt, row.completion)
        case Text():
            return _opening(row.text)
        case Tokenized():
            return _tokenized_exchange(row, tokenizer)
    raise TypeError(f"no such row: {type(row).__name__}")


def _tokenized_exchange(row: Tokenized, tokenizer: Tokenizer) -> Exchange:
    """Decode what stands before the first token that is supervised, and what begins there."""
    supervised = np.flatnonzero(row.loss_mask[1:]) + 1
    start = int(supervised[0]) if len(supervised) else len(row.input_ids)
    prompt, answer = (tokenizer.decode(ids.tolist()) for ids in np.split(row.input_ids, [start]))
    return Exchange(prompt, answer) if start > 1 else _opening(prompt + answer)


def _opening(text: str) -> Exchange:
    """Return how a text begins, up to a space where there is one, and how it goes on."""
    stop = min(_OPENING_CHARACTERS, (len(text) + 1) // 2)
    space = text.rfind(" ", 1, stop + 1)
    stop = space if space > 0 else stop
    return Exchange(text[:stop], text[stop:])
