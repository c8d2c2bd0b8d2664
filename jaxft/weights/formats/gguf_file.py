"""Read the header of a GGUF file, and single tensors as float32.

This file knows the container; `gguf` knows the meaning of its content. The header is parsed here
because the reader of the `gguf` library makes an array object for each string of a vocabulary: that
takes 2.1 s for the smallest model, and this file 0.1 s. Types, block sizes and dequantization are
those of the library. Every listed tensor lies completely inside the file.

Source: ggml's docs/gguf.md, and `gguf.constants`.
"""

from __future__ import annotations

import functools
import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np

from jaxft.errors import UnsupportedModelError, WeightsError
from jaxft.weights.formats import regions
from jaxft.weights.formats.regions import Region

_STRING, _ARRAY = gguf.GGUFValueType.STRING, gguf.GGUFValueType.ARRAY
_SCALARS = {
    gguf.GGUFValueType.UINT8: "B",
    gguf.GGUFValueType.INT8: "b",
    gguf.GGUFValueType.UINT16: "H",
    gguf.GGUFValueType.INT16: "h",
    gguf.GGUFValueType.UINT32: "I",
    gguf.GGUFValueType.INT32: "i",
    gguf.GGUFValueType.FLOAT32: "f",
    gguf.GGUFValueType.BOOL: "?",
    gguf.GGUFValueType.UINT64: "Q",
    gguf.GGUFValueType.INT64: "q",
    gguf.GGUFValueType.FLOAT64: "d",
}

# The number of values that are dequantized at once: 1 MB of results, which fits a CPU's cache.
_STEP_VALUES = 1 << 18

_REFETCH = "Expected a complete GGUF file; download or copy it again."


class GgufTensor(NamedTuple):
    """The position of a tensor in the file, and its type."""

    shape: tuple[int, ...]  # in numpy's order: the reverse of the file's
    kind: gguf.GGMLQuantizationType
    offset: int  # from the start of the file
    num_bytes: int


@dataclass(frozen=True)
class GgufFile:
    """A parsed header.

    Attributes:
        path: The file.
        metadata: All keys and values; arrays are lists.
        tensors: All tensors, by their names in the file.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    def read(self, name: str, region: Region | None = None) -> np.ndarray:
        """Read one tensor, or the blocks that hold a region of it, and dequantize to float32.

        Raises:
            WeightsError: The file became shorter, or the type cannot be dequantized.
        """
        tensor = self.tensors[name]
        *outer, columns = regions.whole(tensor.shape) if region is None else region
        values = np.empty(
            (*regions.shape_of(tuple(outer)), columns.stop - columns.start), np.float32
        )
        starts, length = regions.runs(tensor.shape[:-1], tuple(outer))
        try:
            for start, rows in zip(
                starts.tolist(), values.reshape(len(starts), length, -1), strict=True
            ):
                # In steps, because the library holds each result twice.
                step = max(1, _STEP_VALUES // tensor.shape[-1])
                for begin in range(0, length, step):
                    part = rows[begin : begin + step]
                    first = start + begin
                    part[...] = self._rows(tensor, slice(first, first + len(part)), columns)
        except OSError as error:
            raise WeightsError(f"{self.path}: cannot read {name} ({error}).", _REFETCH) from error
        except EOFError as error:
            raise WeightsError(f"{self.path}: the file ends within {name}.", _REFETCH) from error
        except NotImplementedError as error:
            raise WeightsError(
                f"{self.path}: tensor {name} is stored as {tensor.kind.name}.",
                "Expected a type that the gguf library can dequantize; use another quantization.",
            ) from error
        return values

    def _rows(self, tensor: GgufTensor, rows: slice, columns: slice) -> np.ndarray:
        """Return some columns of some rows of a tensor that is seen as a table.

        Raises:
            OSError, EOFError: See `regions.read`.
            NotImplementedError: The type cannot be dequantized.
        """
        values, block_bytes = gguf.GGML_QUANT_SIZES[tensor.kind]
        blocks = slice(columns.start // values, -(-columns.stop // values))
        shape = (math.prod(tensor.shape[:-1]), tensor.shape[-1] // values * block_bytes)
        region = rows, slice(blocks.start * block_bytes, blocks.stop * block_bytes)
        place = ((tensor.offset, tensor.num_bytes),)
        # The pages of a memory map would count as used memory while the file is open.
        raw = regions.read(self.path, place, shape, np.dtype(np.uint8), region)
        around = blocks.start * values
        found = gguf.dequantize(raw, tensor.kind)
        return found[:, columns.start - around : columns.stop - around]


def read_gguf(path: Path) -> GgufFile:
    """Parse the header of a GGUF file.

    The configuration, the tensors and the tokenizer all come from it, so the last two are cached.

    Raises:
        WeightsError: The file is missing, truncated or damaged.
        UnsupportedModelError: The version or byte order is not supported, or the file is split.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}.", _REFETCH) from error
    return _parse(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=2)
def _parse(path: Path, modified_ns: int, num_bytes: int) -> GgufFile:
    """Parse a file. The time and size are part of the cache's key, for files that change."""
    del modified_ns
    if num_bytes < 24:
        raise WeightsError(f"{path}: {num_bytes} bytes are too few for a header.", _REFETCH)
    with (
        path.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as buffer,
    ):
        cursor = _Cursor(buffer)
        try:
            num_tensors, num_keys = _read_preamble(cursor, path)
            metadata = {cursor.string(): cursor.value(cursor.scalar("I")) for _ in range(num_keys)}
            infos = [_read_info(cursor) for _ in range(num_tensors)]
        except (struct.error, ValueError, RecursionError) as error:
            raise WeightsError(
                f"{path}: the header is damaged or cut off at byte {cursor.offset} ({error}).",
                _REFETCH,
            ) from error
    if metadata.get("split.count", 1) > 1:
        raise UnsupportedModelError(
            f"{path}: the model is split over {metadata['split.count']} files.",
            "Expected a single file; merge them with llama-gguf-split --merge.",
        )
    alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0:
        raise WeightsError(f"{path}: general.alignment is {alignment!r}.", _REFETCH)
    start = math.ceil(cursor.offset / alignment) * alignment
    return GgufFile(path, metadata, _place_tensors(path, infos, start, num_bytes))


def _read_preamble(cursor: _Cursor, path: Path) -> tuple[int, int]:
    """Check the magic, byte order and version; return the number of tensors and of keys."""
    if cursor.scalar("I") != gguf.GGUF_MAGIC:
        raise WeightsError(f"{path}: the file does not begin with GGUF.", _REFETCH)
    version = cursor.scalar("I")
    if version not in (2, 3):
        is_swapped = version & 0xFFFF == 0
        raise UnsupportedModelError(
            f"{path}: {'big-endian' if is_swapped else f'version {version} of'} GGUF.",
            "Expected a little-endian file of version 2 or 3; convert the model again.",
        )
    return cursor.scalar("Q"), cursor.scalar("Q")


def _read_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Read the name, shape, type number and data offset of a tensor."""
    name = cursor.string()
    shape = tuple(cursor.scalar("Q") for _ in range(cursor.scalar("I")))[::-1]
    return name, shape, cursor.scalar("I"), cursor.scalar("Q")


def _place_tensors(
    path: Path,
    infos: list[tuple[str, tuple[int, ...], int, int]],
    start: int,
    num_bytes: int,
) -> dict[str, GgufTensor]:
    """Return the tensors of a header, after a check that each lies inside the file."""
    tensors: dict[str, GgufTensor] = {}
    for name, shape, number, offset in infos:
        try:
            kind = gguf.GGMLQuantizationType(number)
            if 0 in shape:
                raise ValueError("a dimension of 0")
            stored = math.prod(gguf.quant_shape_to_byte_shape(shape, kind))
        except (ValueError, IndexError) as error:
            raise WeightsError(
                f"{path}: tensor {name} has type {number} and shape {shape} ({error}).",
                "Expected a type that the gguf library knows; upgrade it or use another file.",
            ) from error
        if name in tensors:
            raise WeightsError(f"{path}: tensor {name} is there twice.", _REFETCH)
        if start + offset + stored > num_bytes:
            raise WeightsError(
                f"{path}: the file is truncated: tensor {name} ends at byte "
                f"{start + offset + stored} of {num_bytes}.",
                _REFETCH,
            )
        tensors[name] = GgufTensor(shape, kind, start + offset, stored)
    return tensors


class _Cursor:
    """A position in the file, which moves with each value that is read."""

    def __init__(self, buffer: mmap.mmap) -> None:
        self.buffer = buffer
        self.offset = 0

    def scalar(self, code: str) -> Any:
        """Read one number of a `struct` type."""
        return self.numbers(code, 1)[0]

    def numbers(self, code: str, count: int) -> tuple[Any, ...]:
        """Read `count` numbers of a `struct` type."""
        place = self._advance(struct.calcsize(f"<{code}") * count)
        return struct.unpack_from(f"<{count}{code}", self.buffer, place)

    def string(self) -> str:
        """Read a string: its length in bytes, then UTF-8."""
        length = self.scalar("Q")
        place = self._advance(length)
        return self.buffer[place : place + length].decode("utf-8")

    def value(self, number: int) -> Any:
        """Read a value whose type has the given number."""
        kind = gguf.GGUFValueType(number)
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        element, count = gguf.GGUFValueType(self.scalar("I")), self.scalar("Q")
        if element in _SCALARS:
            return list(self.numbers(_SCALARS[element], count))
        return [self.value(element) for _ in range(count)]

    def _advance(self, num_bytes: int) -> int:
        """Move the position, and return the old one."""
        place = self.offset
        if num_bytes > len(self.buffer) - place:
            raise ValueError(f"{num_bytes} bytes expected, {len(self.buffer) - place} left")
        self.offset = place + num_bytes
        return place
