"""A data set that a Python program holds, as an origin of rows.

`[{"text": "a"}, {"text": "b"}]` yields its two items, at `train_dataset row 0` and `train_dataset
row 1`. Items are what the data set returns when it is iterated over or indexed; `table` reads the
stored table instead. A data set that can be iterated over only once is copied into a list, so that
every reading gives the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxft.data.rows import shapes
from jaxft.data.rows.row import RowPlace
from jaxft.data.sources import origin, table
from jaxft.errors import DataError


class RowsInMemory:
    """The items of a data set.

    Attributes:
        name: Its name in errors, such as `train_dataset`.
    """

    def __init__(self, dataset: Any, name: str) -> None:
        """Check the type of the data set, and read it if it can be read only once.

        Raises:
            DataError: It is not a set of rows.
        """
        self.name = name
        self._dataset = _rereadable(dataset, name)

    def values(self) -> Iterator[tuple[RowPlace, object]]:
        """Yield the items.

        Raises:
            DataError: There are none.
        """
        number = -1
        for number, value in enumerate(_items(self._dataset)):
            yield RowPlace(self.name, number, "row"), value
        if number < 0:
            raise DataError(
                f"{self.name} is empty: it has no rows.", f"Give it some: {shapes.SHAPES}."
            )

    def content(self) -> str:
        """Return a digest of all items."""
        if table.is_plain(self._dataset):
            return table.digest(self._dataset)
        digest = origin.new_hash()
        for value in _items(self._dataset):
            digest.update(origin.canonical(value, sort_keys=False) + b"\n")
        return digest.hexdigest()


def _rereadable(dataset: Any, name: str) -> Any:
    """Return a data set that can be read any number of times."""
    if isinstance(dataset, Mapping):
        keys = ", ".join(f'"{key}"' for key in dataset) or "none"
        raise DataError(
            f"{name} is one {type(dataset).__name__}, with the keys {keys}, and not a set of rows.",
            f'Give one of its splits, as {name}["train"], or datasets.Dataset.from_dict of it.',
        )
    if not isinstance(dataset, str | bytes | Path):
        if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
            return dataset
        if hasattr(dataset, "__iter__"):
            return list(dataset)
    raise DataError(
        f"{name} is a {type(dataset).__name__}, and not a set of rows.",
        "Give a list of mappings or a datasets.Dataset; datasets.load_dataset reads files.",
    )


def _items(dataset: Any) -> Iterable[Any]:
    """Return the items as an iterable. Data sets of torch are indexed, and have no iterator."""
    if hasattr(dataset, "__iter__"):
        items: Iterable[Any] = dataset
        return items
    return (dataset[index] for index in range(len(dataset)))
