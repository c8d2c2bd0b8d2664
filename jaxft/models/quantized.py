"""A frozen weight in 4 or 8 bits, and how it becomes a matrix again where it is used.

Separate because the rest of the program sees a leaf with a shape: only the linear primitive asks
what is in it, one layer at a time, and keeps it as it is stored for the backward pass. What codes
stand for is qwix's; two 4-bit codes share a byte here, whatever JAX does with its own 4-bit types
on a device.

Blocks in 4 bits are small, for the sake of precision, and their scales are in 8 bits, so that they
take no more than float32 ones of four times as large blocks.

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
_BLOCK = 16  # inputs that share a scale, in 4 bits; in 8 bits all inputs of an output do
_TYPES: dict[str, Any] = {
    "nf4": "nf4",
    "int4": "int4",
    "int8": "int8",
    "fp8": jnp.float8_e4m3fn,
}
SCALE_TYPE = jnp.float8_e4m3fn
# The normal numbers of this type; the weights' own scales come to half of its range, so that those
# of weights that were moved (`weights.gptq`) still lie in it.
_SMALLEST, _LARGEST = 2.0**-6, 448.0
_MIDDLE = _LARGEST / 2


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["codes", "scale", "blocks"], meta_fields=["kind"]
)
@dataclasses.dataclass(frozen=True)
class Quantized:
    """A weight, or a stack of them; a leaf of the parameter tree.

    Attributes:
        codes: uint8 [... in/2 out], of two rows each, half the matrix apart; int8 or float8
            [... in out].
        scale: float32 [... 1 out], the factor of each output.
        blocks: float8 [... blocks out], the further factor of each block of inputs in 4 bits;
            `None` in 8.
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
    """Return a weight [in, out] in fewer bits, each rounded to the nearest code."""
    import qwix  # only who quantizes waits for it

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
    """Return what a stack of quantized matrices will be, as `ShapeDtypeStruct`s.

    Args:
        shape: [layers, in, out].
        kind: As in `Quantized`.
        sharding: That of each of its arrays.
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
    """From a weight as it is stored, quantized or not, to a matrix to multiply with."""

    gather: Callable[[Any, Any], jax.Array]

    def __call__(self, leaf: Any, dtype: Any) -> jax.Array:
        """Return the matrix [in, out] in `dtype`."""
        if isinstance(leaf, Quantized):
            return dequantize(leaf).astype(dtype)
        return self.gather(leaf, dtype)


def block_size(num_in: int) -> int:
    """Return how many inputs share a scale in 4 bits."""
    return math.gcd(num_in, _BLOCK)


def output_scale(weight: Float[Array, "i o"], kind: str) -> Float[Array, "1 o"]:
    """Return the factor of each output, by which `block_scale` lies in its type's range."""
    largest = jnp.max(jnp.abs(weight), axis=0, keepdims=True) / levels(kind)[0][-1]
    return jnp.where(largest > 0, largest, 1.0) / _MIDDLE


def block_scale(
    wanted: Float[Array, "... o"], of_output: Float[Array, "1 o"]
) -> Float[Array, "... o"]:
    """Return the float8 factors of blocks that come nearest to the factors that are wanted."""
    return jnp.clip(wanted / of_output, _SMALLEST, _LARGEST).astype(SCALE_TYPE)


def nearest(x: Float[Array, "..."], values: Float[Array, "16"]) -> Integer[Array, "..."]:
    """Return the index of the nearest of ascending values."""
    return jnp.searchsorted((values[1:] + values[:-1]) / 2, x)


def levels(kind: str) -> tuple[Float[Array, "16"], UInt8[Array, "16"]]:
    """Return what 4-bit codes stand for at a scale of 1, ascending, and the codes in this order."""
    with jax.ensure_compile_time_eval():
        codes = packed(jnp.arange(16, dtype=jnp.uint8)[:, None])
        one = jnp.ones((1, 1))
        values = dequantize(Quantized(codes, one, one, kind))[:, 0]
        order = jnp.argsort(values)
        return values[order], order.astype(jnp.uint8)


def packed(codes: UInt8[Array, "i o"]) -> UInt8[Array, "half o"]:
    """Return 4-bit codes, two a byte, as in `Quantized`."""
    low, high = jnp.split(codes & 15, 2)
    return low | (high << 4)


def _unpacked(packed: UInt8[Array, "half o"]) -> UInt8[Array, "i o"]:
    return jnp.concatenate([packed & 15, packed >> 4])
