"""Attention to the slots of a cache in plain JAX, for decoding; it is never differentiated."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxft.models.attention.layout import Slots
from jaxft.models.attention.scores import MASKED, Scores


def attend(
    scoring: Scores,
    q: Float[Array, "b t g m k"],
    k: Float[Array, "b s g k"],
    v: Float[Array, "b s g k"],
    layout: Slots,
    mesh: Mesh,
) -> Float[Array, "b t g m k"]:
    """Attend to the slots of a cache; the arguments are those of `attend.attend`."""
    del mesh  # every device decodes all batch rows
    # The axis order in the cache; XLA removes this transposition together with the one before it.
    keys, values = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    visible = layout.visible
    if scoring.window is not None:
        visible = visible & (layout.distance < scoring.window)[None]
    batch, length, groups, members, width = q.shape
    # The only form of the product that needs no transposed keys or values: XLA on CPUs copies them.
    by_head = jnp.moveaxis(q, 1, 3).reshape(batch, groups, members * length, width)
    products = jax.lax.dot_general(
        by_head,
        keys.astype(q.dtype),
        (((3,), (3,)), ((0, 1), (0, 1))),
        preferred_element_type=jnp.float32,
    )
    products = products.reshape(batch, groups, members, length, -1)
    scores = scoring.of_products(products, layout.distance)
    scores = jnp.where(visible[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    weights = weights.reshape(batch, groups, members * length, -1)
    mixed = jax.lax.dot_general(weights, values, (((3,), (2,)), ((0, 1), (0, 1))))
    return jnp.moveaxis(mixed.reshape(batch, groups, members, length, width), 3, 1)
