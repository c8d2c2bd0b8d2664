"""Rows from a file, or from whatever Python object holds them.

Separate from files and shapes, which it puts together. The invariant: every value there is becomes
one row, in order, or is refused by its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxft import errors
from jaxft.data import files, shapes
from jaxft.data.rows import Place, Row
from jaxft.errors import DataError


def read_rows(path: Path) -> list[Row]:
    """Read every row of a file, of the kind that its ending says.

    Args:
        path: A file with one of `files.ENDINGS`.

    Raises:
        DataError: The file is missing, empty, of no known kind or not of the kind that it claims,
            or something in it is not a row of a known shape.
    """
    try:
        if path.is_dir():
            raise DataError(f"{path} cannot be read: it is a folder.", "Name a file in it instead.")
        if not path.exists():
            raise DataError(f"{path} does not exist.", _missing_remedy(path))
        rows = [shapes.parse_row(value, place) for place, value in files.values(path)]
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}.", "Give a file that this user may read."
        ) from error
    if not rows:
        raise DataError(f"{path} is empty: it has no rows.", f"Write some: {shapes.SHAPES}.")
    return rows


def rows_of(dataset: Any, name: str) -> list[Row]:
    """Return the rows of a data set in Python.

    Args:
        dataset: A list of mappings, a `datasets.Dataset`, any iterable that ends, or whatever has
            a length and is indexed from 0, as torch's data sets. Items have the shapes of rows in
            files, or are tokens already: `input_ids`, with or without `labels`.
        name: What errors call the data set, such as `train_dataset`.

    Raises:
        DataError: It is no such thing, is empty, or one of its items is not a row of a known shape.
    """
    rows = [
        shapes.parse_row(value, Place(name, number, "row"))
        for number, value in enumerate(_items(dataset, name))
    ]
    if not rows:
        raise DataError(f"{name} is empty: it has no rows.", f"Give it some: {shapes.SHAPES}.")
    return rows


def _items(dataset: Any, name: str) -> Iterable[Any]:
    """Return what to iterate over."""
    if isinstance(dataset, Mapping):
        keys = ", ".join(f'"{key}"' for key in dataset) or "none"
        raise DataError(
            f"{name} is one {type(dataset).__name__}, with the keys {keys}, and not a set of rows.",
            f'Give one of its splits, as {name}["train"], or datasets.Dataset.from_dict of it.',
        )
    if not isinstance(dataset, str | bytes | Path):
        if hasattr(dataset, "__iter__"):
            items: Iterable[Any] = dataset
            return items
        if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
            return (dataset[index] for index in range(len(dataset)))
    raise DataError(
        f"{name} is a {type(dataset).__name__}, and not a set of rows.",
        "Give a list of mappings or a datasets.Dataset; datasets.load_dataset reads files.",
    )


def _missing_remedy(path: Path) -> str:
    """Return what to do about a missing file, naming a file nearby that was perhaps meant."""
    folder = path.parent
    if not folder.is_dir():
        return f"Its folder {folder} does not exist either; paths in a recipe start at the recipe."
    names = [entry.name for entry in folder.iterdir() if entry.is_file()]
    guess = errors.nearest(path.name, names)
    return f"Did you mean {folder / guess}?" if guess else f"No file in {folder} has such a name."
