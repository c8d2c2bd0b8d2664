"""An objective: forward passes through a view, terms as sums and counts, and any number of both."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import naive
import numpy as np
import pytest
import tiny

from jaxft import tree as trees
from jaxft.config import TrainConfig
from jaxft.data.rows.tokenized import IGNORED
from jaxft.models.untuned import base_tree, with_originals
from jaxft.training import optimizer
from jaxft.training import state as states
from jaxft.training import step as steps
from jaxft.training.objective import CAUSAL_LM, Objective
from jaxft.training.optimizer import make_optimizer

ROWS, LENGTH = 3, 12
NETWORK = tiny.adapted(tiny.with_windows([None] * 2))
TREE = jax.tree.map(jnp.asarray, tiny.random_leaves(NETWORK))
BATCH = tiny.make_batch(2 * ROWS, LENGTH, seed=1, accumulation=2)
MESH = tiny.one_device()


def two_forwards(view, micro):
    """Return the loss of the texts, that of other texts at half its weight, and the base's."""
    loss, count = view.nll(view.hidden(micro), micro["labels"])
    others = {**micro, "input_ids": micro["other_ids"]}
    other_loss, _ = view.nll(view.hidden(others), micro["labels"])
    base = view.base.nll(view.base.hidden(micro), micro["labels"])
    return {"loss": (loss + 0.5 * other_loss, count), "other": (other_loss, count), "base": base}


TWO_FORWARDS = Objective({**CAUSAL_LM.arrays, "other_ids": "a b t"}, two_forwards)


def program(objective, capacity=ROWS * LENGTH):
    return steps.Program(NETWORK, MESH, "float32", capacity, False, objective)


def test_a_second_objective_is_its_formula_with_gradients_over_micro_batches():
    batch = {**BATCH, "other_ids": BATCH["input_ids"][:, :, ::-1].copy()}
    trainable, frozen = tiny.split(TREE)
    gradients = jax.jit(functools.partial(steps.gradients, program(TWO_FORWARDS)))
    terms, grads = gradients(trainable, frozen, batch, 0, 0)

    def formula(trainable):
        tree, total, others = trees.combine(trainable, frozen), 0.0, 0.0
        for number in range(2):
            micro = {name: array[number] for name, array in batch.items()}
            other_micro = {**micro, "input_ids": micro["other_ids"]}
            other = naive.loss_sum(NETWORK, tree, other_micro, xp=jnp)
            total, others = (
                total + naive.loss_sum(NETWORK, tree, micro, xp=jnp) + 0.5 * other,
                others + other,
            )
        return total, others

    (total, others), expected = jax.value_and_grad(formula, has_aux=True)(trainable)
    np.testing.assert_allclose(terms["loss"][0], total, rtol=1e-5)
    np.testing.assert_allclose(terms["other"][0], others, rtol=1e-5)
    base, leaves = NETWORK.untuned(), base_tree(NETWORK, TREE, {})
    micros = [{name: array[number] for name, array in batch.items()} for number in range(2)]
    without = sum(naive.loss_sum(base, leaves, micro, xp=jnp) for micro in micros)
    np.testing.assert_allclose(terms["base"][0], without, rtol=1e-5)
    assert terms["loss"][1] == terms["other"][1] == (batch["labels"] != IGNORED).sum()
    found = trees.flatten(grads)
    for path, leaf in trees.flatten(expected).items():
        assert np.linalg.norm(found[path] - leaf) < 1e-5 * np.linalg.norm(leaf), path


def near_the_base(view, micro):
    """Return the loss weighed by how likely the base finds each label, and the base's own."""
    labels = micro["labels"]
    tuned = view.log_probs(view.hidden(micro), labels)
    base = view.base.log_probs(view.base.hidden(micro), labels)
    count = jnp.sum(labels != IGNORED, dtype=jnp.int32)
    return {"loss": (-jnp.sum(jnp.exp(base) * tuned), count), "base": (-jnp.sum(base), count)}


def test_an_objective_that_asks_for_the_base_has_originals_of_trained_leaves():
    spec = dataclasses.replace(tiny.with_windows([None] * 2), qkv_bias=True)
    # bias: all, and modules_to_save: the head of a tied pair, which becomes a leaf of its own.
    network = tiny.adapted(spec, trained=["attn/q/bias"], outer_trained=["head/kernel"], bias=True)
    tree = tiny.random_leaves(network)
    began, frozen = tiny.split(tree, network)
    moved = jax.tree.map(lambda leaf: 1.3 * leaf, began)
    objective = Objective(CAUSAL_LM.arrays, near_the_base, needs_base=True)
    hyper = optimizer.hyper_of(TrainConfig(output_dir="run"), 10)
    within = steps.Program(network, MESH, "float32", ROWS * LENGTH, False, objective)
    carried = with_originals(network, frozen, began)
    assert trees.flatten(carried["originals"]).keys() == network.trained_leaves()
    step = steps.make_train_step(within, make_optimizer, hyper, moved)
    state = states.init_state(tiny.placed(moved, MESH), {}, hyper, make_optimizer, MESH)
    losses = []
    for _ in range(2):
        state, metrics = step(state, carried, BATCH, 0)
        losses.append(float(metrics.terms["base"][0]))
    base = base_tree(network, tree, began)
    micros = [{name: array[number] for name, array in BATCH.items()} for number in range(2)]
    expected = [naive.loss_sum(network.untuned(), base, micro) for micro in micros]
    np.testing.assert_allclose(losses, sum(expected), rtol=1e-5)  # whatever is trained
    # The same in the evaluation, and a refusal where nobody asked.
    one = {name: array[:1] for name, array in BATCH.items()}
    of_base = steps.make_eval_step(within)(moved, carried, one)["base"][0]
    np.testing.assert_allclose(of_base, expected[0], rtol=1e-5)
    with pytest.raises(ValueError, match="needs_base"):
        steps.make_eval_step(within)(moved, frozen, one)


@pytest.mark.parametrize("capacity", [ROWS * LENGTH, "labels"])
@pytest.mark.parametrize("trained", [False, True], ids=["frozen head", "trained head"])
def test_log_probabilities_and_their_gradients_are_those_of_the_logits(capacity, trained):
    micro = {name: jnp.asarray(array[0]) for name, array in BATCH.items()}
    labels = jnp.asarray(micro["labels"])
    if capacity == "labels":
        capacity = int((labels != IGNORED).sum())
    weights = jax.random.normal(jax.random.key(0), labels.shape)  # each position has its own
    view = program(CAUSAL_LM, capacity).view(TREE, None)
    hidden = view.hidden(micro)

    def by_view(hidden, head):
        with_head = dataclasses.replace(view, tree={**TREE, "embed": head})
        return jnp.sum(weights * with_head.log_probs(hidden, labels))

    def by_logits(hidden, head):
        full = dataclasses.replace(view, tree={**TREE, "embed": head}).logits(hidden)
        picked = jnp.take_along_axis(
            jax.nn.log_softmax(full), jnp.maximum(labels, 0)[..., None], axis=-1
        )[..., 0]
        return jnp.sum(weights * jnp.where(labels == IGNORED, 0.0, picked))

    arguments = (0, 1) if trained else (0,)
    found, expected = (
        jax.jit(jax.value_and_grad(each, argnums=arguments))(hidden, TREE["embed"])
        for each in (by_view, by_logits)
    )
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not view.log_probs(hidden, labels)[labels == IGNORED].any()


def test_too_small_a_capacity_makes_every_log_probability_nan():
    micro = {name: jnp.asarray(array[0]) for name, array in BATCH.items()}
    view = program(CAUSAL_LM, int((micro["labels"] != IGNORED).sum()) - 1).view(TREE, None)
    assert np.isnan(view.log_probs(view.hidden(micro), jnp.asarray(micro["labels"]))).all()


def test_a_step_that_is_not_finite_changes_nothing_but_the_number_of_the_step():
    def maybe_not_finite(view, micro):
        loss, count = view.nll(view.hidden(micro), micro["labels"])
        return {"loss": (loss * jnp.where(micro["is_broken"].any(), jnp.nan, 1.0), count)}

    objective = Objective({**CAUSAL_LM.arrays, "is_broken": "a b"}, maybe_not_finite)
    trainable, frozen = tiny.split(TREE)
    hyper = optimizer.hyper_of(TrainConfig(output_dir="run"), 10)
    step = steps.make_train_step(program(objective), make_optimizer, hyper, trainable)
    state = states.init_state(tiny.placed(trainable, MESH), {}, hyper, make_optimizer, MESH)
    is_whole = np.zeros(BATCH["row_ids"].shape, np.int32)
    state, metrics = step(state, frozen, {**BATCH, "is_broken": is_whole}, 0)
    assert not metrics.is_skipped
    before = jax.tree.map(np.array, state)
    is_broken = is_whole.copy()
    is_broken[1, 0] = 1
    state, metrics = step(state, frozen, {**BATCH, "is_broken": is_broken}, 0)
    assert metrics.is_skipped
    assert int(state.step) == 2
    for name in ("trainable", "opt_state"):
        same = jax.tree.map(
            np.array_equal, getattr(before, name), jax.tree.map(np.array, getattr(state, name))
        )
        assert all(jax.tree.leaves(same)), name
