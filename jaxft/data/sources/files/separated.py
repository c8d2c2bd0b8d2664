"""The rows of CSV and TSV files. Each cell is a text under the name of its column.

The header `prompt,completion` and the line `hi,ho` give `{"prompt": "hi", "completion": "ho"}`.
A row with more or fewer cells than the header is refused with its line.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from jaxft.data.rows.row import RowPlace
from jaxft.data.sources.files import opening
from jaxft.errors import DataError

# The longest cell, in characters. csv's own limit is 128 Ki, and training texts can be longer.
_LONGEST_CELL = 2**31 - 1

_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_ENDINGS = {",": ", or give it the ending .csv", "\t": ", or give it the ending .tsv"}


def comma_separated(path: Path) -> Iterator[tuple[RowPlace, object]]:
    """Yield an object for each row of a CSV file."""
    return _rows(path, ",")


def tab_separated(path: Path) -> Iterator[tuple[RowPlace, object]]:
    """Yield an object for each row of a TSV file; cells may be quoted as in CSV."""
    return _rows(path, "\t")


def _rows(path: Path, delimiter: str) -> Iterator[tuple[RowPlace, object]]:
    """Yield an object for each row under the header; cells may hold delimiters and line feeds."""
    lines = (line for _, line in opening.lines(path))
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    header: list[str] = []
    while True:
        place = RowPlace(str(path), reader.line_num + 1)
        cells = _next_cells(reader, place, delimiter)
        if cells is None:
            return
        if header and cells:
            yield place, _cells_by_name(header, cells, place, delimiter)
        elif cells:
            header = _header(cells, place, delimiter)


def _next_cells(reader: Iterator[list[str]], place: RowPlace, delimiter: str) -> list[str] | None:
    """Return the cells of the next row: an empty list for a blank line, None at the end."""
    # The limit is global to the process, so it is raised for this row only.
    limit = csv.field_size_limit(_LONGEST_CELL)
    try:
        return next(reader, None)
    except csv.Error as error:
        kind, signs = ("TSV" if delimiter == "\t" else "CSV"), _NAMES[delimiter]
        raise DataError(
            f"{place}: not {kind} ({error}).",
            f'Separate cells by {signs}, and put those with {signs}, line feeds or " in'
            ' double quotes, with each " inside written twice.',
        ) from error
    finally:
        csv.field_size_limit(limit)


def _header(names: list[str], place: RowPlace, delimiter: str) -> list[str]:
    """Return the names of the columns, after a check of the delimiter and of doubled names."""
    other = next((sign for sign in _NAMES if sign in names[0] and len(names) == 1), None)
    if other is not None:
        wanted, found = _NAMES[delimiter], _NAMES[other]
        alone = json.dumps(names[0], ensure_ascii=False)
        hint = _ENDINGS.get(other, "")
        raise DataError(
            f"{place}: the columns are separated by {found}, and not by {wanted}: {alone}.",
            f"Save the file with {wanted} between them, in UTF-8{hint}.",
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            f"{place}: the header has the column {json.dumps(twice, ensure_ascii=False)} twice.",
            "The first line names each column once.",
        )
    return names


def _cells_by_name(
    header: list[str], cells: list[str], place: RowPlace, delimiter: str
) -> dict[str, str]:
    """Return the cells of a row by the names of their columns."""
    if len(cells) != len(header):
        raise DataError(
            f"{place}: the row has {len(cells)} cells and the header {len(header)}.",
            f"Put cells that hold {_NAMES[delimiter]} or line feeds in double quotes.",
        )
    return dict(zip(header, cells, strict=True))
