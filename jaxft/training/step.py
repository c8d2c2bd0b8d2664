"""The training step: one pure function, jit-compiled and sharded, of state, base and batch.

Only the first argument of the loss is differentiated, and it holds only what is trained. Read
`_loss_sum` and `_step` for the mathematics; `make_train_step` adds placement and donation.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxft import tree as trees
from jaxft.models import dropout, forward
from jaxft.models.network import Network
from jaxft.parallel import mesh as meshes
from jaxft.training import losses
from jaxft.training import state as states

Batch = Mapping[str, Any]
BATCH_KEYS = ("input_ids", "labels", "positions", "rows", "segment_ids")


@dataclasses.dataclass(frozen=True)
class Program:
    """What is static about a step: compiled once for each.

    Attributes:
        network: The network, adapters included.
        mesh: Where the arrays live.
        dtype: dtype of activations and matrix products ("float32" or "bfloat16").
        capacity: At least the number of targets in one data shard of a micro-batch.
        remat: Whether each period of layers is computed again in the backward pass.
        loss: The loss; `causal_lm` unless the user brings one.
    """

    network: Network
    mesh: Mesh
    dtype: str
    capacity: int
    remat: bool
    loss: "LossFunction"


# (program, tree, hidden states [b t d], micro-batch) to (loss sum, number of targets)
LossFunction = Callable[[Program, trees.Tree, Any, Batch], tuple[jax.Array, jax.Array]]


def causal_lm(
    program: Program, tree: trees.Tree, hidden: Any, micro: Batch
) -> tuple[jax.Array, jax.Array]:
    """Return the summed negative log-likelihood of the labels, and their number."""
    head = forward.head_leaves(program.network, tree)
    return losses.causal_lm_loss(
        program.network, program.mesh, head, hidden, micro["labels"], program.capacity
    )


def make_train_step(
    program: Program,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    trainable: trees.Tree,
) -> Callable[..., tuple[states.State, dict[str, jax.Array]]]:
    """Return the compiled step: ``step(state, frozen, batch, seed) -> (state, metrics)``.

    `state` is donated. `batch` holds int32 arrays [a b t] (`rows` [a b]), a micro-batches of b
    rows. `seed` is that of the run; dropout depends on it and the state's step alone. Metrics are
    scalars: `loss` (mean nats a target), `grad_norm` (before clipping), `learning_rate`,
    `target_tokens`.

    Args:
        program: What is static.
        optimizer: Maps gradients to updates.
        schedule: The learning rate that the optimizer uses, for the metrics.
        trainable: The trained leaves, or their shapes.
    """
    mesh = program.mesh
    placed = states.state_shardings(trainable, optimizer, mesh)
    everywhere = meshes.replicated(mesh)

    def step(state: Any, frozen: Any, batch: Batch, seed: Any) -> Any:
        return _step(program, optimizer, schedule, state, frozen, batch, seed)

    return jax.jit(
        step,
        in_shardings=(placed, None, batch_shardings(mesh), everywhere),
        out_shardings=(placed, everywhere),
        donate_argnums=0,
    )


def make_eval_step(program: Program) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Return the compiled evaluation: ``(trainable, frozen, batch) -> (loss sum, targets)``.

    `batch` has one micro-batch, [1 b t]; there is no dropout.
    """

    def evaluate(trainable: Any, frozen: Any, batch: Batch) -> Any:
        micro = {key: value[0] for key, value in batch.items()}
        return _loss_sum(trainable, program, frozen, micro, None)

    everywhere = meshes.replicated(program.mesh)
    shardings = (None, None, batch_shardings(program.mesh))
    return jax.jit(evaluate, in_shardings=shardings, out_shardings=everywhere)


def batch_shardings(mesh: Mesh) -> dict[str, jax.sharding.NamedSharding]:
    """Return the sharding of each of a batch's arrays: rows are dimension 1."""
    return dict.fromkeys(BATCH_KEYS, meshes.rows(mesh, axis=1))


def _loss_sum(
    trainable: trees.Tree, program: Program, frozen: trees.Tree, micro: Batch, seeds: Any
) -> tuple[jax.Array, jax.Array]:
    tree = trees.combine(trainable, frozen)
    hidden = forward.hidden_states(
        program.network,
        tree,
        micro["input_ids"],
        micro["segment_ids"],
        micro["positions"],
        mesh=program.mesh,
        dtype=program.dtype,
        dropout_seeds=seeds,
        remat=program.remat,
    )
    return program.loss(program, tree, hidden, micro)


def gradients(
    program: Program, trainable: trees.Tree, frozen: trees.Tree, batch: Batch, seed: Any, step: Any
) -> tuple[jax.Array, jax.Array, trees.Tree]:
    """Return (loss sum, number of targets, gradient of the sum) over all micro-batches.

    Sums and counts are added up, and divided once by the caller: a mean of the micro-batches'
    means would weigh their targets unequally.
    """

    def micro_gradients(micro: Batch) -> Any:
        num_positions = micro["input_ids"].shape[1]
        seeds = dropout.token_seeds(seed, step, micro["rows"], num_positions)
        value_and_grad = jax.value_and_grad(_loss_sum, has_aux=True)
        (loss, count), grads = value_and_grad(trainable, program, frozen, micro, seeds)
        return loss, count, grads

    if batch["input_ids"].shape[0] == 1:
        return micro_gradients({key: value[0] for key, value in batch.items()})

    def add(total: Any, micro: Batch) -> Any:
        return jax.tree.map(jnp.add, total, micro_gradients(micro)), None

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), trainable)
    return jax.lax.scan(add, (jnp.float32(0), jnp.int32(0), zeros), dict(batch))[0]


def _step(
    program: Program,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    state: states.State,
    frozen: trees.Tree,
    batch: Batch,
    seed: Any,
) -> tuple[states.State, dict[str, jax.Array]]:
    trainable, step = state["trainable"], state["step"]
    loss, count, grads = gradients(program, trainable, frozen, batch, seed, step)
    scale = 1.0 / jnp.maximum(count, 1).astype(jnp.float32)
    grads = jax.tree.map(lambda grad: grad * scale.astype(grad.dtype), grads)
    updates, opt_state = optimizer.update(grads, state["opt_state"], trainable)
    new_state = {
        "trainable": optax.apply_updates(trainable, updates),
        "opt_state": opt_state,
        "step": step + 1,
    }
    metrics = {
        "loss": loss * scale,
        "grad_norm": optax.tree.norm(grads),
        "learning_rate": jnp.asarray(schedule(step), jnp.float32),
        "target_tokens": count,
    }
    return new_state, metrics
