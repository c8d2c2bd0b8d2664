"""A leaf of the tree while tensors of a checkpoint are written into it, slice by slice.

There are two kinds of leaves, because devices either share the host's memory or have their own. A
CPU shares it: the leaf is filled in place, and JAX takes it over without a copy or a compiled
program. An accelerator does not: the leaf lies on it from the start and slices are sent there, so
the host never holds a whole stack. The invariant: each device gets its own part only, and memory
that was handed to JAX is not written again.

A slice has an index into the first dimensions of the leaf: (layer,), or (layer, expert) if experts
are stacked too; () is the whole leaf. `needed` returns the region of a slice that the devices of
this process need, if any. `write` takes that region.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxft.weights.formats import regions
from jaxft.weights.formats.regions import Region

_ALIGNMENT = 64  # bytes; JAX copies memory with a smaller alignment (XLA's `MinAlign` on a CPU)
_CACHE_LINE = 64  # bytes

Index = tuple[int, ...]


class OnHost:
    """A leaf in the memory of the host, which the devices share."""

    def __init__(self, leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> None:
        """Allocate memory for each distinct part; devices with the same part share it."""
        self._leaf = leaf
        self._sharding = sharding
        self._places = sharding.addressable_devices_indices_map(leaf.shape)
        self._needed = _needed(leaf, sharding)
        # The index of each part in the leaf, and its memory. The key is the text of the index, as
        # slices are not hashable.
        self._parts: dict[str, tuple[Any, np.ndarray]] = {}
        for at in self._places.values():
            if str(at) not in self._parts:
                self._parts[str(at)] = at, _aligned(sharding.shard_shape(leaf.shape), leaf.dtype)

    def needed(self, index: Index) -> Region | None:
        """Return the region of a slice that `write` takes; `None` if no device needs the slice."""
        return self._needed[len(index) :] if regions.holds(self._needed, index) else None

    def write(self, part: np.ndarray, index: Index) -> None:
        """Copy the needed region of a slice into the memory of each part, in the leaf's dtype."""
        depth = len(index)
        for at, memory in self._parts.values():
            place = regions.explicit(at, self._leaf.shape)
            if not regions.holds(place, index):
                continue
            slot = [number - begin.start for number, begin in zip(index, place, strict=False)]
            here = regions.within(place, self._needed)[depth:]
            _copy(regions.cut(part, here), memory[*slot, ...])

    def finish(self) -> jax.Array:
        """Return the array, for which JAX takes over the memory without a copy."""
        arrays = [
            jax.device_put(self._parts[str(at)][1], device) for device, at in self._places.items()
        ]
        self._parts = {}  # the memory must not be written again
        return jax.make_array_from_single_device_arrays(self._leaf.shape, self._sharding, arrays)


class OnDevices:
    """A leaf in the memory of accelerators."""

    def __init__(self, leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> None:
        """Remember shape, dtype and sharding; `write` allocates the memory."""
        self._leaf = leaf
        self._sharding = sharding
        self._array: jax.Array | None = None

    def needed(self, index: Index) -> Region:
        """Return the region of a slice that `write` takes; all processes write every slice."""
        return _needed(self._leaf, self._sharding)[len(index) :]

    def write(self, part: np.ndarray, index: Index) -> None:
        """Send each device its part of a slice and wait, so that the host holds one slice only."""
        axes, shape = self._sharding.spec[len(index) :], self._leaf.shape[len(index) :]
        placed = NamedSharding(self._sharding.mesh, PartitionSpec(*axes))
        values, needed = part.astype(self._leaf.dtype, copy=False), self.needed(index)
        sent = jax.make_array_from_callback(
            shape,
            placed,
            lambda at: regions.cut(values, regions.within(regions.explicit(at, shape), needed)),
        )
        if index:
            if self._array is None:
                self._array = jnp.zeros(self._leaf.shape, self._leaf.dtype, device=self._sharding)
            sent = _write(self._array, sent, np.asarray(index, np.int32))
        self._array = jax.block_until_ready(sent)

    def finish(self) -> jax.Array:
        """Return the array."""
        assert self._array is not None, "a leaf has at least one slice"
        return self._array


Filling = OnHost | OnDevices


def begin(leaf: jax.ShapeDtypeStruct) -> Filling:
    """Return an unwritten leaf, in the memory of the host or of the devices.

    Args:
        leaf: Its shape, dtype and sharding, a `NamedSharding`.
    """
    sharding = leaf.sharding
    return (OnHost if _is_host(sharding) else OnDevices)(leaf, sharding)


def _needed(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> Region:
    """Return the smallest region of a leaf that holds the parts of all devices of this process."""
    places = sharding.addressable_devices_indices_map(leaf.shape).values()
    return regions.hull(regions.explicit(at, leaf.shape) for at in places)


@functools.partial(jax.jit, donate_argnums=0)
def _write(stack: jax.Array, part: jax.Array, index: Any) -> jax.Array:
    first = (*index, *[0] * part.ndim)
    return jax.lax.dynamic_update_slice(stack, jnp.expand_dims(part, range(len(index))), first)


def _is_host(sharding: NamedSharding) -> bool:
    devices: set[Any] = sharding.device_set
    return all(device.platform == "cpu" for device in devices)


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return uninitialized memory that JAX can take over without a copy."""
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + num_bytes].view(dtype).reshape(shape)


def _copy(part: np.ndarray, to: np.ndarray) -> None:
    """Copy and cast a part; a transposed matrix is copied in strips that fill whole cache lines.

    NumPy alone writes each element of such a matrix to another cache line, four times slower.
    """
    if part.ndim < 2 or part.strides[0] >= part.strides[1]:
        to[...] = part
        return
    width = _CACHE_LINE // to.itemsize
    for start in range(0, part.shape[1], width):
        strip = part[:, start : start + width]
        # Cast first: casting and transposing in one step is as slow as without strips.
        to[:, start : start + width] = strip.astype(to.dtype, copy=False)
