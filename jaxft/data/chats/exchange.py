"""The first question of a row and its answer, to be shown beside a model's own answer.

`{"question": "2 + 2?", "answer": "4"}` has the prompt `user: 2 + 2?` and the answer `4`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxft.data.chats.encoding import Tokenizer
from jaxft.data.rows.row import Dialogue, Message, Row, Text, TextCompletion, Tokenized

# Characters of a plain text that are its prompt, at most.
_OPENING_CHARACTERS = 60


class Exchange(NamedTuple):
    """A prompt for the model, and the answer that the row gives to it."""

    prompt: str | Sequence[Message]
    answer: str


def first_exchange(row: Row, tokenizer: Tokenizer) -> Exchange:
    """Return the first question of a row and its answer.

    For a text, and for tokens that are all supervised, the prompt is the beginning of the text.
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
    """Decode the tokens before the first supervised one, and those from there on."""
    supervised = np.flatnonzero(row.loss_mask[1:]) + 1
    start = int(supervised[0]) if len(supervised) else len(row.input_ids)
    prompt, answer = (tokenizer.decode(ids.tolist()) for ids in np.split(row.input_ids, [start]))
    return Exchange(prompt, answer) if start > 1 else _opening(prompt + answer)


def _opening(text: str) -> Exchange:
    """Cut a text into its beginning and the rest, at a space if there is one."""
    stop = min(_OPENING_CHARACTERS, (len(text) + 1) // 2)
    space = text.rfind(" ", 1, stop + 1)
    stop = space if space > 0 else stop
    return Exchange(text[:stop], text[stop:])
