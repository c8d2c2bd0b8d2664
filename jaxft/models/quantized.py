"""A frozen weight in 4 or 8 bits, and how it becomes a matrix again where it is used.

Separate because the rest of the program sees a leaf with a shape: only the linear primitive asks
what is in it, one layer at a time, and keeps it as it is stored for the backward pass. qwix makes
the codes and reads them; two 4-bit codes share a byte here, whatever JAX does with its own 4-bit
types on a device.

Source: Dettmers et al. 2023, "QLoRA", section 3 (NF4 over blocks of 64).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

_BLOCK = 64  # inputs that share a scale, in 4 bits; in 8 bits all inputs of an output do
FOUR_BITS = ("nf4", "int4")
_TYPES: dict[str, Any] = {
    "nf4": "nf4",
    "int4": "int4",
    "int8": "int8",
    "fp8": jnp.float8_e4m3fn,
}


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["codes", "scale"], meta_fields=["kind"]
)
@dataclasses.dataclass(frozen=True)
class Quantized:
    """A weight, or a stack of them; a leaf of the parameter tree.

    Attributes:
        codes: uint8 [... in/2 out], of two rows each, half the matrix apart; int8 or float8
            [... in out].
        scale: float32 [... blocks out], the factor of each block of inputs.
        kind: "nf4", "int4", "int8" or "fp8".
    """

    codes: Any
    scale: Any
    kind: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        *stack, rows, columns = self.codes.shape
        return (*stack, rows * 2 if self.kind in FOUR_BITS else rows, columns)


@functools.partial(jax.jit, static_argnums=1)
def quantize(weight: Float[Array, "i o"], kind: str) -> Quantized:
    """Return a weight [in, out] in fewer bits, each rounded to the nearest code."""
    import qwix  # only who quantises waits for it

    blocks = {0: block_size(weight.shape[0])} if kind in FOUR_BITS else {}
    made = qwix.quantize(
        weight.astype(jnp.float32), _TYPES[kind], channelwise_axes=(1,), tiled_axes=blocks
    )
    codes = packed(made.qvalue.astype(jnp.uint8)) if kind in FOUR_BITS else made.qvalue
    return Quantized(codes, made.scale, kind)


def dequantize(weight: Quantized) -> Float[Array, "i o"]:
    """Return the matrix, float32."""
    import qwix

    codes = weight.codes
    if weight.kind in FOUR_BITS:
        codes = _unpacked(codes)
    if weight.kind == "int4":
        codes = jnp.where(codes > 7, codes.astype(jnp.int8) - 16, codes.astype(jnp.int8))
    return qwix.dequantize(qwix.QArray(codes, weight.scale, qtype=_TYPES[weight.kind]))


@dataclasses.dataclass(frozen=True)
class Stored:
    """From a weight as it is stored, quantised or not, to a matrix to multiply with."""

    gather: Callable[[Any, Any], jax.Array]

    def __call__(self, leaf: Any, dtype: Any) -> jax.Array:
        """Return the matrix [in, out] in `dtype`."""
        if isinstance(leaf, Quantized):
            return dequantize(leaf).astype(dtype)
        return self.gather(leaf, dtype)


def block_size(num_in: int) -> int:
    """Return how many inputs share a scale in 4 bits."""
    return math.gcd(num_in, _BLOCK)


def levels(kind: str) -> tuple[Float[Array, "16"], UInt8[Array, "16"]]:
    """Return what 4-bit codes stand for at a scale of 1, ascending, and the codes in this order."""
    with jax.ensure_compile_time_eval():
        codes = packed(jnp.arange(16, dtype=jnp.uint8)[:, None])
        values = dequantize(Quantized(codes, jnp.ones((1, 1)), kind))[:, 0]
        order = jnp.argsort(values)
        return values[order], order.astype(jnp.uint8)


def packed(codes: UInt8[Array, "i o"]) -> UInt8[Array, "half o"]:
    """Return 4-bit codes, two a byte, as in `Quantized`."""
    low, high = jnp.split(codes & 15, 2)
    return low | (high << 4)


def _unpacked(packed: UInt8[Array, "half o"]) -> UInt8[Array, "i o"]:
    return jnp.concatenate([packed & 15, packed >> 4])
