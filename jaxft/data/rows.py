"""The shapes a row may have, and what each says is learned.

Separate from sources, since rows also come from Python lists. The invariant: a row that leaves
this file has one of three shapes, every string in it can be encoded as UTF-8, and it remembers
the line it came from, so that every later complaint can name it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxft.errors import DataError

Message = dict[str, Any]

SHAPES = '{"messages": [{"role", "content"}, ...]} or {"prompt", "completion"}'

# Fields that other trainers act upon and jaxft does not: leaving them out would train on
# something else than the row says.
_UNSUPPORTED_FIELDS = ("tools", "chat_template_kwargs")
_UNSUPPORTED_MESSAGE_FIELDS = ("tool_calls",)


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One example and the place it was read from.

    Attributes:
        source: The name of the file, or of whatever else the rows came from.
        line: Its line there, from 1.
    """

    source: str
    line: int

    @property
    def place(self) -> str:
        """Return `source:line`, as editors and terminals understand it."""
        return f"{self.source}:{self.line}"


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation(Row):
    """A whole chat, of which the assistant's turns are learned."""

    messages: Sequence[Message]


@dataclasses.dataclass(frozen=True, slots=True)
class ChatCompletion(Row):
    """A chat in two parts, of which everything after the prompt is learned."""

    prompt: Sequence[Message]
    completion: Sequence[Message]


@dataclasses.dataclass(frozen=True, slots=True)
class TextCompletion(Row):
    """Plain text in two parts, of which the completion is learned; no template touches it."""

    prompt: str
    completion: str


def parse_row(value: object, *, source: str, line: int) -> Row:
    """Return the row that a decoded JSON value stands for.

    Args:
        value: What the line holds; further fields than the known ones are ignored.
        source: The name that errors call the file by.
        line: The line that errors point to, from 1.

    Raises:
        DataError: The value is not an object, or its fields have other names, types or shapes.
    """
    place = f"{source}:{line}"
    if not isinstance(value, dict):
        raise DataError(
            f"{place}: found {_kind(value)} where a row should be.",
            f"Each line is one JSON object: {SHAPES}.",
        )
    for field in _UNSUPPORTED_FIELDS:
        if value.get(field):
            raise DataError(
                f'{place}: the row has "{field}", which jaxft does not support yet.',
                "Remove the field, or render the row to plain prompt and completion strings.",
            )
    has_pair = "prompt" in value and "completion" in value
    if "messages" in value and has_pair:
        raise DataError(
            f'{place}: the row has both "messages" and "prompt" with "completion".',
            "Keep one of the two, so that it is clear what is learned.",
        )
    if "messages" in value:
        messages = _messages(value["messages"], "messages", place)
        return Conversation(source=source, line=line, messages=messages)
    if has_pair:
        return _pair(value["prompt"], value["completion"], source=source, line=line)
    found = ", ".join(f'"{name}"' for name in value) or "none"
    raise DataError(
        f"{place}: the row has neither messages nor prompt and completion; its fields: {found}.",
        f"Accepted: {SHAPES}, the latter two both strings or both lists of messages.",
    )


def _pair(prompt: object, completion: object, *, source: str, line: int) -> Row:
    """Return the row of a prompt and a completion, which must be of one kind."""
    place = f"{source}:{line}"
    if isinstance(prompt, str) and isinstance(completion, str):
        _check_text(prompt, "prompt", place)
        _check_text(completion, "completion", place)
        return TextCompletion(source=source, line=line, prompt=prompt, completion=completion)
    if isinstance(prompt, list) and isinstance(completion, list):
        return ChatCompletion(
            source=source,
            line=line,
            prompt=_messages(prompt, "prompt", place),
            completion=_messages(completion, "completion", place),
        )
    raise DataError(
        f'{place}: "prompt" is {_kind(prompt)} and "completion" is {_kind(completion)}.',
        "Make both strings, or both lists of messages.",
    )


def _messages(value: object, field: str, place: str) -> tuple[Message, ...]:
    """Return the messages of one field, checked one by one."""
    if not isinstance(value, list) or not value:
        raise DataError(
            f'{place}: "{field}" is {_kind(value)}.',
            'Expected a list of messages, {"role": "user", "content": "..."}, at least one.',
        )
    for index, message in enumerate(value):
        _check_message(message, f"{field}[{index}]", place)
    return tuple(value)


def _check_message(message: object, name: str, place: str) -> None:
    """Raise unless the message is an object with a role and a text."""
    if not isinstance(message, dict):
        raise DataError(
            f'{place}: "{name}" is {_kind(message)}.',
            'A message is an object: {"role": "user", "content": "..."}.',
        )
    for field in _UNSUPPORTED_MESSAGE_FIELDS:
        if message.get(field):
            raise DataError(
                f'{place}: "{name}" has "{field}", which jaxft does not support yet.',
                "Remove the field, or render the row to plain prompt and completion strings.",
            )
    for field in ("role", "content"):
        if field not in message:
            names = ", ".join(f'"{key}"' for key in message) or "none"
            raise DataError(
                f'{place}: "{name}" lacks "{field}"; its fields: {names}.',
                'A message is an object: {"role": "user", "content": "..."}.',
            )
        if not isinstance(message[field], str):
            raise DataError(
                f'{place}: "{name}.{field}" is {_kind(message[field])}.',
                "Expected a string.",
            )
        _check_text(message[field], f"{name}.{field}", place)


def _check_text(text: str, name: str, place: str) -> None:
    """Raise if the string holds half a surrogate pair, which no tokenizer can take."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f'{place}: "{name}" has the unpaired surrogate {text[error.start]!r}'
            f" at character {error.start}.",
            "Write the whole character, or its complete \\uXXXX\\uXXXX pair.",
        ) from error


def _kind(value: object) -> str:
    """Return a JSON value's type in words."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return "an object" if isinstance(value, dict) else f"a {type(value).__name__}"
