"""The value of one field of a row, checked: a text, a list of objects, or JSON text.

`text("2 + 2?", "question", place)` is `"2 + 2?"`; for a number it raises an error that names the
field and the place. `shapes` knows the names of the fields and what they mean together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxft.data.rows import plain
from jaxft.data.rows.row import RowPlace
from jaxft.data.rows.wording import kind
from jaxft.errors import DataError

# The fields of a row by name. In rows from Python a name may be something other than a string;
# such a field is not used.
Fields = Mapping[Any, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Given:
    """The fields of a row that are not null, by the names that jaxft uses.

    Attributes:
        values: The fields.
        place: Where the row stands.
        columns: The file's name of a field by jaxft's name, such as `{"question": "query"}`; only
            for fields whose names differ.
    """

    values: Fields
    place: RowPlace
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def label(self, name: str) -> str:
        """Return the name of a field in the file."""
        return self.columns.get(name, name)

    def text(self, name: str, default: str = "") -> str:
        """Return a field's text, or the default if the field is missing.

        Raises:
            DataError: It is not a string.
        """
        if name not in self.values:
            return default
        return text(self.values[name], self.label(name), self.place)

    def is_empty(self, name: str) -> bool:
        """Return whether a field is missing, blank, or a list or object with nothing in it."""
        return is_empty(self.values.get(name))


def is_empty(value: object) -> bool:
    """Return whether a value is null, blank, or a list or object with nothing in it."""
    if value is None:
        return True
    if isinstance(value, str):
        return not value.strip()
    value = plain_list(value)
    return plain.is_missing(value) or (isinstance(value, list | Mapping) and not value)


def text(value: object, name: str, place: RowPlace) -> str:
    """Return a field's text.

    Raises:
        DataError: It is not a string, or no tokenizer can take it.
    """
    found = plain.as_text(value, name, place)
    if isinstance(found, str):
        return found
    raise DataError(f'{place}: "{name}" is {kind(value)}.', "Expected a string.")


def objects(value: object, name: str, expected: str, place: RowPlace) -> list[tuple[str, Fields]]:
    """Return the objects in a list, each with its name for messages, such as `messages[2]`.

    Args:
        value: The list.
        name: The name of the field.
        expected: The form of an object, for the error message.
        place: Where the row stands.

    Raises:
        DataError: The value is not a list, is empty, or has something other than objects in it.
    """
    value = plain_list(value)
    if not isinstance(value, list) or not value:
        raise DataError(
            f'{place}: "{name}" is {kind(value)}.',
            f"Expected a list of objects, {expected}, at least one.",
        )
    named = [(f"{name}[{index}]", each) for index, each in enumerate(value)]
    for each, found in named:
        if not isinstance(found, Mapping):
            raise DataError(f'{place}: "{each}" is {kind(found)}.', f"Expected {expected}.")
    return named


def from_text(value: object, name: str, place: RowPlace) -> Any:
    """Return the list or object in a field, which may hold it as JSON text; None for blank text.

    In a value that is not JSON text, the null fields of objects are removed, as in the row itself.

    Raises:
        DataError: The text is not JSON, or the value has a type that JSON lacks.
    """
    found = plain.as_text(value, name, place)
    if isinstance(found, str):
        return plain.from_json(found, name, place) if found.strip() else None
    return plain.without_nulls(plain.plain(found, name, place))


def plain_list(value: object) -> object:
    """Return an array or a tuple as a list, and any other value unchanged."""
    if isinstance(value, tuple):
        return list(value)
    return value.tolist() if hasattr(value, "tolist") else value
