"""Rows from files, the Hub, or Python objects.

`open_rows(config.data.train, None, "train")` returns a `RowSource` for each source in a recipe,
which can be iterated over any number of times. A `RowSource` puts an origin and `shapes` together:
every value becomes one row, in order, or an error names its place. Sources are read lazily, and the
memory does not grow with their size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxft.config import HoldOutConfig, SourceConfig, paths
from jaxft.data.rows import shapes
from jaxft.data.rows.row import Row
from jaxft.data.sources import file_set, hub, origin
from jaxft.data.sources.hold_out import HoldOut, SideName
from jaxft.data.sources.in_memory import RowsInMemory
from jaxft.data.sources.origin import Origin
from jaxft.errors import DataError


class RowSource:
    """Rows that are read lazily, and again with each iteration.

    Attributes:
        name: Its name in messages, such as `train.jsonl` or `3 files in data`.
        files: The names of files that the places of its rows have, in order.
        ignored: Files in its folder that hold no rows.
    """

    def __init__(
        self,
        found: Origin,
        columns: Mapping[str, str] | None = None,
        hold_out: HoldOut | None = None,
        side: SideName = "train",
    ) -> None:
        """Keep the origin; nothing is read yet.

        Args:
            found: The origin of the values.
            columns: Other names of fields, as in `SourceConfig.columns`.
            hold_out: The division of the rows; None takes all rows.
            side: The side of the division to take.
        """
        self.name = found.name
        self.files: tuple[str, ...] = tuple(map(str, getattr(found, "paths", (found.name,))))
        self.ignored: tuple[Path, ...] = getattr(found, "ignored", ())
        self._origin = found
        self._columns = dict(columns or {})
        self._hold_out = hold_out
        self._side = side

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows in order.

        Raises:
            DataError: A file cannot be read, a value is not a row of a known shape, or there are
                no rows.
        """
        values = (
            self._origin.values()
            if self._hold_out is None
            else self._hold_out.values(self._origin, self._side)
        )
        for place, value in values:
            yield shapes.parse_row(value, place, self._columns)

    def digest(self) -> str:
        """Return a digest of all content, and of the options that the rows depend on.

        The names of files do not change it.

        Raises:
            DataError: A file cannot be read.
        """
        divided = None if self._hold_out is None else self._hold_out.key(self._side)
        return origin.digest_of([self._origin.content(), sorted(self._columns.items()), divided])


def open_rows(
    sources: Sequence[SourceConfig], hold_out: HoldOutConfig | None, side: SideName
) -> list[RowSource]:
    """Find the rows of a recipe, one `RowSource` for each source.

    Args:
        sources: The sources in `data.train` or `data.eval`.
        hold_out: The division of the training rows; None takes all rows.
        side: The wanted side: the rows to train on ("train"), or the held-out ones ("eval").

    Raises:
        DataError: A file is missing, or a data set is neither on this machine nor on the Hub.
    """
    found = [_origin(source) for source in sources]
    divided = None if hold_out is None else HoldOut(hold_out, found)
    return [
        RowSource(each, source.columns, divided, side)
        for each, source in zip(found, sources, strict=True)
    ]


def rows_of(dataset: Any, name: str) -> RowSource:
    """Return the rows of a data set in Python.

    Args:
        dataset: A list of mappings, a `datasets.Dataset`, any finite iterable, or an object that
            has a length and is indexed from 0, such as a data set of torch. Items have the shapes
            of rows in files, tokens (`input_ids`, with or without `labels`) among them. A data set
            that can be iterated over only once is read into memory; others are read again each
            time.
        name: The name of the data set in errors, such as `train_dataset`.

    Raises:
        DataError: The data set is none of these.
    """
    return RowSource(RowsInMemory(dataset, name))


def _origin(source: SourceConfig) -> Origin:
    """Return the origin that a source in a recipe names."""
    is_here = paths.leads_somewhere(source.path)
    is_of_hub = any((source.config, source.split, source.revision))
    if not is_here and (is_of_hub or paths.may_be_on_hub(source.path, [Path.cwd()])):
        return hub.load(source)
    if is_here and hub.is_saved(Path(source.path)):
        return hub.load_saved(source)
    if is_here and is_of_hub:
        raise DataError(
            f"{source.path} is here, and has config, split or revision, as on the Hub.",
            "Take these out, and name the files that you mean: a pattern such as data/*train*.",
        )
    return file_set.find(source.path)
