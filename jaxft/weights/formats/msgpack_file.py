"""Read flax's msgpack container: the position of each array in the file.

`flax_msgpack` knows which tensor an array is. The msgpack library is not used, because it unpacks
an array together with its header, and opening a file needs only the headers. Every listed array
lies completely inside the file and has the number of bytes that its shape needs.

Source: the msgpack specification; `flax/serialization.py`: `_ndarray_to_bytes`,
`_MsgpackExtType`, `_chunk`, `MAX_CHUNK_SIZE`.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxft.errors import WeightsError
from jaxft.weights.formats import regions
from jaxft.weights.formats.regions import Region

# flax's names for element types: those of numpy, and bfloat16.
DTYPES = {
    name: np.dtype(name)
    for name in (
        *("float64", "float32", "float16", "bool"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
    )
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}

REFETCH = "Expected a complete file as flax writes it; download or copy it again."

# The types of msgpack by their first byte, if a length or a number follows it.
_SIZED = {
    **{0xC4: ("bytes", "B"), 0xC5: ("bytes", "H"), 0xC6: ("bytes", "I")},
    **{0xC7: ("ext", "B"), 0xC8: ("ext", "H"), 0xC9: ("ext", "I")},
    **{0xCC: ("int", "B"), 0xCD: ("int", "H"), 0xCE: ("int", "I"), 0xCF: ("int", "Q")},
    **{0xD0: ("int", "b"), 0xD1: ("int", "h"), 0xD2: ("int", "i"), 0xD3: ("int", "q")},
    **{0xD9: ("text", "B"), 0xDA: ("text", "H"), 0xDB: ("text", "I")},
    **{0xDC: ("list", "H"), 0xDD: ("list", "I"), 0xDE: ("map", "H"), 0xDF: ("map", "I")},
}
# The types whose first byte fixes the value or the length.
_CONSTANT = {
    **{0xC0: ("nil", 0), 0xC2: ("bool", 0), 0xC3: ("bool", 1)},
    **{0xCA: ("float", 0), 0xCB: ("float", 0)},
} | {0xD4 + power: ("ext", 1 << power) for power in range(5)}

ARRAY, _SCALAR = 1, 3  # flax's extension types; a scalar is an array of shape ()
CHUNKED = "__msgpack_chunked_array__"
_MAX_DEPTH = 64


class StoredArray(NamedTuple):
    """An array in the file. Its parts, one after the other, are its values in C order."""

    shape: tuple[int, ...]
    dtype: np.dtype
    parts: tuple[tuple[int, int], ...]  # (offset in the file, bytes)

    def read(self, file: Path, region: Region | None) -> np.ndarray:
        """Read the array, or the bytes of a region of it, into new memory.

        Raises:
            OSError: The file cannot be read.
            EOFError: The file became shorter.
        """
        return regions.read(file, self.parts, self.shape, self.dtype, region)


def read_arrays(file: Path) -> dict[str, StoredArray]:
    """Return the arrays of a file by their paths, such as "a/b/c", without reading their values.

    Raises:
        WeightsError: The file is missing, truncated or damaged; it holds something other than
            nested mappings of arrays; or an array has a wrong dtype or number of bytes.
    """
    try:
        num_bytes = file.stat().st_size
        if num_bytes == 0:
            raise WeightsError(f"{file}: the file is empty.", REFETCH)
        # With a memory map, the kernel would map up to 2 MB around each header.
        with file.open("rb") as opened:
            walk = _Walk(opened, num_bytes)
            try:
                tree = walk.value()
                if walk.offset != num_bytes:
                    raise ValueError(f"{num_bytes - walk.offset} bytes follow its end")
                if not isinstance(tree, dict):
                    raise ValueError("it does not hold a mapping of names to arrays")
                return dict(_leaves(tree, ()))
            except ValueError as error:
                raise WeightsError(
                    f"{file}: {error} (read up to byte {walk.offset} of {num_bytes}).", REFETCH
                ) from error
    except OSError as error:
        raise WeightsError(f"{file}: {error.strerror}.", REFETCH) from error


def _leaves(tree: Mapping[str, Any], prefix: tuple[str, ...]) -> Iterator[tuple[str, StoredArray]]:
    """Yield the arrays of a tree by their paths. A chunked array is one array."""
    for key, value in tree.items():
        path = "/".join((*prefix, key))
        if isinstance(value, dict) and CHUNKED in value:
            yield path, _unchunk(value, path)
        elif isinstance(value, dict):
            yield from _leaves(value, (*prefix, key))
        elif isinstance(value, StoredArray):
            yield path, value
        else:
            raise ValueError(f"{path} is a {type(value).__name__}, not an array")


def _unchunk(chunked: Mapping[str, Any], path: str) -> StoredArray:
    """Return a large array that was cut into flat chunks."""
    try:
        shape, arrays = (
            [chunked[part][str(place)] for place in range(len(chunked[part]))]
            for part in ("shape", "chunks")
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not chunked as flax chunks arrays") from error
    dtypes = {array.dtype if isinstance(array, StoredArray) else None for array in arrays}
    if len(dtypes) != 1 or None in dtypes:
        raise ValueError(f"the chunks of {path} are not arrays of one dtype")
    parts = tuple(part for array in arrays for part in array.parts)
    return _checked(path, StoredArray(tuple(shape), arrays[0].dtype, parts))


def _checked(path: str, array: StoredArray) -> StoredArray:
    """Return an array, after a check that its shape is valid and fits its number of bytes."""
    shape, num_bytes = array.shape, sum(part[1] for part in array.parts)
    if not all(type(length) is int and 0 <= length < 1 << 48 for length in shape):
        raise ValueError(f"the shape of {path} is not a list of lengths")
    try:
        np.broadcast_to(np.zeros((), array.dtype), shape)  # checks numpy's limits without memory
    except ValueError as error:
        raise ValueError(f"the shape of {path} is too large") from error
    expected = math.prod(shape) * array.dtype.itemsize
    if num_bytes != expected:
        raise ValueError(
            f"{path} has {num_bytes} bytes where {array.dtype.name} {list(shape)} takes {expected}"
        )
    return array


class _Walk:
    """A position in the file, which moves with each value that is read."""

    def __init__(self, opened: io.BufferedReader, num_bytes: int) -> None:
        self.opened = opened
        self.num_bytes = num_bytes
        self.offset = 0
        self.trail: list[str] = []  # the keys that lead to the position

    def value(self) -> Any:
        """Read a mapping, an array's header, or a number."""
        kind, number = self._head()
        if kind == "map":
            return self._mapping(number)
        if kind == "ext":
            return self._array(number)
        if kind in ("int", "bool"):  # part of the description of a chunked array
            return number
        raise ValueError(f"{self._path()} is a {kind}, not an array")

    def _path(self) -> str:
        return "/".join(self.trail) or "the whole"

    def _mapping(self, count: int) -> dict[str, Any]:
        if len(self.trail) >= _MAX_DEPTH:
            raise ValueError(f"mappings are nested more than {_MAX_DEPTH} deep")
        made: dict[str, Any] = {}
        for _ in range(count):
            key = self._text()
            if key in made:
                raise ValueError(f"{'/'.join([*self.trail, key])} is there twice")
            self.trail.append(key)
            made[key] = self.value()
            self.trail.pop()
        return made

    def _array(self, num_bytes: int) -> StoredArray:
        """Read the header of an array and skip its values."""
        path = self._path()
        code = self._number("b")
        end = self.offset + num_bytes
        if end > self.num_bytes:
            raise ValueError(f"the file is cut off within {path}, which ends at byte {end}")
        if code not in (ARRAY, _SCALAR):
            raise ValueError(f"{path} has the extension type {code}, which is no array")
        if self._head() != ("list", 3):
            raise ValueError(f"{path} is not shape, dtype and values")
        shape = tuple(self._expect("int") for _ in range(self._expect("list")))
        dtype = self._text()
        if dtype not in DTYPES:
            raise ValueError(f"{path} has the dtype {dtype}; known are {', '.join(DTYPES)}")
        num_value_bytes = self._expect("bytes")
        begin = self.offset
        if begin + num_value_bytes != end:
            raise ValueError(f"{path} should end at byte {end}, not {begin + num_value_bytes}")
        self.offset = self.opened.seek(end)
        return _checked(path, StoredArray(shape, DTYPES[dtype], ((begin, num_value_bytes),)))

    def _text(self) -> str:
        return self._take(self._expect("text")).decode("utf-8")

    def _expect(self, kind: str) -> int:
        """Read the first bytes of a value of the given kind; return its length or number."""
        found, number = self._head()
        if found != kind:
            raise ValueError(f"{self._path()} has a {found} where a {kind} is expected")
        return number

    def _head(self) -> tuple[str, int]:
        """Read the first bytes of a value; return its kind, and its length or number."""
        code = self._number("B")
        if code in _SIZED:
            kind, form = _SIZED[code]
            return kind, self._number(form)
        if code in _CONSTANT:
            return _CONSTANT[code]
        for kind, lowest, highest in (
            ("int", 0x00, 0x7F),
            ("map", 0x80, 0x8F),
            ("list", 0x90, 0x9F),
            ("text", 0xA0, 0xBF),
        ):
            if lowest <= code <= highest:
                return kind, code - lowest
        if code >= 0xE0:
            return "int", code - 0x100
        raise ValueError(f"no value begins with the byte {code:#x}")

    def _number(self, form: str) -> int:
        return struct.unpack(f">{form}", self._take(struct.calcsize(f">{form}")))[0]

    def _take(self, num_bytes: int) -> bytes:
        """Read bytes."""
        if num_bytes > self.num_bytes - self.offset:
            raise ValueError(f"the file is cut off within {self._path()}")
        self.offset += num_bytes
        return self.opened.read(num_bytes)
