"""The state of training: all arrays that a step needs besides the base and the batch.

Everything else is a function of the state, the frozen leaves and the seed.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from jaxft import tree as trees
from jaxft.parallel import mesh as meshes
from jaxft.parallel import rules
from jaxft.training.optimizer import Hyper, MakeOptimizer, learning_rate


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["trainable", "started", "opt_state", "step", "hyper"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of one run; its leaves may also be shapes or shardings.

    Attributes:
        trainable: The trained leaves.
        started: The initial A0 and B0 of adapters that subtract their start; they do not change.
        opt_state: The state of the optimizer.
        step: The number of steps done, int32.
        hyper: The numbers of the optimizer and of the adapters.
    """

    trainable: Any
    started: Any
    opt_state: Any
    step: Any
    hyper: Any

    def saved(self) -> dict[str, Any]:
        """Return the content of a checkpoint: everything except `hyper`.

        A checkpoint has A0 and B0 although they do not change, because computing them again could
        give another decomposition of the same weight.
        """
        began = {"began": self.started} if self.started else {}
        return {
            "trainable": self.trainable,
            "opt_state": self.opt_state,
            "step": self.step,
            **began,
        }

    def constant(self, frozen: trees.Tree) -> trees.Tree:
        """Return all leaves that a step does not change: `frozen`, and those of the state."""
        return trees.combine(frozen, self.started, self.hyper.adapters)

    @classmethod
    def restored(cls, saved: Mapping[str, Any], hyper: Hyper) -> "TrainState":
        """Return the state for `saved`, the content of a checkpoint."""
        return cls(
            saved["trainable"], saved.get("began", {}), saved["opt_state"], saved["step"], hyper
        )


def init_state(
    trainable: trees.Tree, started: trees.Tree, hyper: Hyper, make: MakeOptimizer, mesh: Mesh
) -> TrainState:
    """Return the state before the first step, with the shardings that the step returns."""
    placed = state_shardings(trainable, hyper, make, mesh)
    begin = jax.jit(functools.partial(_begin, make), out_shardings=placed)
    return begin(trainable, started, hyper)


def _begin(
    make: MakeOptimizer, trainable: trees.Tree, started: trees.Tree, hyper: Hyper
) -> TrainState:
    opt_state = optimizer_of(hyper, make).init(trainable)
    return TrainState(trainable, started, opt_state, jnp.int32(0), hyper)


def optimizer_of(hyper: Hyper, make: MakeOptimizer) -> optax.GradientTransformation:
    """Return the optimizer with the learning rates of its own schedule."""
    return make(hyper, functools.partial(learning_rate, hyper))


def state_shardings(
    trainable: trees.Tree, hyper: Hyper, make: MakeOptimizer, mesh: Mesh
) -> TrainState:
    """Return the shardings of a state; moments have the shardings of their parameters.

    All leaves of `started` and `hyper` are replicated, and have one sharding for the whole branch.
    """
    optimizer = optimizer_of(hyper, make)
    leaves = rules.shardings(trainable, mesh)
    everywhere = meshes.replicated(mesh)
    moments = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, trainable),
        leaves,
        transform_non_params=lambda _: everywhere,
    )
    return TrainState(leaves, everywhere, moments, everywhere, everywhere)


def abstract_saved(
    trainable: trees.Tree, started: trees.Tree, hyper: Hyper, make: MakeOptimizer, mesh: Mesh
) -> dict[str, Any]:
    """Return `TrainState.saved` as ShapeDtypeStructs with shardings, to restore a checkpoint."""

    def placed(sharding: NamedSharding, leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    shapes = jax.eval_shape(functools.partial(_begin, make), trainable, started, hyper)
    shardings = state_shardings(trainable, hyper, make, mesh)
    at = dataclasses.replace(
        shardings, started=jax.tree.map(lambda _: meshes.replicated(mesh), started)
    )
    return jax.tree.map(placed, at.saved(), shapes.saved())
