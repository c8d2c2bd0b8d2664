"""Rows from a JSON Lines file.

Separate from rows, which knows their shapes and no files. The invariant: a line is read as JSON
has it or refused by its number; nothing is repaired or left out except blank lines.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path

from jaxft import errors
from jaxft.data import rows as rows_
from jaxft.data.rows import Row
from jaxft.errors import DataError


def read_rows(path: Path) -> list[Row]:
    """Read every row of a JSON Lines file.

    Blank lines are skipped, and a byte order mark at the start is ignored.

    Args:
        path: The file, UTF-8.

    Raises:
        DataError: The file is missing or empty, or a line is not a row of a known shape.
    """
    rows = [
        rows_.parse_row(_parse_json(text, f"{path}:{line}"), source=str(path), line=line)
        for line, text in _lines(path)
    ]
    if not rows:
        raise DataError(
            f"{path} is empty: it has no rows.",
            f"Write one JSON object a line: {rows_.SHAPES}.",
        )
    return rows


def _parse_json(text: str, place: str) -> object:
    """Return the value of one line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        found = f"{error.msg} at column {error.colno}"
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond all bounds
        found = str(error).splitlines()[0]
    raise DataError(
        f"{place}: not JSON ({found}): {_excerpt(text)}",
        f"Each line is one JSON object: {rows_.SHAPES}.",
    )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, with their numbers.

    Bytes are split at line feeds alone: `str.splitlines` would also cut at U+2028 and its like,
    which JSON allows inside strings.
    """
    try:
        with path.open("rb") as file:
            for line, data in enumerate(file, start=1):
                if line == 1:
                    data = data.removeprefix(codecs.BOM_UTF8)
                if data.strip():
                    yield line, _decode(data, f"{path}:{line}")
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist.", _missing_remedy(path)) from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}.",
            "Give a JSON Lines file that this user may read.",
        ) from error


def _decode(data: bytes, place: str) -> str:
    """Return one line as text."""
    try:
        return data.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: not UTF-8: byte 0x{data[error.start]:02x} at position {error.start}.",
            "Save the file as UTF-8.",
        ) from error


def _missing_remedy(path: Path) -> str:
    """Return what to do about a missing file, naming a file nearby that was perhaps meant."""
    folder = path.parent
    if not folder.is_dir():
        return f"Its folder {folder} does not exist either; paths in a recipe start at the recipe."
    names = [entry.name for entry in folder.iterdir() if entry.is_file()]
    guess = errors.nearest(path.name, names)
    return f"Did you mean {folder / guess}?" if guess else f"No file in {folder} has such a name."


def _excerpt(text: str) -> str:
    """Return the start of a line, short enough for a message and without control codes."""
    shown = text if len(text) <= 60 else text[:57] + "..."
    return json.dumps(shown, ensure_ascii=False)
