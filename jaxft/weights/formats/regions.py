"""Regions of a tensor, and reading the bytes of one region from a file.

Rows 2 and 3 of a tensor [8, 3] are the region `(slice(2, 4), slice(0, 3))`: one run of six values
that begins at value 6. Several formats store the values of a tensor in C order and read regions
with this file. No byte outside of the region is read.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# A slice for each dimension, with a start and a stop within the tensor, and without a step.
Region = tuple[slice, ...]


def whole(shape: Sequence[int]) -> Region:
    """Return the region of a whole tensor."""
    return tuple(slice(0, size) for size in shape)


def explicit(index: Any, shape: Sequence[int]) -> Region:
    """Return a region with explicit starts and stops: `slice(None)` becomes `slice(0, size)`.

    Args:
        index: A slice for each dimension, without a step.
        shape: The shape of the tensor.
    """
    ends = (part.indices(size) for part, size in zip(index, shape, strict=True))
    return tuple(slice(start, stop) for start, stop, _ in ends)


def shape_of(region: Region) -> tuple[int, ...]:
    """Return the shape of a region."""
    return tuple(part.stop - part.start for part in region)


def num_values(region: Region) -> int:
    """Return the number of values in a region."""
    return math.prod(shape_of(region))


def hull(regions: Iterable[Region]) -> Region:
    """Return the smallest region that contains all of the given regions of a tensor."""
    return tuple(
        slice(min(part.start for part in parts), max(part.stop for part in parts))
        for parts in zip(*regions, strict=True)
    )


def cut(tensor: np.ndarray, region: Region) -> np.ndarray:
    """Return a view of a region of a tensor. A tensor without dimensions is returned itself."""
    index: Any = (..., *region)
    return tensor[index]


def holds(region: Region, index: Sequence[int]) -> bool:
    """Return whether a region contains a part of the slice at `index` in the first dimensions."""
    return all(part.start <= at < part.stop for at, part in zip(index, region, strict=False))


def within(region: Region, outer: Region) -> Region:
    """Return a region relative to a larger region that contains it."""
    return tuple(
        slice(part.start - around.start, part.stop - around.start)
        for part, around in zip(region, outer, strict=True)
    )


def runs(shape: Sequence[int], region: Region) -> tuple[np.ndarray, int]:
    """Return the runs of a region: its sequences of adjacent values.

    Args:
        shape: The shape of the tensor, whose values are stored in C order.
        region: The region.

    Returns:
        int64 [n], the index of the first value of each run; and the number of values in every run.
    """
    length, num_outer = 1, len(shape)
    while num_outer and shape_of(region)[num_outer - 1] == shape[num_outer - 1]:
        num_outer -= 1
        length *= shape[num_outer]
    stride, starts = length, np.zeros(1, np.int64)
    if num_outer:  # a run ends with the last dimension that is cut
        part = region[num_outer - 1]
        starts += part.start * stride
        length *= part.stop - part.start
        stride *= shape[num_outer - 1]
    for size, part in zip(shape[: num_outer - 1][::-1], region[: num_outer - 1][::-1], strict=True):
        starts = (np.arange(part.start, part.stop)[:, None] * stride + starts).ravel()
        stride *= size
    return starts, length


def read(
    file: Path,
    places: Sequence[tuple[int, int]],
    shape: Sequence[int],
    dtype: np.dtype,
    region: Region | None,
) -> np.ndarray:
    """Read a region of a tensor into new memory.

    Args:
        file: The file.
        places: (byte of the file, number of bytes) for each piece of the tensor, in order.
        shape: The shape of the tensor.
        dtype: The dtype of its values, which are stored in C order.
        region: The region; `None` for the whole tensor.

    Returns:
        The values in C order.

    Raises:
        OSError: The file cannot be read.
        EOFError: The file ends within the tensor.
    """
    region = whole(shape) if region is None else region
    starts, length = runs(shape, region)
    raw = np.empty(num_values(region) * dtype.itemsize, np.uint8)
    run_bytes, at = length * dtype.itemsize, 0
    if not raw.size:
        return raw.view(dtype).reshape(shape_of(region))
    with file.open("rb", buffering=0) as opened:
        for start in (starts * dtype.itemsize).tolist():
            for offset, num_bytes in _extents(places, start, run_bytes):
                opened.seek(offset)
                _read_into(opened, raw[at : at + num_bytes])
                at += num_bytes
    return raw.view(dtype).reshape(shape_of(region))


def _extents(
    places: Sequence[tuple[int, int]], start: int, num_bytes: int
) -> Iterator[tuple[int, int]]:
    """Yield (byte of the file, number of bytes) for each part of a run of a tensor's bytes.

    Args:
        places: See `read`.
        start: The first byte of the run, counted within the tensor.
        num_bytes: The length of the run.
    """
    for offset, size in places:
        count = min(size - start, num_bytes)
        if count > 0:
            yield offset + start, count
            start, num_bytes = start + count, num_bytes - count
        start -= size


def _read_into(opened: io.FileIO, memory: np.ndarray) -> None:
    """Fill memory with bytes, in several system calls, which read at most 2 GB each."""
    filled = 0
    while filled < len(memory):
        count = opened.readinto(memory[filled:].data)
        if not count:
            raise EOFError("the file ends within it")
        filled += count
