"""What a layer keeps of the tokens before, in generation: keys and values in slots of a cache.

Separate from the layers, which write it and read it, because the whole cache (`forward.Cache`) and
the loops over layers handle it as a tree of arrays, whatever a layer keeps.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32


class Past(NamedTuple):
    """What new tokens see of the slots of the cache, in which they are themselves.

    Attributes:
        visible: bool [b t s], before any window.
        distance: int32 [t s], how many positions each key lies behind.
        first_slot: int32, the slot of the first of the new tokens.
    """

    visible: Bool[Array, "b t s"]
    distance: Int32[Array, "t s"]
    first_slot: Int32[Array, ""]


class Cached(NamedTuple):
    """What a layer keeps of earlier tokens, within what its group of layers keeps.

    Attributes:
        states: As of `block.empty_state`, those of all layers of the group stacked on dimension 0.
        place: Of the layer in the stack.
    """

    states: Any
    place: Int32[Array, ""]


def written(
    stack: Float[Array, "n b g s k"], new: Float[Array, "b t g k"], index: Any, first_slot: Any
) -> Float[Array, "n b g s k"]:
    """Return a stack of keys or values with those of new tokens in their slots of one layer."""
    rows = jnp.swapaxes(new, 1, 2)[None].astype(stack.dtype)
    return jax.lax.dynamic_update_slice(stack, rows, (index, 0, 0, first_slot, 0))
