"""The parsing of a value into a row, by the names of its fields.

`parse_row({"question": "2 + 2?", "answer": "4"}, place)` returns a chat of two messages. A value
has exactly one shape, or it is refused; the row names every field that was not used.

The rule: a null field counts as absent. `input_ids` goes before everything else, because tokenizing
a data set leaves its other columns there. `text` goes after everything else, because it is often a
rendering of the other columns. Of the other shapes a row has exactly one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxft.data.rows import dialogues, fields, flags, leftovers, plain, tokenized
from jaxft.data.rows.fields import Fields, Given
from jaxft.data.rows.row import Row, RowPlace, Text, TextCompletion
from jaxft.data.rows.wording import kind, names, quoted
from jaxft.errors import DataError, nearest

SHAPES = (
    '{"messages"}, {"prompt", "completion"}, {"conversations"}, '
    '{"instruction", "input", "output"}, {"question", "answer"}, {"text"} or {"input_ids"}'
)

_NO_COLUMNS: Mapping[str, str] = {}


class _Shape(NamedTuple):
    """A shape of row: fields that have a meaning together.

    Attributes:
        needed: Fields that a row of this shape has.
        beside: Fields that it may have too.
        refused: Fields that it must not have, because they would change the question.
        build: Returns the row.
        is_judged: Whether the row may have a field that says if its answer is good.
    """

    needed: tuple[str, ...]
    beside: tuple[str, ...]
    refused: tuple[str, ...]
    build: Callable[[Given], Row]
    is_judged: bool = True


def parse_row(value: object, place: RowPlace, columns: Mapping[str, str] = _NO_COLUMNS) -> Row:
    """Return the row that a value stands for.

    Args:
        value: An object decoded from a file, or a Python mapping.
        place: Where it stands, for errors.
        columns: The file's name of a field by jaxft's name, such as `{"question": "query"}`, for
            fields whose names differ.

    Raises:
        DataError: The value is not an object, its fields have other names, types or shapes, or a
            field asks for other tokens to be supervised than jaxft would supervise.
    """
    if not isinstance(value, Mapping):
        raise DataError(
            f"{place}: found {kind(value)} where a row should be.",
            f"A row is an object: {SHAPES}.",
        )
    renamed = _renamed(value, columns, place) if columns else value
    filled = {name: field for name, field in renamed.items() if _is_given(name, field)}
    given = Given(filled, place, columns)
    if "input_ids" in filled:
        return _with_unused(tokenized.parse(given), given, tokenized.FIELDS)
    _check_unpaired(given)
    shape = _fitting(given)
    if shape is None:
        raise DataError(
            f"{place}: the row has no known shape; its fields: {names(value)}.",
            f"Expected one of {SHAPES}, none of them null; data.train.columns gives fields with "
            "other names ours.",
        )
    for name in shape.refused:
        if not given.is_empty(name):
            raise DataError(
                f"{place}: the row has {quoted(given.label(name))}, which is not used beside"
                f" {_quoted(shape)}.",
                "Remove it, or write all that is asked as messages.",
            )
    is_pair = shape.needed == _PAIR
    judged = flags.verdicts(given, is_pair=is_pair) if shape.is_judged else ()
    used = (*shape.needed, *shape.beside, *shape.refused, *judged)
    return _with_unused(shape.build(given), given, used)


def _is_given(name: object, value: object) -> bool:
    """Return whether a field counts as present. Null counts as absent, but a verdict may be NaN."""
    if name in flags.VERDICTS:
        return value is not None
    return not plain.is_missing(value)


def _renamed(value: Fields, columns: Mapping[str, str], place: RowPlace) -> dict[Any, Any]:
    """Return the fields of a row by jaxft's names."""
    for ours, theirs in columns.items():
        if ours not in FIELDS:
            close = nearest(ours, FIELDS)
            raise DataError(
                f"{place}: the columns give a field named {quoted(ours)}, which no row has.",
                f"Did you mean {quoted(close)}?" if close else f"Rows are {SHAPES}.",
            )
        if theirs not in value:
            raise DataError(
                f"{place}: the row has no {quoted(theirs)}, which is to be read as"
                f" {quoted(ours)}; its fields: {names(value)}.",
                "Correct the name in columns, or leave it out.",
            )
    mapped = {ours: value[theirs] for ours, theirs in columns.items()}
    taken = {*columns.values(), *mapped}
    return {**mapped, **{name: field for name, field in value.items() if name not in taken}}


def _with_unused(row: Row, given: Given, used: tuple[str, ...]) -> Row:
    """Return the row with the names of its unused fields."""
    rest = {
        name: field
        for name, field in given.values.items()
        if name not in used and not plain.is_missing(field)
    }
    if not rest:
        return row
    unused = (*leftovers.unused(rest, given.place), *row.unused)
    return dataclasses.replace(row, unused=unused)


def _check_unpaired(given: Given) -> None:
    """Raise if a row compares a chosen answer with a rejected one."""
    compared = [name for name in ("chosen", "rejected") if not given.is_empty(name)]
    if compared:
        raise DataError(
            f"{given.place}: the row has {names(compared)}: it compares answers.",
            "Training on preferences is not supported yet. Write the answer to learn as messages "
            "or as a completion, and remove these fields.",
        )


def _fitting(given: Given) -> _Shape | None:
    """Return the shape whose needed fields are all present; None if there is none."""
    filled = given.values
    fitting = [shape for shape in _SHAPES if all(name in filled for name in shape.needed)]
    if len(fitting) > 1:
        both = " and ".join(_quoted(shape) for shape in fitting)
        raise DataError(
            f"{given.place}: the row has two meanings, of {both}.",
            "Keep the fields of one, so that it is clear what is learned.",
        )
    if fitting:
        return fitting[0]
    return _TEXT if "text" in filled else None


def _quoted(shape: _Shape) -> str:
    return " with ".join(map(quoted, shape.needed))


def _pair(given: Given) -> Row:
    """Return the row of a prompt and a completion: both texts, or both lists of messages."""
    parts = [
        plain.as_text(fields.plain_list(given.values[name]), given.label(name), given.place)
        for name in _PAIR
    ]
    if all(isinstance(part, str) for part in parts):
        return _completion(given)
    if all(isinstance(part, list) for part in parts):
        return dialogues.from_prompt(given)
    found = " and ".join(
        f"{quoted(given.label(name))} is {kind(part)}"
        for name, part in zip(_PAIR, parts, strict=True)
    )
    raise DataError(f"{given.place}: {found}.", "Make both strings, or both lists of messages.")


def _completion(given: Given) -> Row:
    """Return the row of two texts, which must have none of the fields of a chat."""
    for name in (*dialogues.BESIDE, "context"):
        if not given.is_empty(name):
            raise DataError(
                f"{given.place}: the row has {quoted(given.label(name))} beside a prompt that is"
                " plain text.",
                "Write it into the prompt, write the row as messages, or remove the field.",
            )
    return TextCompletion(given.place, given.text("prompt"), given.text("completion"))


def _text(given: Given) -> Row:
    return Text(given.place, given.text("text"))


_PAIR = ("prompt", "completion")
_CHAT, _ASKED = dialogues.BESIDE, dialogues.BESIDE_QUESTIONS

_SHAPES = (
    _Shape(
        ("messages",),
        _CHAT,
        ("history",),
        lambda given: dialogues.from_messages(given, "messages"),
    ),
    _Shape(_PAIR, _CHAT, ("history",), _pair),
    _Shape(
        ("conversations",),
        _CHAT,
        ("history",),
        lambda given: dialogues.from_messages(given, "conversations"),
    ),
    _Shape(("instruction", "output"), ("input", *_ASKED), (), dialogues.from_instruction),
    _Shape(("question", "answer"), _ASKED, (), dialogues.from_question),
)
_TEXT = _Shape(("text",), (), (), _text, is_judged=False)

# The names of all fields that a row can use.
FIELDS = frozenset(
    {*tokenized.FIELDS, *flags.VERDICTS, "chosen", "rejected"}
    | {
        name
        for shape in (*_SHAPES, _TEXT)
        for name in (*shape.needed, *shape.beside, *shape.refused)
    }
)
