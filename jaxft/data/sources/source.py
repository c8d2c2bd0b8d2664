"""Rows from files, the Hub, or Python objects: what is found where a recipe points, as rows.

`open_rows(config.data.train, None, "train")` returns a `RowSource` for each source, over which one
iterates as often as one likes. Separate from origins and shapes, which it puts together. The
invariant: every value there is becomes one row, in order, or is refused by its place, and a source
is read lazily, in memory that does not grow with it.
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
from jaxft.data.sources.in_memory import InMemory
from jaxft.data.sources.origin import Origin
from jaxft.errors import DataError


class RowSource:
    """Rows that are read lazily, again with each iteration.

    Attributes:
        name: What messages call it, such as `train.jsonl` or `3 files in data`.
        files: What the places of its rows name, in order.
        ignored: Files in its folder that hold no rows.
    """

    def __init__(
        self,
        found: Origin,
        columns: Mapping[str, str] | None = None,
        hold_out: HoldOut | None = None,
        side: SideName = "train",
    ) -> None:
        """Keep where the rows are; nothing is read yet.

        Args:
            found: The values that rows are made of.
            columns: Other names of fields, as `SourceConfig.columns`.
            hold_out: How rows are divided; None takes all.
            side: Which side of it the rows are on.
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
            DataError: Something there cannot be read, is not a row of a known shape, or there is
                no row.
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

        Names of files are no part of it.

        Raises:
            DataError: Something there cannot be read.
        """
        divided = None if self._hold_out is None else self._hold_out.key(self._side)
        return origin.digest_of([self._origin.content(), sorted(self._columns.items()), divided])


def open_rows(
    sources: Sequence[SourceConfig], hold_out: HoldOutConfig | None, side: SideName
) -> list[RowSource]:
    """Find the rows of a recipe, one `RowSource` for each source.

    Args:
        sources: Where they are, as `data.train` or `data.eval` has it.
        hold_out: How the training rows are divided; None takes all.
        side: Which part is wanted: the rows to learn from, or those that are held out.

    Raises:
        DataError: A file is missing, or a data set is neither here nor on the Hub.
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
        dataset: A list of mappings, a `datasets.Dataset`, any iterable that ends, or whatever has
            a length and is indexed from 0, as torch's data sets. Items have the shapes of rows in
            files, or are tokens already: `input_ids`, with or without `labels`. What can be
            iterated over only once is read into memory, anything else each time anew.
        name: What errors call the data set, such as `train_dataset`.

    Raises:
        DataError: It is neither.
    """
    return RowSource(InMemory(dataset, name))


def _origin(source: SourceConfig) -> Origin:
    """Return what a source of a recipe points at."""
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
