"""What stands in a file of rows, by the ending of its name.

Separate from shapes, which knows rows and no files, and from sources, which puts both together.
The invariant: a file is read as its format has it or refused by line or row; nothing is repaired
or left out except blank lines, and every value leaves with its place.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxft.data import shapes
from jaxft.data.rows import Place
from jaxft.errors import DataError

Values = Iterator[tuple[Place, object]]

# In characters. csv's own limit is 128 Ki, and texts to train on can be longer.
_LONGEST_CELL = 2**31 - 1


def values(path: Path) -> Values:
    """Yield what a file holds and where, by its ending: see `ENDINGS`.

    Args:
        path: The file; UTF-8, unless it is Parquet.

    Raises:
        DataError: The ending is unknown, or the file is not what its ending says.
        OSError: The file cannot be read.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        ending = f'The ending "{path.suffix}"' if path.suffix else "A name without an ending"
        raise DataError(
            f"{path}: {ending} does not say what kind of file this is.",
            f"Supported endings: {', '.join(ENDINGS)}.",
        )
    return reader(path)


def _json_lines(path: Path) -> Values:
    """Yield an object a line; blank lines are skipped."""
    for number, line in _lines(path):
        if line.strip():
            yield Place(str(path), number), _parse_json(line.strip(), path, number)


def _json(path: Path) -> Values:
    """Yield the items of a list, or else an object a line."""
    if next((line for _, line in _lines(path) if line.strip()), "").lstrip().startswith("["):
        items = _parse_json("".join(line for _, line in _lines(path)), path, 1)
        assert isinstance(items, list)
        for number, item in enumerate(items):
            yield Place(str(path), number, "row"), item
    else:
        yield from _json_lines(path)


def _csv(path: Path) -> Values:
    """Yield an object for each row under the header; cells may hold commas and line feeds."""
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    header: list[str] = []
    while True:
        place = Place(str(path), reader.line_num + 1)
        cells = _next_cells(reader, place)
        if cells is None:
            return
        if header and cells:
            yield place, _cells_by_name(header, cells, place)
        elif cells:
            header = _header(cells, place)


def _parquet(path: Path) -> Values:
    """Yield an object for each row, of the columns that may mean something.

    Other columns may be pictures, or dates that Python has no type for.
    """
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            known = [name for name in names if name in shapes.FIELDS]
            for batch in file.iter_batches(columns=known):
                for value in batch.to_pylist():
                    yield Place(str(path), number, "row"), dict.fromkeys(names) | value
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: not Parquet, or damaged, after {number:,} rows ({_first_line(error)}).",
            "Write the file again, or copy it again from where it came.",
        ) from error


def _paragraphs(path: Path) -> Values:
    """Yield blocks of lines with blank lines between them, each as one text."""
    for is_blank, block in itertools.groupby(_lines(path), lambda line: not line[1].strip()):
        if not is_blank:
            numbers, lines = zip(*block, strict=True)
            text = "\n".join(line.rstrip("\r\n") for line in lines)
            yield Place(str(path), numbers[0]), {"text": text}


_READERS: dict[str, Callable[[Path], Values]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
    ".txt": _paragraphs,
}

ENDINGS = tuple(_READERS)


def _parse_json(text: str, path: Path, first_line: int) -> object:
    """Return the value of one line, or of a whole file."""
    line = 1
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = error.lineno
        found = f"{error.msg} at column {error.colno}"
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond all bounds
        found = _first_line(error)
    raise DataError(
        f"{path}:{first_line + line - 1}: not JSON ({found}):"
        f" {_excerpt(text.split(chr(10))[line - 1])}",
        f"Each line is one JSON object, or all of a .json file one list: {shapes.SHAPES}.",
    )


def _next_cells(reader: Iterator[list[str]], place: Place) -> list[str] | None:
    """Return the next row's cells, none for a blank line, or None at the end."""
    # The limit holds for the whole process, so it is lifted for this one row.
    limit = csv.field_size_limit(_LONGEST_CELL)
    try:
        return next(reader, None)
    except csv.Error as error:
        raise DataError(
            f"{place}: not CSV ({error}).",
            'Separate cells by commas, and put those with commas, line feeds or " in'
            ' double quotes, with each " inside written twice.',
        ) from error
    finally:
        csv.field_size_limit(limit)


def _header(names: list[str], place: Place) -> list[str]:
    """Return the names of the columns."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            f'{place}: the header has the column "{twice}" twice.',
            "The first line of a CSV file names each column once.",
        )
    return names


def _cells_by_name(header: list[str], cells: list[str], place: Place) -> dict[str, str]:
    """Return the cells of a row by the names of their columns."""
    if len(cells) != len(header):
        raise DataError(
            f"{place}: the row has {len(cells)} cells and the header {len(header)}.",
            "Put cells that hold commas or line feeds in double quotes.",
        )
    return dict(zip(header, cells, strict=True))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines, whatever ends them included, with their numbers.

    Bytes are split at line feeds alone: `str.splitlines` would also cut at U+2028 and its like,
    which JSON allows inside strings. A byte order mark at the start is left out.
    """
    with path.open("rb") as file:
        for number, data in enumerate(file, start=1):
            if number == 1:
                data = data.removeprefix(codecs.BOM_UTF8)
            yield number, _decode(data, f"{path}:{number}")


def _decode(data: bytes, place: str) -> str:
    """Return one line as text."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: not UTF-8: byte 0x{data[error.start]:02x} at position {error.start}.",
            "Save the file as UTF-8.",
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _excerpt(text: str) -> str:
    """Return the start of a line, short enough for a message and without control codes."""
    shown = text if len(text) <= 60 else text[:57] + "..."
    return json.dumps(shown, ensure_ascii=False)
