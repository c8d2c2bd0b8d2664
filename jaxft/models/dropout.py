"""Dropout with a mask that depends only on the place of an element, not on the order of execution.

Whether an element is zeroed is decided by a hash of (seed, step, global batch row, position, layer,
module, channel). So the mask is the same under any sharding, accumulation, `vmap`,
rematerialisation or resume. The hash takes a few integer operations per element; threefry costs
twenty times as much on a CPU, and `rbg` changes under `vmap`.
"""

import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, UInt32


def token_seeds(
    seed: jax.Array | int, step: jax.Array | int, row_ids: Int32[Array, " b"], num_positions: int
) -> UInt32[Array, "b t"]:
    """Return one hash per token, from the run's seed, the step, and the row in the global batch."""
    start = _mix(_mix(jnp.uint32(seed)) + jnp.asarray(step).astype(jnp.uint32))
    by_row = _mix(start + row_ids.astype(jnp.uint32))
    positions = jnp.arange(num_positions, dtype=jnp.uint32)
    return _mix(by_row[:, None] + positions[None, :])


def module_seeds(
    tokens: UInt32[Array, "b t"], layer: jax.Array | int, module: str
) -> UInt32[Array, "b t"]:
    """Return one hash per token for a module of a layer; `module` is its path in the block."""
    name = jnp.uint32(zlib.crc32(module.encode()))
    return _mix(tokens + _mix(name + jnp.asarray(layer).astype(jnp.uint32)))


def threshold(rate: float) -> np.uint32:
    """Return the threshold for a rate in [0, 1): elements with a hash below it are zeroed."""
    return np.uint32(min(round(rate * 2**32), 2**32 - 1))


def apply(x: Float[Array, "b t n"], threshold: Any, seeds: Any) -> Float[Array, "b t n"]:
    """Zero each element with probability `rate` and divide the others by ``1 - rate``.

    Args:
        x: Activations.
        threshold: uint32 scalar, ``threshold(rate)``, which may be traced; `None` for no dropout.
        seeds: uint32 [b t] from `module_seeds`; `None` also means no dropout.
    """
    if seeds is None or threshold is None:
        return x
    channels = jnp.arange(x.shape[-1], dtype=jnp.uint32)
    bits = _mix(seeds[..., None] + _mix(channels)[None, None, :])
    num_kept = jnp.uint32(0) - threshold  # of 2^32 hashes; 0 means all of them
    share = jnp.where(num_kept == 0, 1.0, num_kept.astype(jnp.float32) * 2.0**-32)
    factor = (1.0 / share).astype(x.dtype)
    return jnp.where(bits >= threshold, x * factor, jnp.zeros((), x.dtype))


@functools.partial(jax.checkpoint, prevent_cse=False)
def recomputed(x: Float[Array, "b t n"], threshold: Any, seeds: Any) -> Float[Array, "b t n"]:
    """Return the result of `apply`; its mask is computed again in the backward pass, not kept."""
    return apply(x, threshold, seeds)


def _mix(x: jax.Array) -> jax.Array:
    """Return a well-mixed bijection of a uint32.

    Source: the "lowbias32" constants of Chris Wellons, "Prospecting for Hash Functions" (2018).
    """
    x = x + jnp.uint32(0x9E3779B9)  # zero would otherwise map to itself
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
