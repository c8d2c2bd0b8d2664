"""Regions of a tensor, and reading the bytes of one region from a file.

Separate because several formats keep a tensor's values in C order, and each reads a region alike.
An example: rows 2 to 4 of a tensor [8, 3] are the region `(slice(2, 4), slice(0, 3))`, one run of
six values that begins at the sixth. The invariant: no byte outside of the region is read.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# For each dimension a start and a later stop within the tensor, without a step.
Region = tuple[slice, ...]


def whole(shape: Sequence[int]) -> Region:
    """Return the region that is all of a tensor of a shape."""
    return tuple(slice(0, size) for size in shape)


def explicit(index: Any, shape: Sequence[int]) -> Region:
    """Return a region with its starts and stops said, `slice(None)` as `slice(0, size)`.

    Args:
        index: A slice for each dimension of `shape`, without a step.
        shape: That of the tensor.
    """
    ends = (part.indices(size) for part, size in zip(index, shape, strict=True))
    return tuple(slice(start, stop) for start, stop, _ in ends)


def shape_of(region: Region) -> tuple[int, ...]:
    """Return the shape of what a region holds."""
    return tuple(part.stop - part.start for part in region)


def num_values(region: Region) -> int:
    """Return how many values a region holds."""
    return math.prod(shape_of(region))


def hull(regions: Iterable[Region]) -> Region:
    """Return the smallest region that holds all of some regions of one tensor."""
    return tuple(
        slice(min(part.start for part in parts), max(part.stop for part in parts))
        for parts in zip(*regions, strict=True)
    )


def cut(tensor: np.ndarray, region: Region) -> np.ndarray:
    """Return a region of a tensor, which is not copied; of one without dimensions, itself."""
    index: Any = (..., *region)
    return tensor[index]


def within(region: Region, outer: Region) -> Region:
    """Return where a region lies in a larger one that holds it."""
    return tuple(
        slice(part.start - around.start, part.stop - around.start)
        for part, around in zip(region, outer, strict=True)
    )


def runs(shape: Sequence[int], region: Region) -> tuple[np.ndarray, int]:
    """Return where the runs of a region's values begin, and how many values each has.

    Args:
        shape: That of the tensor, whose values lie in C order.
        region: Which of them.

    Returns:
        int64 [n], the index of each run's first value; and the length of every run.
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
    """Read a region of a tensor into memory of its own.

    Args:
        file: Where it is.
        places: (byte of the file, number of bytes) of the pieces that make up the tensor.
        shape: That of the tensor.
        dtype: That of its values, which lie in C order.
        region: Which of them; `None` for all.

    Returns:
        The values in C order.

    Raises:
        OSError: The file cannot be read.
        EOFError: It ends within the tensor.
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
    """Yield (byte of the file, number of bytes) of a run of a tensor's bytes, piece by piece."""
    for offset, size in places:
        count = min(size - start, num_bytes)
        if count > 0:
            yield offset + start, count
            start, num_bytes = start + count, num_bytes - count
        start -= size


def _read_into(opened: io.FileIO, memory: np.ndarray) -> None:
    """Fill memory with bytes: a system call gives at most 2 GB at once."""
    filled = 0
    while filled < len(memory):
        count = opened.readinto(memory[filled:].data)
        if not count:
            raise EOFError("the file ends within it")
        filled += count
