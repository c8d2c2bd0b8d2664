"""The rows of Parquet and Arrow files, and of any table of pyarrow.

A table with the columns `text` and `id` yields `{"text": "a", "id": 1}`. All columns are read, so
that unused ones can be named, and a few rows at a time. A damaged file is refused. A value that
has no type in Python becomes a `ForeignValue`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxft.data.rows.row import RowPlace
from jaxft.data.sources.files import opening
from jaxft.errors import DataError

# Rows that are converted to Python objects at once. One row may be a megabyte long.
_NUM_ROWS = 256

_ARROW_FILE_START = b"ARROW1"


@dataclasses.dataclass(frozen=True)
class ForeignValue:
    """A value that has no type in Python, such as a date after the year 9999."""

    kind: str


def parquet_file(path: Path) -> Iterator[tuple[RowPlace, object]]:
    """Yield an object for each row of a Parquet file."""
    from pyarrow import parquet

    def batches() -> Iterator[Any]:
        with _seekable(path) as source, parquet.ParquetFile(source) as file:
            yield from file.iter_batches(batch_size=_NUM_ROWS)

    return _checked(batches(), path, "Parquet")


def arrow_file(path: Path) -> Iterator[tuple[RowPlace, object]]:
    """Yield an object for each row of an Arrow file, or of an Arrow stream from `datasets`."""
    import pyarrow

    def batches() -> Iterator[Any]:
        with _seekable(path) as source:
            is_file = source.read(len(_ARROW_FILE_START)) == _ARROW_FILE_START
            source.seek(0)
            if not is_file:
                yield from pyarrow.ipc.open_stream(source)
                return
            reader = pyarrow.ipc.open_file(source)
            for index in range(reader.num_record_batches):
                yield reader.get_batch(index)

    return _checked(batches(), path, "Arrow")


def rows(batch: Any) -> Iterator[dict[str, object]]:
    """Yield the rows of a record batch or a table.

    Raises:
        ValueError: Two of its columns have the same name.
    """
    names = batch.schema.names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f'the column "{twice}" is there twice')
    for start in range(0, batch.num_rows, _NUM_ROWS):
        part = batch.slice(start, _NUM_ROWS)
        for cells in zip(*(_python_values(column) for column in part.columns), strict=True):
            yield dict(zip(names, cells, strict=True))


def _checked(batches: Iterator[Any], path: Path, kind: str) -> Iterator[tuple[RowPlace, object]]:
    """Yield the rows of record batches with their places.

    Raises:
        DataError: The file is damaged.
        OSError: The file cannot be read.
    """
    import pyarrow

    number = 0
    try:
        for batch in batches:
            # Reading with damaged offsets would read memory outside of the file.
            batch.validate(full=True)
            for value in rows(batch):
                yield RowPlace(str(path), number, "row"), value
                number += 1
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{path}: not {kind}, or damaged, after {number:,} rows ({reason}).",
            "Write the file again, or copy it again from where it came.",
        ) from error


@contextlib.contextmanager
def _seekable(path: Path) -> Iterator[Any]:
    """Open a file for reading at any position. A compressed file is unpacked to a temporary one."""
    import pyarrow

    with contextlib.ExitStack() as stack:
        if path.suffix.lower() in opening.COMPRESSIONS:
            unpacked = stack.enter_context(tempfile.NamedTemporaryFile())
            with opening.opened(path) as packed:
                shutil.copyfileobj(packed, unpacked)
            unpacked.flush()
            path = Path(unpacked.name)
        path.open("rb").close()  # pyarrow's own error would lack the reason
        yield stack.enter_context(pyarrow.memory_map(str(path)))


def _python_values(column: Any) -> list[Any]:
    """Return the values of a column as Python has them."""
    # The exception of a failed conversion depends on the type of the column.
    try:
        values: list[Any] = column.to_pylist(maps_as_pydicts="strict")
    except Exception:
        return [_python_value(scalar) for scalar in column]
    return values


def _python_value(scalar: Any) -> Any:
    try:
        return scalar.as_py(maps_as_pydicts="strict")
    except Exception:
        return ForeignValue(str(scalar.type))
