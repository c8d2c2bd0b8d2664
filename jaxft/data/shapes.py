"""From the fields of a value to the row it stands for.

Separate from sources, since rows also come from Python, and from fields, which looks at one field
alone. The invariant: a value fits one shape, by a rule that a reader can say in a sentence, or it
is refused; nothing that would change what is learned is passed over.

The rule: a field that is null is as good as absent. `input_ids` goes before everything else,
because tokenizing a data set leaves its other columns there; `text` goes after everything else,
because it is often a rendering of the other columns; of the shapes between, a row has one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxft.data import fields, tokenized
from jaxft.data.rows import (
    ChatCompletion,
    Conversation,
    Place,
    Question,
    Row,
    Text,
    TextCompletion,
)
from jaxft.errors import DataError

# The fields that are not null.
_Fields = Mapping[str, Any]

SHAPES = (
    '{"messages"}, {"prompt", "completion"}, {"conversations"}, '
    '{"instruction", "input", "output"}, {"question", "answer"}, {"text"} or {"input_ids"}'
)


class _Shape(NamedTuple):
    """Fields that mean something together.

    Attributes:
        needed: All of these are there.
        refused: Fields that other trainers act upon beside them and jaxft does not: leaving them
            out would train on something else than the row says.
        build: Returns the row.
    """

    needed: tuple[str, ...]
    refused: tuple[str, ...]
    build: Callable[[_Fields, Place], Row]


def parse_row(value: object, place: Place) -> Row:
    """Return the row that a value stands for.

    Args:
        value: An object decoded from a file, or a Python mapping; further fields than the known
            ones are ignored.
        place: Where it stands, which errors name.

    Raises:
        DataError: The value is no object, or its fields have other names, types or shapes.
    """
    if not isinstance(value, Mapping):
        raise DataError(
            f"{place}: found {fields.kind(value)} where a row should be.",
            f"A row is an object: {SHAPES}.",
        )
    filled = {name: field for name, field in value.items() if field is not None}
    if "input_ids" in filled:
        return tokenized.parse(filled, place)
    shape = _fitting(filled, place)
    if shape is None:
        raise DataError(
            f"{place}: the row has no known shape; its fields: {fields.names(value)}.",
            f"Expected one of {SHAPES}, none of them null.",
        )
    for name in shape.refused:
        if filled.get(name):
            raise DataError(
                f'{place}: the row has "{name}", which jaxft does not support yet.',
                "Remove it, or write the whole row as messages or as prompt and completion.",
            )
    return shape.build(filled, place)


def _fitting(filled: _Fields, place: Place) -> _Shape | None:
    """Return the shape whose fields are all there."""
    fitting = [shape for shape in _SHAPES if all(name in filled for name in shape.needed)]
    if len(fitting) > 1:
        both = " and ".join(_quoted(shape) for shape in fitting)
        raise DataError(
            f"{place}: the row has two meanings, of {both}.",
            "Keep the fields of one, so that it is clear what is learned.",
        )
    if fitting:
        return fitting[0]
    return _TEXT if "text" in filled else None


def _quoted(shape: _Shape) -> str:
    return " with ".join(f'"{name}"' for name in shape.needed)


def _conversation(value: _Fields, place: Place) -> Row:
    messages = fields.messages(value["messages"], "messages", place)
    return Conversation(place.source, place.number, messages, unit=place.unit)


def _sharegpt(value: _Fields, place: Place) -> Row:
    messages = fields.turns(value["conversations"], "conversations", place)
    return Conversation(place.source, place.number, messages, unit=place.unit)


def _pair(value: _Fields, place: Place) -> Row:
    """Return the row of a prompt and a completion, which must be of one kind."""
    prompt, completion = (fields.plain_list(value[name]) for name in ("prompt", "completion"))
    if isinstance(prompt, str) and isinstance(completion, str):
        return TextCompletion(
            place.source,
            place.number,
            fields.text(prompt, "prompt", place),
            fields.text(completion, "completion", place),
            unit=place.unit,
        )
    if isinstance(prompt, list) and isinstance(completion, list):
        return ChatCompletion(
            place.source,
            place.number,
            fields.messages(prompt, "prompt", place),
            fields.messages(completion, "completion", place),
            unit=place.unit,
        )
    raise DataError(
        f'{place}: "prompt" is {fields.kind(prompt)} and "completion" is'
        f" {fields.kind(completion)}.",
        "Make both strings, or both lists of messages.",
    )


def _instruction(value: _Fields, place: Place) -> Row:
    """Return the row of an instruction; what it is about, if anything, follows it."""
    instruction = fields.text(value["instruction"], "instruction", place)
    about = fields.text(value.get("input", ""), "input", place)
    question = f"{instruction}\n\n{about}" if about.strip() else instruction
    answer = fields.text(value["output"], "output", place)
    return Question(place.source, place.number, question, answer, unit=place.unit)


def _question(value: _Fields, place: Place) -> Row:
    question = fields.text(value["question"], "question", place)
    answer = fields.text(value["answer"], "answer", place)
    return Question(place.source, place.number, question, answer, unit=place.unit)


def _text(value: _Fields, place: Place) -> Row:
    text = fields.text(value["text"], "text", place)
    return Text(place.source, place.number, text, unit=place.unit)


# TRL renders tools into the chat, and LLaMA-Factory the last two of these.
_TOOLS = ("tools", "chat_template_kwargs")
_BESIDE = (*_TOOLS, "system", "history")

_SHAPES = (
    _Shape(("messages",), _TOOLS, _conversation),
    _Shape(("prompt", "completion"), _TOOLS, _pair),
    _Shape(("conversations",), _BESIDE, _sharegpt),
    _Shape(("instruction", "output"), _BESIDE, _instruction),
    _Shape(("question", "answer"), _TOOLS, _question),
)
_TEXT = _Shape(("text",), (), _text)

# Every field that is ever looked at, so that a file of columns can leave the others unread.
FIELDS = frozenset(
    {"input", *tokenized.FIELDS}
    | {name for shape in (*_SHAPES, _TEXT) for name in (*shape.needed, *shape.refused)}
)
