"""The values in a file of rows, by the ending of its name: `values(Path("rows.jsonl.gz"))`.

Public here: `values`, `ending`, `ENDINGS`, and `columns`, which also reads tables from elsewhere.
There is one file for each format, and `opening` for bytes and lines. A file is read exactly as its
format says, or refused with the line or row: nothing is repaired, and only blank lines are left
out. Every value comes with its place, and no file is held in memory as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from jaxft.data.rows.row import RowPlace
from jaxft.data.sources.files import columns, json_values, opening, paragraphs, separated
from jaxft.errors import DataError

__all__ = ["ENDINGS", "Values", "columns", "ending", "values"]

Values = Iterator[tuple[RowPlace, object]]


class _RowFormat(NamedTuple):
    """A format of files.

    Attributes:
        read: Yields the values of a file.
        kinds: The kinds in `opening.check_kind` that its first bytes may show; none for text.
    """

    read: Callable[[Path], Values]
    kinds: tuple[str, ...] = ()


_FORMATS = {
    ".jsonl": _RowFormat(json_values.json_lines),
    ".ndjson": _RowFormat(json_values.json_lines),
    ".json": _RowFormat(json_values.json_file),
    ".csv": _RowFormat(separated.comma_separated),
    ".tsv": _RowFormat(separated.tab_separated),
    ".parquet": _RowFormat(columns.parquet_file, ("Parquet",)),
    ".arrow": _RowFormat(columns.arrow_file, ("Arrow",)),
    ".txt": _RowFormat(paragraphs.paragraphs),
}

ENDINGS = tuple(_FORMATS)


def ending(path: Path) -> str:
    """Return the ending that says a file's format, such as `.jsonl` for `rows.JSONL.gz`.

    It is "" if the format is not known.
    """
    is_compressed = path.suffix.lower() in opening.COMPRESSIONS
    found = Path(path.stem if is_compressed else path.name).suffix.lower()
    return found if found in _FORMATS else ""


def values(path: Path) -> Values:
    """Yield the values of a file with their places; its ending decides the format.

    Args:
        path: The file; UTF-8, unless it is Parquet or Arrow. It may be compressed: `.jsonl.gz`.

    Raises:
        DataError: The ending is unknown, or the file is not what its ending says.
        OSError: The file cannot be read.
    """
    format = _FORMATS.get(ending(path))
    if format is None:
        found = f'The ending "{path.suffix}"' if path.suffix else "A name without an ending"
        packed = " or ".join(opening.COMPRESSIONS)
        raise DataError(
            f"{path}: {found} does not say what kind of file this is.",
            f"Supported endings: {', '.join(ENDINGS)}, each also with {packed} behind it.",
        )
    opening.check_kind(path, format.kinds)
    yield from format.read(path)
