"""The values of JSON Lines and of JSON files, read without holding the whole file.

A line `{"text": "a"}` of a .jsonl file is one value. A .json file is a list of values, an object
around one list (`{"data": [...]}`), or objects one after another, each on any number of lines.
An object with a key that stands twice is refused, because one of the two values would be lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxft.data.rows import shapes
from jaxft.data.rows.row import RowPlace
from jaxft.data.sources.files import opening
from jaxft.errors import DataError

_LINE_REMEDY = (
    "Each line is one whole JSON object. Values over several lines belong in a .json file."
)
_FILE_REMEDY = 'A .json file is a list of objects, {"data": [...]}, or objects one after another.'

# Characters that are read at once, at least.
_WINDOW = 1 << 16

# The longest token of JSON other than a string, in characters.
_LONGEST_TOKEN = 16


class _DoubledKeyError(ValueError):
    """An object has a key twice; the message is the key."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's fields by name."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _DoubledKeyError(next(name for name in names if names.count(name) > 1))
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def json_lines(path: Path) -> Iterator[tuple[RowPlace, object]]:
    """Yield the value of each line; blank lines are skipped."""
    for number, line in opening.lines(path):
        text = line.strip()
        if text:
            yield RowPlace(str(path), number), _parse_line(text, RowPlace(str(path), number))


def json_file(path: Path) -> Iterator[tuple[RowPlace, object]]:
    """Yield the items of a list, alone or within one object, or else one object after another."""
    window = _Window(path)
    if window.peek() == "[":
        for number, item in enumerate(_items(window)):
            yield RowPlace(str(path), number, "row"), item
        return
    if not window.peek():
        return
    place = window.place()
    first = window.value()
    rows = _wrapped_rows(first, path) if not window.peek() else None
    if rows is not None:
        for number, item in enumerate(rows):
            yield RowPlace(str(path), number, "row"), item
        return
    yield place, first
    while window.peek():
        place = window.place()
        yield place, window.value()


def _parse_line(text: str, place: RowPlace) -> object:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        found = f"{error.msg} at column {error.pos + 1}"
    except _DoubledKeyError as error:
        raise _doubled(str(error), place) from error
    except (ValueError, RecursionError) as error:  # a number too long, or nesting too deep
        found = str(error).partition("\n")[0]
    raise DataError(f"{place}: not JSON ({found}): {_excerpt(text)}", _LINE_REMEDY)


def _items(window: _Window) -> Iterator[object]:
    """Yield the items of the list that begins at the window's position."""
    window.skip()
    if window.peek() == "]":
        window.skip()
    else:
        while True:
            yield window.value()
            if window.peek() not in (",", "]"):
                raise window.error("Expecting ',' delimiter")
            is_last = window.peek() == "]"
            window.skip()
            if is_last:
                break
    if window.peek():
        raise window.error("Extra data")


def _wrapped_rows(value: object, path: Path) -> list[Any] | None:
    """Return the rows inside the only object of a file; None if the object is a row itself.

    The object is a row if it has a field that rows have, or a list of messages under any name.
    """
    if not isinstance(value, Mapping) or value.keys() & shapes.FIELDS:
        return None
    lists = {name: items for name, items in value.items() if _is_list_of_rows(name, items)}
    if len(lists) > 1:
        names = ", ".join(f'"{name}"' for name in lists)
        raise DataError(
            f"{path}: it holds several lists of rows: {names}.",
            "Write each of them to a file of its own, so that it is clear which are learned.",
        )
    return next(iter(lists.values()), None)


def _is_list_of_rows(name: str, items: object) -> bool:
    """Return whether a field holds a list of rows, and not the messages of one row."""
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        return False
    return name == "data" if not items else not items[0].keys() & {"role", "from"}


class _Window:
    """The part of a JSON file that holds the value being read.

    It doubles until the value is complete, so that a value is parsed only a few times.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pieces = opening.pieces(path)
        self._text = ""
        self._at = 0
        self._mark = 0  # the index whose line and column are the two values below
        self._line = 1
        self._column = 1

    def peek(self) -> str:
        """Move to the next character that is not a space, and return it, or "" at the end."""
        while True:
            rest = self._text[self._at : self._at + _LONGEST_TOKEN]
            stripped = rest.lstrip(" \t\r\n")
            self._at += len(rest) - len(stripped)
            if stripped:
                return stripped[0]
            if not rest and not self._grow():
                return ""

    def skip(self) -> None:
        """Move past the character that `peek` returned."""
        self._at += 1

    def place(self) -> RowPlace:
        """Return the line of the next character."""
        self._move_mark()
        return RowPlace(str(self._path), self._line)

    def value(self) -> object:
        """Return the value that begins at the position, and move past it.

        Raises:
            DataError: No valid value begins there.
        """
        self.peek()
        while True:
            try:
                found, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._may_be_cut(error) and self._grow():
                    continue
                raise self.error(error.msg, error.pos) from None
            except _DoubledKeyError as error:
                raise _doubled(str(error), self.place()) from error
            except (ValueError, RecursionError) as error:  # too long or too deep, as above
                raise self.error(str(error).partition("\n")[0]) from error
            is_near_end = end >= len(self._text) - len("e+")
            if is_near_end and self._grow():  # a number may go on: 1 as 12, 1.5 or 1e+3
                continue
            self._at = end
            return found

    def error(self, found: str, at: int | None = None) -> DataError:
        """Return the error for text that is not JSON, at the position or at another index."""
        index = self._at if at is None else at
        line, column = self._position(index)
        start = self._text.rfind("\n", 0, index) + 1
        excerpt = _excerpt(self._text[start:].partition("\n")[0])
        return DataError(
            f"{self._path}:{line}: not JSON ({found} at column {column}): {excerpt}", _FILE_REMEDY
        )

    def _position(self, index: int) -> tuple[int, int]:
        """Return the line and the column at an index, which is at or after the mark."""
        num_before = self._text.count("\n", self._mark, index)
        if num_before == 0:
            return self._line, self._column + index - self._mark
        return self._line + num_before, index - self._text.rfind("\n", 0, index)

    def _move_mark(self) -> None:
        """Move the mark to the position, and remember its line and column."""
        self._line, self._column = self._position(self._at)
        self._mark = self._at

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        """Return whether an error may be due only to the end of the window."""
        is_near_end = error.pos >= len(self._text) - _LONGEST_TOKEN
        return is_near_end or error.msg.startswith("Unterminated string")

    def _grow(self) -> bool:
        """Read more of the file, and forget the text before the position.

        At the end of the file, return False and change nothing.
        """
        wanted = max(_WINDOW, len(self._text) - self._at)
        more: list[str] = []
        while wanted > 0 and (piece := next(self._pieces, "")):
            more.append(piece)
            wanted -= len(piece)
        if not more:
            return False
        self._move_mark()
        self._text = "".join([self._text[self._at :], *more])
        self._at = self._mark = 0
        return True


def _doubled(name: str, place: RowPlace) -> DataError:
    return DataError(
        f"{place}: an object has the key {_excerpt(name)} twice.",
        "Keep one of the two; the other would be lost.",
    )


def _excerpt(text: str) -> str:
    """Return the start of a line, short enough for a message and without control codes."""
    shown = text if len(text) <= 60 else text[:57] + "..."
    return json.dumps(shown, ensure_ascii=False)
