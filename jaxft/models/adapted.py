"""A module that may have an adapter: it makes the leaves that the table of parts says."""

from collections.abc import Iterable

import jax.numpy as jnp
from flax import nnx

from jaxft.leaves.parts import Part


class Adapted(nnx.Module):
    """A module with the leaves of an adapter, those of its parts that there are."""

    lora_a: nnx.Param
    lora_b: nnx.Param
    lora_bias: nnx.Param
    lora_magnitude: nnx.Param
    lora_a0: nnx.Param
    lora_b0: nnx.Param
    lora_scaling: nnx.Param
    lora_dropout: nnx.Param

    def make_parts(self, parts: Iterable[Part], rank: int, dims: tuple[int, int]) -> None:
        """Make the leaves of parts of an adapter.

        Args:
            parts: The parts.
            rank: The inner dimension of A and B.
            dims: (in, out) of the module.
        """
        for part in parts:
            values = jnp.full(part.shape(rank, *dims), part.initial, part.dtype)
            setattr(self, part.name, nnx.Param(values))
