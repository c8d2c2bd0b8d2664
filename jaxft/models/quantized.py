"""Frozen weights in 4 or 8 bits, and their conversion to a matrix where they are used.

Separate because the rest of the program sees only a leaf with a shape: only the linear primitive
looks inside it, one layer at a time, and keeps the stored form for the backward pass. The values
of the codes are qwix's. Two 4-bit codes share a byte here, however JAX stores its own 4-bit types
on a device.

In 4 bits, blocks are small, for precision, and their scales are in 8 bits, so that these take no
more memory than float32 scales of blocks four times as large.

Source: Dettmers et al. 2023, "QLoRA", section 3: NF4, and double quantization.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from jaxtyping import Array, Float, Integer, UInt8

FOUR_BITS = ("nf4", "int4")
_BLOCK = 16  # inputs that share a scale in 4 bits; in 8 bits, all inputs of an output share one
_TYPES: dict[str, Any] = {
    "nf4": "nf4",
    "int4": "int4",
    "int8": "int8",
    "fp8": jnp.float8_e4m3fn,
}
SCALE_TYPE = jnp.float8_e4m3fn
# The smallest and the largest normal number of this type. The scales of the original weights go up
# to half of its range, so that the scales of changed weights (`weights.gptq`) are still in it.
_SMALLEST, _LARGEST = 2.0**-6, 448.0
_MIDDLE = _LARGEST / 2


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["codes", "scale", "blocks"], meta_fields=["kind"]
)
@dataclasses.dataclass(frozen=True)
class Quantized:
    """A quantized weight, or a stack of them; a leaf of the parameter tree.

    Attributes:
        codes: In 4 bits, uint8 [... in/2 out], where each byte has the codes of two inputs that
            are in/2 apart. In 8 bits, int8 or float8 [... in out].
        scale: float32 [... 1 out], the factor of each output.
        blocks: float8 [... blocks out], an additional factor for each block of inputs in 4 bits;
            `None` in 8 bits.
        kind: "nf4", "int4", "int8" or "fp8".
    """

    codes: Any
    scale: Any
    blocks: Any
    kind: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        *stack, rows, columns = self.codes.shape
        return (*stack, rows * 2 if self.kind in FOUR_BITS else rows, columns)


@functools.partial(jax.jit, static_argnums=1)
def quantize(weight: Float[Array, "i o"], kind: str) -> Quantized:
    """Quantize a weight [in, out], with each entry rounded to the nearest code."""
    import qwix  # imported here, so that only quantized models wait for it

    weight = weight.astype(jnp.float32)
    if kind not in FOUR_BITS:
        made = qwix.quantize(weight, _TYPES[kind], channelwise_axes=(1,))
        return Quantized(made.qvalue, made.scale, None, kind)
    num_in, num_out = weight.shape
    in_blocks = weight.reshape(-1, block_size(num_in), num_out)
    values, codes = levels(kind)
    scale = output_scale(weight, kind)
    blocks = block_scale(jnp.max(jnp.abs(in_blocks), axis=1) / values[-1], scale)
    factors = (blocks.astype(jnp.float32) * scale)[:, None, :]
    made = codes[nearest(in_blocks / factors, values)].reshape(weight.shape)
    return Quantized(packed(made), scale, blocks, kind)


def abstract(shape: tuple[int, int, int], kind: str, sharding: Sharding) -> Quantized:
    """Return a stack of quantized matrices as `ShapeDtypeStruct`s.

    Args:
        shape: [layers, in, out].
        kind: As in `Quantized`.
        sharding: The sharding of each of its arrays.
    """
    layers, num_in, num_out = shape

    def array(rows: int, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((layers, rows, num_out), dtype, sharding=sharding)

    scale = array(1, jnp.float32)
    if kind not in FOUR_BITS:
        return Quantized(array(num_in, jnp.dtype(_TYPES[kind])), scale, None, kind)
    blocks = array(num_in // block_size(num_in), SCALE_TYPE)
    return Quantized(array(num_in // 2, jnp.uint8), scale, blocks, kind)


def dequantize(weight: Quantized) -> Float[Array, "i o"]:
    """Return the matrix, float32."""
    import qwix

    codes, scale = weight.codes, weight.scale
    if weight.kind in FOUR_BITS:
        codes, scale = _unpacked(codes), weight.blocks.astype(jnp.float32) * scale
    if weight.kind == "int4":
        codes = jnp.where(codes > 7, codes.astype(jnp.int8) - 16, codes.astype(jnp.int8))
    return qwix.dequantize(qwix.QArray(codes, scale, qtype=_TYPES[weight.kind]))


@dataclasses.dataclass(frozen=True)
class ToMatrix:
    """Converts a stored weight, quantized or not, to a matrix to multiply with."""

    gather: Callable[[Any, Any], jax.Array]

    def __call__(self, leaf: Any, dtype: Any) -> jax.Array:
        """Return the matrix [in, out] in `dtype`."""
        if isinstance(leaf, Quantized):
            return dequantize(leaf).astype(dtype)
        return self.gather(leaf, dtype)


def block_size(num_in: int) -> int:
    """Return the number of inputs that share a scale in 4 bits."""
    return math.gcd(num_in, _BLOCK)


def output_scale(weight: Float[Array, "i o"], kind: str) -> Float[Array, "1 o"]:
    """Return the factor of each output, with which `block_scale` is in the range of its type."""
    largest = jnp.max(jnp.abs(weight), axis=0, keepdims=True) / levels(kind)[0][-1]
    return jnp.where(largest > 0, largest, 1.0) / _MIDDLE


def block_scale(
    wanted: Float[Array, "... o"], of_output: Float[Array, "1 o"]
) -> Float[Array, "... o"]:
    """Return the float8 factors of blocks that are nearest to the wanted factors."""
    return jnp.clip(wanted / of_output, _SMALLEST, _LARGEST).astype(SCALE_TYPE)


def nearest(x: Float[Array, "..."], values: Float[Array, "16"]) -> Integer[Array, "..."]:
    """Return the index of the value nearest to each entry of `x`; values are ascending."""
    return jnp.searchsorted((values[1:] + values[:-1]) / 2, x)


def levels(kind: str) -> tuple[Float[Array, "16"], UInt8[Array, "16"]]:
    """Return the values of 4-bit codes at a scale of 1, ascending, and the codes in this order."""
    with jax.ensure_compile_time_eval():
        codes = packed(jnp.arange(16, dtype=jnp.uint8)[:, None])
        one = jnp.ones((1, 1))
        values = dequantize(Quantized(codes, one, one, kind))[:, 0]
        order = jnp.argsort(values)
        return values[order], order.astype(jnp.uint8)


def packed(codes: UInt8[Array, "i o"]) -> UInt8[Array, "half o"]:
    """Pack 4-bit codes, two in a byte, as in `Quantized`."""
    low, high = jnp.split(codes & 15, 2)
    return low | (high << 4)


def _unpacked(packed: UInt8[Array, "half o"]) -> UInt8[Array, "i o"]:
    return jnp.concatenate([packed & 15, packed >> 4])
