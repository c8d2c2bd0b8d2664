"""Write flax's msgpack container, one array at a time.

The bytes are those that `flax.serialization.msgpack_serialize` writes for the same tree. That
function would hold all arrays in memory twice.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgpack
import numpy as np

from jaxft.weights.formats import msgpack_file
from jaxft.weights.formats.checkpoint import TensorInfo

# Source: `flax/serialization.py: MAX_CHUNK_SIZE`.
_CHUNK_BYTES = 1 << 30
_BLOCK_VALUES = 1 << 22  # the number of values that are made contiguous at once

_FIXED_EXT = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}


def write_arrays(
    opened: io.BufferedIOBase, infos: Mapping[str, TensorInfo], read: Callable[[str], np.ndarray]
) -> None:
    """Write arrays as nested mappings.

    Args:
        opened: The file.
        infos: The shape and dtype of each array by its path, such as "a/b/c". Keys are written in
            sorted order.
        read: Returns the array of a path.
    """
    tree: dict[str, Any] = {}
    for path in sorted(infos, key=lambda path: path.split("/")):
        *parents, leaf = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = path
    _write_mapping(opened, tree, infos, read)


def _write_mapping(
    opened: io.BufferedIOBase,
    tree: Mapping[str, Any],
    infos: Mapping[str, TensorInfo],
    read: Callable[[str], np.ndarray],
) -> None:
    opened.write(msgpack.Packer().pack_map_header(len(tree)))
    for key, node in tree.items():
        opened.write(msgpack.packb(key))
        if isinstance(node, dict):
            _write_mapping(opened, node, infos, read)
        else:
            _write_leaf(opened, infos[node], read(node))


def _write_leaf(opened: io.BufferedIOBase, info: TensorInfo, values: np.ndarray) -> None:
    """Write an array, in chunks if it is large."""
    shape, dtype = info
    size = math.prod(shape)
    if size * dtype.itemsize <= _CHUNK_BYTES:
        _write_array(opened, shape, dtype, _blocks(values, 0, size))
        return
    step = max(1, _CHUNK_BYTES // dtype.itemsize)
    starts = range(0, size, step)
    opened.write(msgpack.Packer().pack_map_header(3))
    opened.write(msgpack.packb(msgpack_file.CHUNKED) + msgpack.packb(True))
    lengths = {str(place): length for place, length in enumerate(shape)}
    opened.write(msgpack.packb("shape") + msgpack.packb(lengths))
    opened.write(msgpack.packb("chunks") + msgpack.Packer().pack_map_header(len(starts)))
    for place, begin in enumerate(starts):
        end = min(size, begin + step)
        opened.write(msgpack.packb(str(place)))
        _write_array(opened, (end - begin,), dtype, _blocks(values, begin, end))


def _write_array(
    opened: io.BufferedIOBase, shape: tuple[int, ...], dtype: np.dtype, blocks: Iterator[np.ndarray]
) -> None:
    """Write one extension value: the shape, the dtype, and the values in `blocks`."""
    num_bytes = math.prod(shape) * dtype.itemsize
    header = msgpack.packb((shape, dtype.name, b""))[:-2]  # without the empty values
    header += _sized(num_bytes, {0xC4: "B", 0xC5: "H", 0xC6: "I"})
    length = len(header) + num_bytes
    if length in _FIXED_EXT:
        opened.write(bytes([_FIXED_EXT[length]]))
    else:
        opened.write(_sized(length, {0xC7: "B", 0xC8: "H", 0xC9: "I"}))
    opened.write(bytes([msgpack_file.ARRAY]) + header)
    for block in blocks:
        opened.write(block.view(np.uint8).data)


def _sized(length: int, forms: Mapping[int, str]) -> bytes:
    """Return the first bytes of a value, with its length in the shortest form."""
    for code, form in forms.items():
        if length < 1 << (8 * struct.calcsize(form)):
            return struct.pack(f">B{form}", code, length)
    raise ValueError(f"{length} bytes are more than msgpack holds")


def _blocks(values: np.ndarray, begin: int, end: int) -> Iterator[np.ndarray]:
    """Yield the values from `begin` to `end`, in C order, as flat pieces of limited size."""
    rows = values.reshape(1) if values.ndim == 0 else values
    width = math.prod(rows.shape[1:])
    while begin < end:
        row = begin // width
        num_rows = max(1, _BLOCK_VALUES // width)
        flat = np.ascontiguousarray(rows[row : row + num_rows]).reshape(-1)
        piece = flat[begin - row * width : end - row * width]
        yield piece
        begin += piece.size
