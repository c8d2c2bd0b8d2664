"""One field of a row, checked: a text, a list of objects, or what an object holds.

`text("2 + 2?", "question", place)` is `"2 + 2?"`; a number there is refused by the field's name and
its place. Separate from shapes, which knows the fields' names and what they mean together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxft.data.rows import plain
from jaxft.data.rows.row import Place
from jaxft.data.rows.wording import kind
from jaxft.errors import DataError

# Rows from Python may have names that are not strings; such a field is not used.
Fields = Mapping[Any, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Given:
    """The fields of a row that are not null, by our names.

    Attributes:
        values: The fields.
        place: Where the row stands.
        columns: The file's names of those that it calls otherwise, by ours.
    """

    values: Fields
    place: Place
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def label(self, name: str) -> str:
        """Return what the file calls a field."""
        return self.columns.get(name, name)

    def text(self, name: str, default: str = "") -> str:
        """Return a field's text, the default where it is missing.

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


def text(value: object, name: str, place: Place) -> str:
    """Return a field's text.

    Raises:
        DataError: It is not a string, or no tokenizer can take it.
    """
    found = plain.as_text(value, name, place)
    if isinstance(found, str):
        return found
    raise DataError(f'{place}: "{name}" is {kind(value)}.', "Expected a string.")


def objects(value: object, name: str, expected: str, place: Place) -> list[tuple[str, Fields]]:
    """Return the objects of a list, each with the name that messages call it by.

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


def from_text(value: object, name: str, place: Place) -> Any:
    """Return a list or an object, of which a field may hold the JSON text; None for a blank one.

    Objects in it that are not text lose their fields that are null, as the row itself does.

    Raises:
        DataError: The text is not JSON, or JSON has no such value.
    """
    found = plain.as_text(value, name, place)
    if isinstance(found, str):
        return plain.from_json(found, name, place) if found.strip() else None
    return plain.without_nulls(plain.plain(found, name, place))


def plain_list(value: object) -> object:
    """Return arrays and tuples, as rows from Python have them, as lists; others as they are."""
    if isinstance(value, tuple):
        return list(value)
    return value.tolist() if hasattr(value, "tolist") else value
