"""Values from Python, Parquet or JSON text, converted to the plain values that JSON has.

`datetime.date(2026, 1, 2)` becomes `"2026-01-02"`, `Decimal("1.50")` 1.5 and `numpy.int64(3)` 3.
The results can be written as JSON and tokenized as UTF-8: they have no half characters and no NaN.
"""

from __future__ import annotations

import datetime
import decimal
import json
import math
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxft.data.rows.row import RowPlace
from jaxft.data.rows.wording import kind, quoted, shown
from jaxft.errors import DataError

# More levels than any tool's schema has, and far fewer than Python's stack allows.
_DEEPEST = 100
# Other programs that read JSON hold integers below this.
_LARGEST_INT = 2**64
# Nearly all values have one of these types, and one look at the type is enough.
_NEVER_MISSING = frozenset({str, bool, int, list, dict})


def is_missing(value: object) -> bool:
    """Return whether a value is null: None, or one of the nulls of pandas (NaN, NaT, NA)."""
    if value is None or type(value) in _NEVER_MISSING:
        return value is None
    if isinstance(value, float | np.floating):
        return math.isnan(value)
    if isinstance(value, decimal.Decimal):
        return value.is_nan()
    return type(value).__name__ in ("NaTType", "NAType")


def as_text(value: object, name: str, place: RowPlace) -> object:
    """Return a date, a time, a UUID or UTF-8 bytes as text, and any other value unchanged.

    Raises:
        DataError: Bytes are not UTF-8, or a text holds half a surrogate pair, which no tokenizer
            can take.
    """
    if type(value) is str and value.isascii():  # nearly all of them
        return value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, np.datetime64 | uuid.UUID):
        return str(value)
    if isinstance(value, bytes | bytearray):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f'{place}: "{name}" is bytes that are not UTF-8, at byte {error.start}.',
                "Expected a string.",
            ) from error
    if not isinstance(value, str):
        return value
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f'{place}: "{name}" has the unpaired surrogate {value[error.start]!r}'
            f" at character {error.start}.",
            "Write the whole character, or its complete \\uXXXX\\uXXXX pair.",
        ) from error
    return str.__str__(value)


def plain(value: object, name: str, place: RowPlace, depth: int = 0) -> Any:
    """Return a value as JSON has it, with everything inside it converted too.

    Raises:
        DataError: JSON has no such value, or it is nested too deeply.
    """
    if depth > _DEEPEST:
        raise DataError(
            f'{place}: "{name}" is nested more than {_DEEPEST} deep.', "Write it flatter."
        )
    value = as_text(value, name, place)
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | float | decimal.Decimal):
        return _number(value, name, place)
    if isinstance(value, Mapping):
        return {
            _key(key, name, place): plain(inner, f"{name}.{shown(key)}", place, depth + 1)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [
            plain(inner, f"{name}[{index}]", place, depth + 1) for index, inner in enumerate(value)
        ]
    if isinstance(value, np.ndarray) and value.dtype.kind == "M":
        return value.astype(str).tolist()
    if hasattr(value, "tolist"):
        return plain(value.tolist(), name, place, depth + 1)
    raise DataError(
        f'{place}: "{name}" is {kind(value)}.',
        "Expected text, numbers, lists and objects, as JSON has them.",
    )


def without_nulls(value: Any) -> Any:
    """Return a plain value without the null fields of objects.

    In Parquet and Arrow every object in a column has the fields of all objects there.
    """
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def from_json(text: str, name: str, place: RowPlace) -> Any:
    """Return the value that a field holds as JSON text.

    Raises:
        DataError: The text is not JSON, or an object in it has a field twice.
    """
    try:
        value = json.loads(text, object_pairs_hook=unique_fields)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f'{place}: "{name}" is {quoted(text)}, not JSON ({reason}).',
            "Write it as JSON, or as a list or an object instead of text.",
        ) from error
    return plain(value, name, place)


def unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object from its pairs, for `json.loads(..., object_pairs_hook=unique_fields)`.

    Raises:
        ValueError: The object has a field twice. (json itself would keep the last one.)
    """
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the field {quoted(name)} stands there twice")
        found[name] = value
    return found


def _number(value: int | float | decimal.Decimal, name: str, place: RowPlace) -> int | float:
    """Return a finite number."""
    if isinstance(value, int):
        if abs(value) < _LARGEST_INT:
            return int(value)
        found = "a number of more than 64 bits"
    elif is_missing(value):  # a signaling NaN must not be converted
        found = "nan"
    elif math.isfinite(value):
        number = float(value)
        is_whole = isinstance(value, decimal.Decimal) and number.is_integer() and abs(value) < 2**53
        if math.isfinite(number):
            return int(number) if is_whole else number
        found = "a number beyond all floats"
    else:
        found = str(value)
    raise DataError(f'{place}: "{name}" is {found}.', "Expected a finite number.")


def _key(key: object, name: str, place: RowPlace) -> str:
    """Return the name of a field of an object, which must be text."""
    found = as_text(key, name, place)
    if isinstance(found, str):
        return found
    raise DataError(f'{place}: a field\'s name in "{name}" is {kind(key)}.', "Expected a string.")
