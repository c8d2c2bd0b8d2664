"""Origins of rows: objects that yield values with their places, and a digest of all of them.

`FileSet`, `DatasetTable` and `RowsInMemory` are origins; `source` and `hold_out` use this interface
only. `digest_of({"a": 1})` is a short hex text, the same on every machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from jaxft.data.rows.row import RowPlace

_DIGEST_BYTES = 16


@runtime_checkable
class Origin(Protocol):
    """Values that rows are made of, which can be read any number of times."""

    @property
    def name(self) -> str:
        """The name of the origin in messages, such as `train.jsonl`."""

    def values(self) -> Iterator[tuple[RowPlace, object]]:
        """Yield each value with its place, in order."""

    def content(self) -> str:
        """Return a digest of all values. Names of files do not change it."""


def new_hash() -> hashlib.blake2b:
    """Return the hash function for every digest of data."""
    return hashlib.blake2b(digest_size=_DIGEST_BYTES)


def digest_of(value: object) -> str:
    """Return a digest of any Python value."""
    digest = new_hash()
    digest.update(canonical(value, sort_keys=False))
    return digest.hexdigest()


def canonical(value: object, sort_keys: bool) -> bytes:
    """Return bytes that are the same for equal values.

    Args:
        value: JSON, arrays, dates and anything else that a row may hold.
        sort_keys: Whether two objects are equal when only the order of their keys differs.
    """
    try:
        text = json.dumps(value, sort_keys=sort_keys, default=_as_json)
    except (TypeError, ValueError, RecursionError):  # keys of several types, or a cycle
        text = f"{type(value).__name__} {value!r}"
    return text.encode("utf-8", "backslashreplace")


def _as_json(value: Any) -> Any:
    """Return a JSON value for a Python value that JSON does not have."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, bytes):
        return [type(value).__name__, value.hex()]
    if hasattr(value, "tolist"):  # arrays and scalars of numpy, tensors of torch
        return [str(getattr(value, "dtype", "")), value.tolist()]
    return [type(value).__name__, repr(value)]
