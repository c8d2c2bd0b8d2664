"""The training step: one pure function, jit-compiled and sharded, of state, base and batch.

Only the first argument of the loss is differentiated, and it has only trained leaves. Read
`_loss_sum` and `advance` for the mathematics; `make_train_step` adds sharding and donation. The
loss itself is defined by the program's `objective`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxft import tree as trees
from jaxft.models import untuned
from jaxft.models.network import Network
from jaxft.parallel import mesh as meshes
from jaxft.training import state as states
from jaxft.training.objective import Batch, Objective, Terms, View, batch_shardings
from jaxft.training.optimizer import Hyper, MakeOptimizer, learning_rate
from jaxft.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Program:
    """The static properties of a step; a step is compiled once for each combination of them.

    Attributes:
        network: The network, including adapters.
        mesh: The devices that hold the arrays.
        dtype: The dtype of activations and matrix products, "float32" or "bfloat16".
        capacity: At least the largest number of labels in one data shard of a micro-batch.
        remat: Whether each period of layers is computed again in the backward pass.
        objective: The objective that is minimised, such as `objective.CAUSAL_LM`.
    """

    network: Network
    mesh: Mesh
    dtype: str
    capacity: int
    remat: bool
    objective: Objective

    def view(self, tree: trees.Tree, noise: tuple[Any, Any] | None) -> View:
        """Return the view of the model with these leaves for the objective.

        Args:
            tree: All leaves, and the originals of trained ones if `untuned.with_originals` added
                them.
            noise: The seed of the run and the number of the step; `None` for no dropout.
        """
        leaves, originals = untuned.split(tree)
        return View(
            network=self.network,
            tree=leaves,
            mesh=self.mesh,
            dtype=self.dtype,
            capacity=self.capacity,
            remat=self.remat,
            originals=originals,
            noise=noise,
        )


class StepMetrics(NamedTuple):
    """The metrics of a step, all scalars on the device.

    Attributes:
        terms: The objective's terms over the whole batch: name -> (sum, count).
        grad_norm: The norm of the gradient of the mean loss, before clipping.
        learning_rate: The learning rate of this step.
        is_skipped: Whether the loss or the gradient was not finite, so that nothing was changed.
    """

    terms: Terms
    grad_norm: jax.Array
    learning_rate: jax.Array
    is_skipped: jax.Array

    @property
    def loss(self) -> jax.Array:
        """The mean of the term "loss"."""
        total, count = self.terms["loss"]
        return total / jnp.maximum(count, 1)


def make_train_step(
    program: Program,
    make: MakeOptimizer,
    hyper: Hyper,
    trainable: trees.Tree,
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """Return the compiled step: ``step(state, frozen, batch, seed) -> (state, metrics)``.

    `state` is donated. `batch` has the arrays that the objective names, with `a` micro-batches.
    `seed` is the seed of the run; dropout depends only on it and the state's step. A step whose
    loss or gradient is not finite is skipped: trained leaves and optimizer state stay the same, bit
    for bit, and only the state's step is incremented. If the objective needs the base, `frozen`
    also has the originals of the model's own trained leaves, see `untuned.with_originals`.

    Args:
        program: The static properties of the step.
        make: Makes the optimizer from the numbers in the state, like `optimizer.make_optimizer`.
        hyper: Numbers with the structure of those in the state; their values are not used.
        trainable: The trained leaves, or their shapes.
    """
    mesh = program.mesh
    placed = states.state_shardings(trainable, hyper, make, mesh)
    everywhere = meshes.replicated(mesh)

    def step(state: Any, frozen: Any, batch: Batch, seed: Any) -> Any:
        return advance(program, make, state, frozen, batch, seed)

    return jax.jit(
        step,
        in_shardings=(placed, None, batch_shardings(program.objective, mesh), everywhere),
        out_shardings=(placed, everywhere),
        donate_argnums=0,
    )


def make_eval_step(program: Program) -> Callable[..., Terms]:
    """Return the compiled evaluation: ``(trainable, frozen, batch) -> terms``.

    `batch` has one micro-batch, [1 b t]; there is no dropout.
    """

    def evaluate(trainable: Any, frozen: Any, batch: Batch) -> Any:
        micro = {key: value[0] for key, value in batch.items()}
        view = program.view(trees.combine(trainable, frozen), None)
        return program.objective.terms(view, micro)

    everywhere = meshes.replicated(program.mesh)
    shardings = (None, None, batch_shardings(program.objective, program.mesh))
    return jax.jit(evaluate, in_shardings=shardings, out_shardings=everywhere)


def _loss_sum(
    trainable: trees.Tree, program: Program, frozen: trees.Tree, micro: Batch, noise: Any
) -> tuple[jax.Array, Terms]:
    terms = program.objective.terms(program.view(trees.combine(trainable, frozen), noise), micro)
    return terms["loss"][0], terms


def gradients(
    program: Program, trainable: trees.Tree, frozen: trees.Tree, batch: Batch, seed: Any, step: Any
) -> tuple[Terms, trees.Tree]:
    """Return the terms, and the gradient of the sum of "loss", over all micro-batches.

    Sums and counts are added up, and the caller divides once: a mean of the micro-batches' means
    would weight their labels unequally.
    """

    def micro_gradients(micro: Batch) -> tuple[Terms, trees.Tree]:
        value_and_grad = jax.value_and_grad(_loss_sum, has_aux=True)
        (_, terms), grads = value_and_grad(trainable, program, frozen, micro, (seed, step))
        return terms, grads

    first = {key: value[0] for key, value in batch.items()}
    if next(iter(batch.values())).shape[0] == 1:
        return micro_gradients(first)

    def add(total: Any, micro: Batch) -> Any:
        return jax.tree.map(jnp.add, total, micro_gradients(micro)), None

    shapes = jax.eval_shape(micro_gradients, first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, dict(batch))[0]


def advance(
    program: Program,
    make: MakeOptimizer,
    state: TrainState,
    frozen: trees.Tree,
    batch: Batch,
    seed: Any,
) -> tuple[TrainState, StepMetrics]:
    """Return the state after a step, and its metrics; for the arguments see `make_train_step`.

    It may be mapped over `state` and `seed` (`jax.vmap`), with frozen leaves that are shared.
    """
    trainable, opt_state = state.trainable, state.opt_state
    constant = state.constant(frozen)
    terms, grads = gradients(program, trainable, constant, batch, seed, state.step)
    loss, count = terms["loss"]
    scale = 1.0 / jnp.maximum(count, 1).astype(jnp.float32)
    grads = jax.tree.map(lambda grad: grad * scale.astype(grad.dtype), grads)
    norm = optax.tree.norm(grads)
    is_finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    rate = learning_rate(state.hyper, state.step)
    # The optimizer would compute the same rate from its own count; it is computed only once.
    updates, new_opt_state = make(state.hyper, lambda _: rate).update(grads, opt_state, trainable)
    new = (optax.apply_updates(trainable, updates), new_opt_state)
    new_trainable, new_opt_state = jax.tree.map(
        lambda new, old: jnp.where(is_finite, new, old), new, (trainable, opt_state)
    )
    new_state = dataclasses.replace(
        state, trainable=new_trainable, opt_state=new_opt_state, step=state.step + 1
    )
    return new_state, StepMetrics(terms, norm, rate, ~is_finite)
