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
_FOUR_BITS = ("nf4", "int4")
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
        return (*stack, rows * 2 if self.kind in _FOUR_BITS else rows, columns)


@functools.partial(jax.jit, static_argnums=1)
def quantize(weight: Float[Array, "i o"], kind: str) -> Quantized:
    """Return a weight [in, out] in fewer bits."""
    import qwix  # only who quantises waits for it

    blocks = {0: math.gcd(weight.shape[0], _BLOCK)} if kind in _FOUR_BITS else {}
    made = qwix.quantize(
        weight.astype(jnp.float32), _TYPES[kind], channelwise_axes=(1,), tiled_axes=blocks
    )
    codes = _packed(made.qvalue.astype(jnp.uint8)) if kind in _FOUR_BITS else made.qvalue
    return Quantized(codes, made.scale, kind)


def dequantize(weight: Quantized) -> Float[Array, "i o"]:
    """Return the matrix, float32."""
    import qwix

    codes = weight.codes
    if weight.kind in _FOUR_BITS:
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


def _packed(codes: UInt8[Array, "i o"]) -> UInt8[Array, "half o"]:
    low, high = jnp.split(codes & 15, 2)
    return low | (high << 4)


def _unpacked(packed: UInt8[Array, "half o"]) -> UInt8[Array, "i o"]:
    return jnp.concatenate([packed & 15, packed >> 4])
