"""Members of a sweep: adapters that differ in numbers run in one program, each as if alone."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import programs
import pytest
import tiny

from jaxft import tree as trees
from jaxft.config import TrainConfig
from jaxft.lora import init, mask
from jaxft.models import dropout
from jaxft.models.network import Network, base_network
from jaxft.training import optimizer as optimizers
from jaxft.training import state as states
from jaxft.training import step as steps
from jaxft.training.objective import CAUSAL_LM
from jaxft.training.optimizer import Hyper, make_optimizer

ROWS, LENGTH, NUM_STEPS = 3, 14, 3
SPEC = tiny.with_windows([None] * 3)
MESH = tiny.one_device()
# With an epsilon of 1e-8, Adam makes a whole step of a gradient that is nothing but rounding: then
# 4 % of a leaf's numbers differ by more than 1e-5 after three steps, and the losses by 4e-5.
CONFIG = TrainConfig(output_dir="run", weight_decay=0.1, warmup_steps=0, adam_epsilon=1e-5)


class Member(NamedTuple):
    """A run of its own rank, alpha, dropout, learning rate and seed."""

    rank: int
    scaling: float
    rate: float
    learning_rate: float
    seed: int

    @property
    def network(self) -> Network:
        return tiny.adapted(SPEC, drops=True, ranks=[self.rank] * 3)

    @property
    def parts(self) -> mask.Parts:
        """Its leaves; the base's are those of every member."""
        drawn = tiny.random_leaves(self.network, seed=self.seed, dropout=self.rate)
        found = mask.parts(self.network, drawn)
        base = tiny.random_leaves(base_network(SPEC))
        return found._replace(numbers=numbers(found.numbers, self.scaling, self.rate), frozen=base)

    @property
    def hyper(self) -> Hyper:
        config = CONFIG.model_copy(update={"learning_rate": self.learning_rate})
        hyper = optimizers.hyper_of(config, NUM_STEPS)
        return dataclasses.replace(hyper, adapters=self.parts.numbers)


MEMBERS = (Member(3, 1.5, 0.3, 1e-2, 5), Member(6, 0.5, 0.05, 3e-3, 6))


def numbers(like: Any, scaling: float, rate: float) -> trees.Tree:
    """Return the numbers of all adapters, one scaling and one rate."""
    values = {"lora_scaling": np.float32(scaling), "lora_dropout": dropout.threshold(rate)}
    return trees.map_with_path(
        lambda path, leaf: np.full(leaf.shape, values[path.rpartition("/")[2]]), like
    )


def batch(number: int) -> Any:
    return tiny.make_batch(ROWS, LENGTH, seed=number)


def program(network: Network) -> steps.Program:
    return steps.Program(network, MESH, "float32", ROWS * LENGTH, False, CAUSAL_LM)


def begun(trainable: trees.Tree, hyper: Hyper, make: Any = make_optimizer) -> states.TrainState:
    return states.init_state(tiny.placed(trainable, MESH), {}, hyper, make, MESH)


def widened(trainable: trees.Tree, width: int) -> trees.Tree:
    return trees.map_with_path(lambda _, side: init.padded(side, width), trainable)


def alone(member: Member) -> tuple[trees.Tree, list[float]]:
    """Return what a run of its own network trains, and its losses."""
    parts = member.parts
    step = steps.make_train_step(
        program(member.network), make_optimizer, member.hyper, parts.trainable
    )
    state, losses = begun(parts.trainable, member.hyper), []
    for number in range(NUM_STEPS):
        state, metrics = step(state, parts.frozen, batch(number), np.uint32(member.seed))
        losses.append(float(metrics.loss))
    return state.trainable, losses


def together() -> tuple[Any, states.TrainState, trees.Tree, jax.Array]:
    """Return the step over all members, their states, the base's leaves and their seeds."""
    widest = max(MEMBERS, key=lambda member: member.rank)
    width = widest.rank
    begins = [begun(widened(each.parts.trainable, width), each.hyper) for each in MEMBERS]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *begins)
    one = functools.partial(steps.advance, program(widest.network), make_optimizer)
    step = jax.vmap(one, in_axes=(0, None, None, 0))
    seeds = jnp.asarray([member.seed for member in MEMBERS], jnp.uint32)
    return step, state, widest.parts.frozen, seeds


def test_members_of_unequal_numbers_are_each_as_if_alone():
    step, state, frozen, seeds = together()
    step, losses = jax.jit(step), []
    for number in range(NUM_STEPS):
        state, metrics = step(state, frozen, batch(number), seeds)
        losses.append(metrics.loss)
    assert step._cache_size() == 1
    for index, member in enumerate(MEMBERS):
        expected, of_one = alone(member)
        np.testing.assert_allclose([each[index] for each in losses], of_one, rtol=1e-5)
        for path, leaf in trees.flatten(expected).items():
            found = np.asarray(trees.flatten(state.trainable)[path])[index]
            np.testing.assert_allclose(found[:, : member.rank], leaf, rtol=1e-5, atol=1e-5)
            assert not found[:, member.rank :].any()
            assert np.abs(leaf - trees.flatten(member.parts.trainable)[path]).max() > 1e-3


def test_the_base_enters_the_program_of_all_members_once():
    step, state, frozen, seeds = together()
    jaxpr = jax.make_jaxpr(step)(state, frozen, batch(0), seeds).jaxpr
    found = programs.traced_shapes(jaxpr)
    kernels = [leaf.shape for leaf in trees.flatten(frozen).values() if leaf.ndim > 1]
    stored = set(kernels) | {shape[1:] for shape in kernels if len(shape) == 3}
    assert stored <= found  # the stack, and in the loop over layers a slice of it
    by_member = {(len(MEMBERS), *shape) for each in stored for shape in (each, each[::-1])}
    assert not found & by_member


def with_sgd(hyper: Hyper, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.sgd(schedule, momentum=0.9)


@pytest.mark.parametrize("name", ["adamw", "loraplus", "sgd"])
def test_zeros_beyond_a_rank_stay_zero(name):
    ranks = [2, 6, 4]
    network = tiny.adapted(SPEC, drops=True, ranks=ranks)
    parts = mask.parts(network, tiny.random_leaves(network))
    ratio = {"loraplus_lr_ratio": 8.0} if name == "loraplus" else {}
    config = CONFIG.model_copy(update={"learning_rate": 1e-2, **ratio})
    hyper = optimizers.hyper_of(config, NUM_STEPS)
    hyper = dataclasses.replace(hyper, adapters=parts.numbers)
    make = with_sgd if name == "sgd" else make_optimizer
    step = steps.make_train_step(program(network), make, hyper, parts.trainable)
    state = begun(parts.trainable, hyper, make)
    for number in range(NUM_STEPS):
        state, _ = step(state, parts.frozen, batch(number), np.uint32(0))
    before = trees.flatten(parts.trainable)
    for path, leaf in trees.flatten(state.trainable).items():
        for layer, rank in enumerate(ranks):
            assert not leaf[layer, rank:].any()
            assert (leaf[layer, :rank] != before[path][layer, :rank]).mean() > 0.9


def test_another_alpha_or_dropout_does_not_compile_again():
    member = MEMBERS[0]
    parts = member.parts
    step = steps.make_train_step(
        program(member.network), make_optimizer, member.hyper, parts.trainable
    )

    def loss(scaling, rate):
        changed = numbers(parts.numbers, scaling, rate)
        hyper = dataclasses.replace(member.hyper, adapters=changed)
        state = begun(parts.trainable, hyper)
        return float(step(state, parts.frozen, batch(0), np.uint32(0))[1].loss)

    losses = {loss(*pair) for pair in [(1.5, 0.3), (3.0, 0.3), (1.5, 0.6), (1.5, 0.0)]}
    assert len(losses) == 4
    assert step._cache_size() == 1
