"""Rotary position embedding: frequencies, angles, and the rotation of queries and keys.

Channels are paired as (i, i + head_dim / 2), the layout of transformers' checkpoints.

Source: Su et al. 2021, eq. 34; transformers `modeling_llama.py: rotate_half`,
`modeling_rope_utils.py`.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from jaxft.models.spec import Rope


def frequencies(rope: Rope, head_dim: int) -> Float[np.ndarray, " half"]:
    """Return the angle in radians per position of each pair of channels, float32."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    plain = (1.0 / np.float32(rope.theta) ** exponents).astype(np.float32)
    if rope.scaling == "default":
        return plain
    if rope.scaling == "linear":
        return plain / np.float32(rope.factor)
    wavelengths = 2 * math.pi / plain
    context = rope.original_max_positions
    smooth = (context / wavelengths - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    # 0 where the wavelength is long (stretched in full), 1 where it is short (left alone).
    smooth = np.clip(smooth, 0.0, 1.0)
    return ((1 - smooth) * plain / rope.factor + smooth * plain).astype(np.float32)


def angles(
    rope: Rope, head_dim: int, positions: Int32[Array, "b t"]
) -> tuple[Float[Array, "b t half"], Float[Array, "b t half"]]:
    """Return cosine and sine of every position's angles, in float32."""
    per_position = jnp.asarray(frequencies(rope, head_dim))
    angle = positions[..., None].astype(jnp.float32) * per_position[None, None, :]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(
    x: Float[Array, "b t h k"], cos: Float[Array, "b t half"], sin: Float[Array, "b t half"]
) -> Float[Array, "b t h k"]:
    """Rotate every head's channel pairs by the angles of their position."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
