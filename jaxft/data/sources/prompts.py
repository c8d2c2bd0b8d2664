"""Prompts to answer, from a file: `{"prompt": "Why?"}`, `{"messages": [...]}`, or paragraphs.

Prompts are not training rows, because they have no answers. Each row says whether its prompt is a
text or the messages of a chat; whether a text is asked as a chat depends on the model.
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
    """Return the prompts in a file, a folder or a pattern: texts, or the messages of chats.

    Replies at the end of a chat are removed: they are answers.

    Raises:
        DataError: There is no such file, it cannot be read, or one of its rows has no prompt.
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
