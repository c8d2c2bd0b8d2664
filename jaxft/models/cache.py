"""The state in which a layer keeps earlier tokens in generation, and its place in a stack.

Separate from the layers, which write it and read it, because the whole cache (`forward.Cache`) and
the loops over layers treat it as a tree of arrays, whatever a layer keeps.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


class Cached(NamedTuple):
    """The state of a layer, as a slice of the stacked states of its group's layers.

    Attributes:
        states: A tree as from `block.empty_state`, with the group's layers at one position of the
            period stacked on dimension 0.
        place: The index of the layer in the stack.
    """

    states: Any
    place: Int32[Array, ""]


class KeysValues(NamedTuple):
    """Keys and values in the slots of a cache, for one layer or for a group's layers stacked."""

    keys: Float[Array, "*n b g s k"]
    values: Float[Array, "*n b g s k"]

    def written(
        self, place: Any, first_slot: Any, k: Float[Array, "b t g k"], v: Float[Array, "b t g k"]
    ) -> "KeysValues":
        """Return the stack with new keys and values in one layer's slots from `first_slot` on."""

        def with_new(stack: jax.Array, new: jax.Array) -> jax.Array:
            rows = jnp.swapaxes(new, 1, 2)[None].astype(stack.dtype)
            return jax.lax.dynamic_update_slice(stack, rows, (place, 0, 0, first_slot, 0))

        return KeysValues(with_new(self.keys, k), with_new(self.values, v))

    def of_layer(self, place: Any) -> tuple[Float[Array, "b s g k"], Float[Array, "b s g k"]]:
        """Return the keys and the values of one layer of the stack."""
        return jnp.swapaxes(self.keys[place], 1, 2), jnp.swapaxes(self.values[place], 1, 2)
