"""Dropout whose mask is a pure function of where an element is, not of the order of execution.

An element's fate is a hash of (seed, step, global row, position, layer, module, channel). So it
is the same under any sharding, accumulation, `vmap`, rematerialisation or resume. A few integer
operations an element; threefry costs twenty times as much on a CPU, and `rbg` changes under
`vmap`.
"""

import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, UInt32


def token_seeds(
    seed: jax.Array | int, step: jax.Array | int, rows: Int32[Array, " b"], num_positions: int
) -> UInt32[Array, "b t"]:
    """Return one hash a token from the run's seed, the step, and the row in the global batch."""
    start = _mix(_mix(jnp.uint32(seed)) + jnp.asarray(step).astype(jnp.uint32))
    by_row = _mix(start + rows.astype(jnp.uint32))
    positions = jnp.arange(num_positions, dtype=jnp.uint32)
    return _mix(by_row[:, None] + positions[None, :])


def module_seeds(
    tokens: UInt32[Array, "b t"], layer: jax.Array | int, module: str
) -> UInt32[Array, "b t"]:
    """Return one hash a token for a module of a layer. `module` is its path in the block."""
    name = jnp.uint32(zlib.crc32(module.encode()))
    return _mix(tokens + _mix(name + jnp.asarray(layer).astype(jnp.uint32)))


def apply(x: Float[Array, "b t n"], rate: float, seeds: Any) -> Float[Array, "b t n"]:
    """Zero each element with probability `rate` and divide the others by ``1 - rate``.

    Args:
        x: Activations.
        rate: Probability in [0, 1).
        seeds: uint32 [b t] from `module_seeds`, or `None` for no dropout at all.
    """
    if seeds is None or rate == 0.0:
        return x
    channels = jnp.arange(x.shape[-1], dtype=jnp.uint32)
    bits = _mix(seeds[..., None] + _mix(channels)[None, None, :])
    keep = bits >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype)).astype(x.dtype)


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=1)
def recomputed(x: Float[Array, "b t n"], rate: float, seeds: Any) -> Float[Array, "b t n"]:
    """Return what `apply` does, its mask computed again in the backward pass, not kept."""
    return apply(x, rate, seeds)


def _mix(x: jax.Array) -> jax.Array:
    """Return a well-mixed bijection of a uint32.

    Source: the "lowbias32" constants of Chris Wellons, "Prospecting for Hash Functions" (2018).
    """
    x = x + jnp.uint32(0x9E3779B9)  # zero would otherwise map to itself
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
