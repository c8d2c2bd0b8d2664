"""The state of training: what changes from step to step, and nothing else.

A plain dict, so that orbax stores it as it is: the trained leaves, their optimizer state, and
the number of steps done. Everything else is a function of these, the frozen leaves and the seed.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from jaxft import tree as trees
from jaxft.parallel import mesh as meshes
from jaxft.parallel import rules

State = dict[str, Any]  # "trainable": tree, "opt_state": optax state, "step": int32


def init_state(trainable: trees.Tree, optimizer: optax.GradientTransformation, mesh: Mesh) -> State:
    """Return the state before the first step, placed as the step will return it."""

    def init(trainable: trees.Tree) -> State:
        return {
            "trainable": trainable,
            "opt_state": optimizer.init(trainable),
            "step": jnp.int32(0),
        }

    return jax.jit(init, out_shardings=state_shardings(trainable, optimizer, mesh))(trainable)


def state_shardings(
    trainable: trees.Tree, optimizer: optax.GradientTransformation, mesh: Mesh
) -> State:
    """Return the sharding of every leaf of the state: moments lie where their parameter lies."""
    leaves = rules.shardings(trainable, mesh)
    everywhere = meshes.replicated(mesh)
    moments = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, trainable),
        leaves,
        transform_non_params=lambda _: everywhere,
    )
    return {"trainable": leaves, "opt_state": moments, "step": everywhere}


def abstract_state(
    trainable: trees.Tree, optimizer: optax.GradientTransformation, mesh: Mesh
) -> State:
    """Return the state as ShapeDtypeStructs with shardings, for restoring a checkpoint into."""
    shapes = {
        "trainable": trainable,
        "opt_state": jax.eval_shape(optimizer.init, trainable),
        "step": jax.ShapeDtypeStruct((), jnp.int32),
    }

    def placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(placed, shapes, state_shardings(trainable, optimizer, mesh))
