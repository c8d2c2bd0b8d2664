"""Rotary position embedding: frequencies, angles, and the rotation of queries and keys.

Source: Su et al. 2021, eq. 34; transformers `modeling_llama.py: rotate_half`,
`modeling_gptj.py: rotate_every_two`, `modeling_rope_utils.py`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from jaxft.models.spec import (
    AlphaScaling,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    Rope,
    YarnScaling,
)

Angles = tuple[Float[Array, "b t half"], Float[Array, "b t half"]]


def frequencies(rope: Rope, *, is_long: bool = False) -> Float[np.ndarray, " half"]:
    """Return the angle in radians per position of each pair of channels, float32.

    Args:
        rope: The rotary embedding. With `DynamicScaling`, the result is for texts that are not
            longer than the context.
        is_long: Whether the text is longer than `LongScaling.original_max_positions`.
    """
    scaling = rope.scaling
    wavelengths = _powers(rope)
    if isinstance(scaling, LongScaling):
        factors = scaling.long_factors if is_long else scaling.short_factors
        return (1.0 / (np.asarray(factors, np.float32) * wavelengths)).astype(np.float32)
    plain = (1.0 / wavelengths).astype(np.float32)
    if scaling is None or isinstance(scaling, AlphaScaling | DynamicScaling):
        return plain
    if isinstance(scaling, LinearScaling):
        return plain / np.float32(scaling.factor)
    if isinstance(scaling, YarnScaling):
        untouched = _untouched_by_yarn(rope, scaling)
        stretched = 1.0 / (np.float32(scaling.factor) * wavelengths)
    else:
        untouched = _untouched_by_llama3(plain, scaling)
        stretched = plain / np.float32(scaling.factor)
    return (stretched * (1 - untouched) + plain * untouched).astype(np.float32)


def _powers(rope: Rope) -> Float[np.ndarray, " half"]:
    exponents = np.arange(0, rope.rotary_dim, 2, dtype=np.float32) / np.float32(rope.rotary_dim)
    theta = rope.theta
    if isinstance(rope.scaling, AlphaScaling):
        theta *= rope.scaling.alpha ** (rope.rotary_dim / (rope.rotary_dim - 2))
    return (np.float32(theta) ** exponents).astype(np.float32)


def _untouched_by_llama3(plain: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    """Return 0 where the wavelength is long (stretched in full), 1 where it is short."""
    turns = scaling.original_max_positions / (2 * math.pi / plain)
    smooth = (turns - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    return np.clip(smooth, 0.0, 1.0)


def _untouched_by_yarn(rope: Rope, scaling: YarnScaling) -> np.ndarray:
    """Return 1 for pairs that turn often within the original context, 0 for those that do not."""

    def pair_that_turns(times: float) -> float:
        wavelength = scaling.original_max_positions / (times * 2 * math.pi)
        return rope.rotary_dim * math.log(wavelength) / (2 * math.log(rope.theta))

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.is_truncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    width = high - low if high != low else 0.001  # as in the reference, avoids a division by zero
    ramp = (np.arange(rope.rotary_dim // 2, dtype=np.float32) - low) / width
    return 1 - np.clip(ramp, 0.0, 1.0)


def angles(rope: Rope, positions: Int32[Array, "b t"], lengths: Int32[Array, "b t"]) -> Angles:
    """Return the cosine and the sine of every position's angles, in float32.

    Args:
        rope: The rotary embedding.
        positions: The position of each token within its own text.
        lengths: The length of each token's text, including tokens that are read later; see
            `text_lengths`.
    """
    per_position = jnp.asarray(frequencies(rope))[None, None, :]
    magnitude = 1.0
    if isinstance(rope.scaling, YarnScaling | LongScaling):
        magnitude = rope.scaling.magnitude
    if isinstance(rope.scaling, LongScaling):
        is_long = lengths > rope.scaling.original_max_positions
        long = jnp.asarray(frequencies(rope, is_long=True))[None, None, :]
        per_position = jnp.where(is_long[..., None], long, per_position)
    if isinstance(rope.scaling, DynamicScaling):
        is_longer = lengths > rope.scaling.max_positions
        grown = _with_larger_base(rope, rope.scaling, lengths)
        per_position = jnp.where(is_longer[..., None], grown, per_position)
    angle = positions[..., None].astype(jnp.float32) * per_position
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return (cos, sin) if magnitude == 1.0 else (cos * magnitude, sin * magnitude)


def _with_larger_base(
    rope: Rope, scaling: DynamicScaling, lengths: Int32[Array, "b t"]
) -> Float[Array, "b t half"]:
    """Return the frequencies for each token whose text is longer than the context."""
    share = lengths.astype(jnp.float32) / scaling.max_positions
    grown = jnp.maximum(scaling.factor * share - (scaling.factor - 1), 1.0)
    base = rope.theta * grown ** (rope.rotary_dim / (rope.rotary_dim - 2))
    exponents = jnp.arange(0, rope.rotary_dim, 2, dtype=jnp.float32) / rope.rotary_dim
    return 1.0 / base[..., None] ** exponents[None, None, :]


def text_lengths(
    positions: Int32[Array, "b t"], segment_ids: Int32[Array, "b t"]
) -> Int32[Array, "b t"]:
    """Return the length of each token's text, in batch rows that hold whole texts."""

    def of_row(positions: jax.Array, segments: jax.Array) -> jax.Array:
        last = jnp.zeros(positions.shape[0] + 1, jnp.int32).at[segments].max(positions)
        return last[segments] + 1

    return jax.vmap(of_row)(positions, segment_ids)


def longest_before_new_angles(rope: Rope) -> int | None:
    """Return the largest length of a text beyond which the angles of all its positions change.

    `None` if angles do not depend on the length, or if only those of a new token do. A longer text
    must be read again from its start, as in transformers: `modeling_phi3.py:
    Phi3ForCausalLM.prepare_inputs_for_generation`.
    """
    scaling = rope.scaling
    if not isinstance(scaling, LongScaling) or scaling.short_factors == scaling.long_factors:
        return None
    return scaling.original_max_positions


def rotate(x: Float[Array, "b t h k"], turned: Angles, rope: Rope) -> Float[Array, "b t h k"]:
    """Rotate the channel pairs of every head by the angles of the token's position."""
    cos, sin = (angle[:, :, None, :] for angle in turned)
    part = x[..., : rope.rotary_dim].astype(jnp.float32)
    if rope.interleaved:
        first, second = part[..., 0::2], part[..., 1::2]
    else:
        first, second = jnp.split(part, 2, axis=-1)
    pairs = [first * cos - second * sin, second * cos + first * sin]
    if rope.interleaved:
        part = jnp.stack(pairs, axis=-1).reshape(part.shape)
    else:
        part = jnp.concatenate(pairs, axis=-1)
    part = part.astype(x.dtype)
    if rope.rotary_dim == x.shape[-1]:
        return part
    return jnp.concatenate([part, x[..., rope.rotary_dim :]], axis=-1)
