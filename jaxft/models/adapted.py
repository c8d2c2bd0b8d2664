"""A module that may have an adapter: the adapter's leaves, and what it adds to the outputs.

This is shared by the linear modules of the layers and by the head, which is applied separately from
the decoder: their adapters are alike.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt32

from jaxft.leaves.parts import Part
from jaxft.models import dora, dropout, linear
from jaxft.models.network import Adapter


class Adapted(nnx.Module):
    """A module with the leaves of an adapter; an attribute exists only if the adapter needs it."""

    lora_a: nnx.Param
    lora_b: nnx.Param
    lora_bias: nnx.Param
    lora_magnitude: nnx.Param
    lora_a0: nnx.Param
    lora_b0: nnx.Param
    lora_scaling: nnx.Param
    lora_dropout: nnx.Param

    def make_parts(self, parts: Iterable[Part], rank: int, dims: tuple[int, int]) -> None:
        """Create the leaves of the given parts of an adapter.

        Args:
            parts: The parts to create, such as `Adapter.parts`.
            rank: The inner dimension of A and B.
            dims: (in, out) of the module.
        """
        for part in parts:
            values = jnp.full(part.shape(rank, *dims), part.initial, part.dtype)
            setattr(self, part.name, nnx.Param(values))


class Kernels(NamedTuple):
    """The kernels of the modules that share an adapter.

    Attributes:
        products: Returns the product [b t _] of activations [b t i] with each kernel.
        matrices: Returns the kernels, each float32 [i _].
    """

    products: Callable[[jax.Array], Sequence[jax.Array]]
    matrices: Callable[[], Sequence[jax.Array]]


def added(
    adapter: Adapter,
    leaves: Mapping[str, jax.Array],
    kernels: Kernels,
    x: Float[Array, "b t i"],
    products: Sequence[Float[Array, "b t _"]],
    seeds: UInt32[Array, "b t"] | None,
) -> Float[Array, "b t o"]:
    """Return what an adapter adds to the products, side by side, in the same dtype.

    Args:
        adapter: The structure of the adapter.
        leaves: The leaves of the adapter, by the name of the part, such as "lora_a".
        kernels: The kernels of the modules that the adapter is on.
        x: Activations.
        products: The result of ``kernels.products(x)``, which the caller has already computed.
        seeds: One hash per token for this module's dropout; `None` for no dropout.
    """
    a, b, scaling = leaves["lora_a"], leaves["lora_b"], leaves["lora_scaling"]
    threshold = leaves["lora_dropout"] if adapter.drops else None
    out = linear.lora(x, a, b, scaling, threshold, seeds)
    if adapter.bias:
        out = out + scaling * leaves["lora_bias"][None, None, :]
    if adapter.subtracts_start:
        out = linear.minus_start(out, x, leaves["lora_a0"], leaves["lora_b0"], scaling)
    out = out.astype(products[0].dtype)
    if not adapter.is_dora:
        return out
    if seeds is not None and threshold is not None:
        # As in PEFT, the part that DoRA adds is computed from the dropped input, also for W.
        products = kernels.products(dropout.recomputed(x, threshold, seeds))
    plain = jnp.concatenate(products, axis=-1)
    norms = dora.norms(kernels.matrices(), a, b, scaling)
    return dora.rescaled(plain + out, leaves["lora_magnitude"], norms) - plain
