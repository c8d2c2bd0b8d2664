"""Prompts to answer, from a file: `{"prompt": "Why?"}`, `{"messages": [...]}`, or paragraphs.

Separate from rows to learn from, which need answers. What a prompt is, a question or messages, is
said by its row alone; whether a question becomes a chat is the model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxft.data.rows import fields, messages
from jaxft.data.rows.row import Message, RowPlace
from jaxft.data.sources import file_set
from jaxft.errors import DataError

_CHATS, _QUESTIONS = ("messages", "conversations"), ("prompt", "text")
_EXPECTED = 'Expected "prompt", a text or messages, or "messages", in each row of the file.'


def read(path: str) -> list[str | Sequence[Message]]:
    """Return the prompts of a file, a folder or a pattern: texts, and the messages of chats.

    What stands after the last message of a user or tool is left away: it is an answer.

    Raises:
        DataError: There is no such file, it cannot be read, or a row of it has no prompt.
    """
    return [_prompt(value, place) for place, value in file_set.find(path).values()]


def _prompt(value: object, place: RowPlace) -> str | Sequence[Message]:
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, Mapping):
        raise DataError(f"{place}: the row has no prompt.", _EXPECTED)
    for name in (*_CHATS, *_QUESTIONS):
        if fields.is_empty(value.get(name)):
            continue
        if name in _QUESTIONS and isinstance(value[name], str):
            return fields.text(value[name], name, place)
        found = [turn.message for turn in messages.read(value[name], name, place).turns]
        while found and found[-1]["role"] == "assistant":
            found.pop()
        if found:
            return found
        raise DataError(f'{place}: "{name}" has nothing but replies.', _EXPECTED)
    raise DataError(f"{place}: the row has no prompt.", _EXPECTED)
