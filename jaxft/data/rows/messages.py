"""Messages of a chat, from any of the usual spellings to the one that chat templates take.

`{"from": "gpt", "value": "4"}` becomes `{"role": "assistant", "content": "4"}`. Each message that
leaves this file has a role, a text, and otherwise only fields that templates know. Its marks are
kept apart, and the names of all other fields are returned as unused.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxft.data.rows import fields, flags, leftovers, plain, tools
from jaxft.data.rows.fields import Fields
from jaxft.data.rows.flags import MarkedMessage
from jaxft.data.rows.row import Message, RowPlace
from jaxft.data.rows.wording import names, quoted
from jaxft.errors import DataError

_MESSAGE = '{"role": "user", "content": "..."}'
_TURN = '{"from": "human", "value": "..."}'
_PART = '{"type": "text", "text": "..."}'

# The fields for the speaker and for the words, in both spellings.
_SPEAKER_FIELDS = ("role", "from")
_WORD_FIELDS = ("content", "value")

# The speakers of ShareGPT, Gemma and tool data, and the role that templates know for each.
_SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "function": "tool",
}
_ROLES = ("user", "assistant", "system", "developer", "tool")
# Speakers whose words are the JSON text of a tool call.
_CALLERS = ("function_call", "tool_call")

_CALLS = ("tool_calls", "function_call")
_REASONING = ("reasoning_content", "reasoning", "thinking")
# Other fields that templates of the common families write.
_WRITTEN = ("name", "tool_call_id", "tool_plan")
_KNOWN = frozenset({*_SPEAKER_FIELDS, *_WORD_FIELDS, *_CALLS, *_WRITTEN, *flags.MARKS})


class Messages(NamedTuple):
    """The messages of a field.

    Attributes:
        turns: The messages with their marks.
        unused: Names of the messages' unused fields, such as `messages[].id`.
    """

    turns: list[MarkedMessage]
    unused: tuple[str, ...]


def read(value: object, name: str, place: RowPlace) -> Messages:
    """Return the messages of a field.

    Args:
        value: A list of objects with `role` and `content`, or with `from` and `value`.
        name: The name of the field in errors.
        place: Where the row stands.

    Raises:
        DataError: The value is something else, or is empty.
    """
    expected = _TURN if name == "conversations" else _MESSAGE
    prefix = f"{name}[]."
    read_each = [
        _turn(message, each, prefix, expected, place)
        for each, message in fields.objects(value, name, expected, place)
    ]
    unused = dict.fromkeys(field for _, some in read_each for field in some)
    return Messages([turn for turn, _ in read_each], tuple(unused))


def _turn(
    message: Fields, each: str, prefix: str, expected: str, place: RowPlace
) -> tuple[MarkedMessage, tuple[str, ...]]:
    """Return a message, and the names of its unused fields."""
    role, content = message.get("role"), message.get("content")
    if len(message) == 2 and type(role) is type(content) is str and role in _ROLES:
        said = fields.text(content, f"{each}.content", place)  # the quick way, for nearly all
        return MarkedMessage(each, {"role": role, "content": said}, {}), ()
    filled = {
        key: found
        for key, found in message.items()
        if found is not None and (key in flags.MARKS or not plain.is_missing(found))
    }
    speaker = _speaker(filled, each, expected, place)
    role = _SPEAKERS.get(speaker, speaker)
    kept, unused = _calls(filled, speaker, each, prefix, place)
    if speaker in _CALLERS:
        content = ""
    else:
        content, unused_here = _content(filled, message, bool(kept), each, prefix, place)
        unused = (*unused, *unused_here)
    for key in _WRITTEN:
        if key in filled:
            kept[key] = plain.plain(filled[key], f"{each}.{key}", place)
    thoughts = _REASONING if role == "assistant" else ()
    for key in thoughts:
        if key in filled:
            kept[key] = fields.text(filled[key], f"{each}.{key}", place)
    marks = {
        key: flags.mark(key, found, each, place)
        for key, found in filled.items()
        if key in flags.MARKS
    }
    rest = {
        key: found for key, found in filled.items() if key not in _KNOWN and key not in thoughts
    }
    if rest:
        unused = (*unused, *leftovers.unused(rest, place, prefix))
    return MarkedMessage(each, {"role": role, "content": content, **kept}, marks), unused


def _speaker(filled: Fields, each: str, expected: str, place: RowPlace) -> str:
    """Return the speaker as the row spells it, such as `gpt`."""
    given = [key for key in _SPEAKER_FIELDS if key in filled]
    if not given:
        lacking = "from" if "value" in filled or (expected == _TURN and not filled) else "role"
        raise _lacks(lacking, filled, each, expected, place)
    speakers = [fields.text(filled[key], f"{each}.{key}", place) for key in given]
    if len({_SPEAKERS.get(speaker, speaker) for speaker in speakers}) > 1:
        raise DataError(
            f'{place}: "{each}" is by {quoted(speakers[0])} and from {quoted(speakers[1])}.',
            f"Keep one of its two speakers: expected {expected}.",
        )
    speaker = speakers[-1]
    if "from" in given and speaker not in _SPEAKERS and speaker not in _ROLES:
        raise DataError(
            f'{place}: "{each}" is from {quoted(speaker)}.',
            f"Expected one of: {', '.join((*_ROLES, *_SPEAKERS))}.",
        )
    return speaker


def _calls(
    filled: Fields, speaker: str, each: str, prefix: str, place: RowPlace
) -> tuple[Message, tuple[str, ...]]:
    """Return the field `tool_calls` of a message, if it calls tools, and unused names in it."""
    given = [key for key in _CALLS if not _is_no_call(filled.get(key))]
    if speaker in _CALLERS:
        given += [key for key in _WORD_FIELDS if key in filled]
    if not given:
        if speaker in _CALLERS:
            raise _lacks("value", filled, each, _TURN, place)
        return {}, ()
    if len(given) > 1 or _SPEAKERS.get(speaker, speaker) != "assistant":
        raise DataError(
            f'{place}: "{each}" of the role {quoted(speaker)} has {names(given)}.',
            "Only messages of the assistant call tools, each in one field.",
        )
    where = f"{each}.{given[0]}"
    found, unused = tools.calls(filled[given[0]], where, f"{prefix}tool_calls[].", place)
    if not found:
        raise DataError(f'{place}: "{where}" has no call in it.', f"Expected {tools.CALL}.")
    return {"tool_calls": found}, unused


def _is_no_call(value: object) -> bool:
    """Return whether a value is null or empty, or the JSON text of such a value."""
    return fields.is_empty(value) or (
        isinstance(value, str) and value.strip() in ("[]", "{}", "null")
    )


def _content(
    filled: Fields,
    message: Fields,
    has_calls: bool,
    each: str,
    prefix: str,
    place: RowPlace,
) -> tuple[str, tuple[str, ...]]:
    """Return the text of a message, and the names of the unused fields in its parts."""
    given = [key for key in _WORD_FIELDS if key in filled]
    if not given and has_calls:
        return "", ()
    if not given:
        lacking = "value" if "from" in filled else "content"
        if lacking in message:
            raise DataError(f'{place}: "{each}.{lacking}" is null.', "Expected a string.")
        raise _lacks(lacking, filled, each, _TURN if lacking == "value" else _MESSAGE, place)
    said, unused = zip(
        *(_joined(filled[key], f"{each}.{key}", f"{prefix}{key}[].", place) for key in given),
        strict=True,
    )
    if len(set(said)) > 1:
        raise DataError(
            f'{place}: "{each}" has "content" and "value", which differ.', "Keep one of them."
        )
    return said[0], unused[0]


def _joined(value: object, name: str, prefix: str, place: RowPlace) -> tuple[str, tuple[str, ...]]:
    """Return the joined texts of the parts of a content, and the names of their unused fields."""
    value = fields.plain_list(value)
    if not isinstance(value, list):
        return fields.text(value, name, place), ()
    texts, unused = [], {}
    for each, part in fields.objects(value, name, _PART, place) if value else []:
        filled = {key: found for key, found in part.items() if not plain.is_missing(found)}
        if filled.get("type") != "text":
            found = f"of the type {quoted(filled['type'])}" if "type" in filled else "without type"
            raise DataError(
                f'{place}: "{each}" is a part {found}.',
                f"Only parts of text can be trained on: expected {_PART}.",
            )
        if "text" not in filled:
            raise _lacks("text", filled, each, _PART, place)
        texts.append(fields.text(filled["text"], f"{each}.text", place))
        rest = {key: found for key, found in filled.items() if key not in ("type", "text")}
        unused.update(dict.fromkeys(leftovers.unused(rest, place, prefix)))
    return "".join(texts), tuple(unused)


def _lacks(field: str, filled: Fields, each: str, expected: str, place: RowPlace) -> DataError:
    return DataError(
        f'{place}: "{each}" lacks "{field}"; its fields: {names(filled)}.', f"Expected {expected}."
    )
