"""One field of a row, checked: a text, messages, or sharegpt's turns.

Separate from shapes, which knows the fields' names and what they mean together. The invariant:
every string that leaves this file can be encoded as UTF-8, and every list of messages has a role
and a text in each; a message's fields that are null are gone, as if they had not been written.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxft.data.rows import Message, Place
from jaxft.errors import DataError

# Fields that other trainers act upon and jaxft does not: leaving them out would train on
# something else than the row says.
_UNSUPPORTED_MESSAGE_FIELDS = ("tool_calls",)

# Who speaks, in sharegpt's words and in those of chat templates.
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_TOOL_ROLES = ("function", "function_call", "function_response", "observation", "tool", "tool_call")

_MESSAGE = '{"role": "user", "content": "..."}'
_TURN = '{"from": "human", "value": "..."}'


def text(value: object, name: str, place: Place) -> str:
    """Return a field's text.

    Raises:
        DataError: It is no string, or holds half a surrogate pair, which no tokenizer can take.
    """
    if not isinstance(value, str):
        raise DataError(f'{place}: "{name}" is {kind(value)}.', "Expected a string.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f'{place}: "{name}" has the unpaired surrogate {value[error.start]!r}'
            f" at character {error.start}.",
            "Write the whole character, or its complete \\uXXXX\\uXXXX pair.",
        ) from error
    return value


def messages(value: object, name: str, place: Place) -> tuple[Message, ...]:
    """Return the messages of a field.

    Raises:
        DataError: It is no list of objects with role and content, or is empty.
    """
    checked = []
    for each, message in _objects(value, name, _MESSAGE, place):
        for field in _UNSUPPORTED_MESSAGE_FIELDS:
            if message.get(field):
                raise DataError(
                    f'{place}: "{each}" has "{field}", which jaxft does not support yet.',
                    "Remove the field, or render the row to plain prompt and completion strings.",
                )
        for field in ("role", "content"):
            _text_in(message, field, each, _MESSAGE, place)
        checked.append({key: found for key, found in message.items() if found is not None})
    return tuple(checked)


def turns(value: object, name: str, place: Place) -> tuple[Message, ...]:
    """Return sharegpt's turns as messages.

    Raises:
        DataError: It is no list of objects with from and value, is empty, or has another speaker
            than a person, the assistant and the system.
    """
    return tuple(
        {
            "role": _role(_text_in(turn, "from", each, _TURN, place), each, place),
            "content": _text_in(turn, "value", each, _TURN, place),
        }
        for each, turn in _objects(value, name, _TURN, place)
    )


def plain_list(value: object) -> object:
    """Return arrays and tuples, as rows from Python have them, as lists; others as they are."""
    if isinstance(value, tuple):
        return list(value)
    return value.tolist() if hasattr(value, "tolist") else value


def kind(value: object) -> str:
    """Return a value's type in words."""
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
    return "an object" if isinstance(value, Mapping) else f"a {type(value).__name__}"


def names(value: Mapping[str, object]) -> str:
    """Return the names of an object's fields, for a message."""
    return ", ".join(f'"{name}"' for name in value) or "none"


def _objects(
    value: object, name: str, expected: str, place: Place
) -> list[tuple[str, dict[str, object]]]:
    """Return the objects of a list, each with the name that messages call it by."""
    value = plain_list(value)
    if not isinstance(value, list) or not value:
        raise DataError(
            f'{place}: "{name}" is {kind(value)}.',
            f"Expected a list of objects, {expected}, at least one.",
        )
    named = [(f"{name}[{index}]", each) for index, each in enumerate(value)]
    for each, found in named:
        if not isinstance(found, dict):
            raise DataError(f'{place}: "{each}" is {kind(found)}.', f"Expected {expected}.")
    return named


def _text_in(found: dict[str, object], field: str, name: str, expected: str, place: Place) -> str:
    """Return the text that an object has under `field`."""
    if field not in found:
        raise DataError(
            f'{place}: "{name}" lacks "{field}"; its fields: {names(found)}.',
            f"Expected {expected}.",
        )
    return text(found[field], f"{name}.{field}", place)


def _role(speaker: str, name: str, place: Place) -> str:
    """Return the role that chat templates know a sharegpt speaker by."""
    if speaker in _ROLES:
        return _ROLES[speaker]
    found = f'{place}: "{name}" is from "{speaker}"'
    if speaker in _TOOL_ROLES:
        raise DataError(
            f"{found}: calls of tools are not supported yet.",
            "Remove the row, or render it to plain prompt and completion strings.",
        )
    raise DataError(f"{found}.", f"Expected one of: {', '.join(_ROLES)}.")
