"""A memory-mapped table of `datasets`, as an origin of rows.

Rows are read from the table itself and not through the features of `datasets`. So pictures are not
decoded, and no package for pictures is needed. Only a few rows are in memory at a time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxft.data.rows.row import RowPlace
from jaxft.data.sources import origin
from jaxft.data.sources.files import columns
from jaxft.errors import DataError

# A `datasets.Dataset`; named, so that importing this file does not import datasets.
Dataset = Any

_NUM_ROWS = 1000


class DatasetTable:
    """The rows of a table.

    Attributes:
        name: Its name in errors, such as `owner/name train`.
    """

    def __init__(self, dataset: Dataset, name: str) -> None:
        """Keep the data set, whose table stays on disk."""
        self.name = name
        self._dataset = dataset

    def values(self) -> Iterator[tuple[RowPlace, object]]:
        """Yield an object for each row.

        Raises:
            DataError: There are none.
        """
        number = 0
        for part in _tables(self._dataset):
            for value in columns.rows(part):
                yield RowPlace(self.name, number, "row"), value
                number += 1
        if number == 0:
            raise DataError(f"{self.name} is empty: it has no rows.", "Name another split.")

    def content(self) -> str:
        """Return a digest of the table's values."""
        return digest(self._dataset)


def is_plain(dataset: Any) -> bool:
    """Return whether the items of a data set are the rows of its table, unchanged."""
    datasets = sys.modules.get("datasets")  # a `datasets.Dataset` exists only if it was imported
    is_its = datasets is not None and isinstance(dataset, datasets.Dataset)
    return is_its and dataset.format["type"] is None


def digest(dataset: Dataset) -> str:
    """Return a digest of a table's values. Its files and chunks do not change it."""
    import pyarrow

    found = origin.new_hash()
    for part in _tables(dataset):
        # Copied, because the buffers of a slice also hold the bytes around its values.
        plain = part.take(np.arange(part.num_rows)).combine_chunks().replace_schema_metadata(None)
        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, plain.schema) as writer:
            writer.write_table(plain)
        found.update(memoryview(sink.getvalue()))
    return found.hexdigest()


def _tables(dataset: Dataset) -> Iterator[Any]:
    """Yield the rows as tables of pyarrow."""
    yield from dataset.with_format("arrow").iter(batch_size=_NUM_ROWS)
