"""The chunked loss against cross-entropy of all the logits, for every kind of head."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest
import tiny

from jaxft import tree as trees
from jaxft.data.rows.tokenized import IGNORED
from jaxft.models import dropout, forward
from jaxft.models.network import OUTSIDE
from jaxft.parallel import mesh as meshes
from jaxft.training import losses

ROWS, LENGTH, WIDTH, VOCABULARY = 4, 300, 64, 112
TIED = tiny.adapted()
UNTIED = tiny.adapted(dataclasses.replace(tiny.SPEC, tied_head=False))
DROPPED = tiny.adapted(dataclasses.replace(tiny.SPEC, tied_head=False), head=True, drops=True)
ADAPTED = tiny.adapted(dataclasses.replace(tiny.SPEC, tied_head=False), head=True)
TIED_ADAPTED = tiny.adapted(head=True)
RNG = np.random.default_rng(0)
HIDDEN = jnp.asarray(RNG.standard_normal((ROWS, LENGTH, WIDTH)), jnp.float32)
LABELS = np.where(
    RNG.random((ROWS, LENGTH)) < np.array([0.02, 0.2, 0.5, 0.9])[:, None],
    RNG.integers(0, VOCABULARY, (ROWS, LENGTH)),
    IGNORED,
).astype(np.int32)
SEEDS = dropout.token_seeds(0, 3, jnp.arange(ROWS), LENGTH)
COUNT = int((LABELS != IGNORED).sum())


def leaves_of(network):
    leaves = forward.head_leaves(network, tiny.random_leaves(network))
    return {path: jnp.asarray(leaf) for path, leaf in leaves.items()}


def full_loss(network, hidden, leaves):
    if "embed/kernel" in leaves:
        logits = hidden @ leaves["embed/kernel"].T
    else:
        logits = hidden @ leaves["head/kernel"]
    if "head/lora_a" in leaves:
        x = hidden
        if network is DROPPED:
            seeds = dropout.module_seeds(SEEDS, OUTSIDE, "head")
            x = dropout.apply(hidden, dropout.threshold(tiny.DROPOUT), seeds)
        logits += tiny.SCALING * (x @ leaves["head/lora_a"].T @ leaves["head/lora_b"])
    log_p = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_p, jnp.maximum(LABELS, 0)[..., None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(LABELS == IGNORED, 0, picked))


def chunked_loss(network, hidden, leaves, capacity=ROWS * LENGTH, mesh=None, labels=LABELS):
    mesh = mesh or tiny.one_device()
    hidden = forward.Hidden(hidden, SEEDS if network is DROPPED else None)
    return losses.causal_lm_loss(network, mesh, leaves, hidden, jnp.asarray(labels), capacity)


def gradients(loss, network, trained, capacity=ROWS * LENGTH):
    """Return the loss and its gradients with respect to hidden states and `trained` leaves."""
    leaves = leaves_of(network)
    frozen = {path: leaf for path, leaf in leaves.items() if path not in trained}

    # The loss is one term of two, so that its cotangent is not 1.
    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def of(hidden, chosen):
        return 0.5 * loss(network, hidden, {**chosen, **frozen}) + jnp.sum(hidden)

    return of(HIDDEN, {path: leaves[path] for path in trained})


def loss_alone(network, hidden, leaves):
    return chunked_loss(network, hidden, leaves, capacity=COUNT)[0]


@pytest.mark.parametrize(
    ("network", "trained"),
    [
        (TIED, ()),
        (UNTIED, ()),
        (TIED, ("embed/kernel",)),
        (UNTIED, ("head/kernel",)),
        (ADAPTED, ("head/lora_a", "head/lora_b")),
        (TIED_ADAPTED, ("head/lora_a", "head/lora_b")),
        (ADAPTED, ("head/kernel", "head/lora_b")),
        (DROPPED, ()),
        (DROPPED, ("head/lora_a", "head/lora_b")),
    ],
    ids=[
        *("tied", "untied", "tied, trained", "trained", "adapted", "tied, adapted", "both"),
        *("dropped, frozen", "dropped"),
    ],
)
def test_value_and_gradients_are_those_of_the_full_logits(network, trained):
    value, (d_hidden, d_leaves) = gradients(loss_alone, network, trained)
    expected, (d_expected, d_expected_leaves) = gradients(full_loss, network, trained)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(d_hidden, d_expected, rtol=1e-5, atol=1e-5)
    assert d_leaves.keys() == d_expected_leaves.keys() == set(trained)
    for path in trained:
        error = np.linalg.norm(d_leaves[path] - d_expected_leaves[path])
        assert error < 1e-5 * np.linalg.norm(d_expected_leaves[path])


def test_count_is_exact_and_not_differentiated():
    _, count = chunked_loss(TIED, HIDDEN, leaves_of(TIED), capacity=COUNT)
    assert (int(count), count.dtype) == (COUNT, jnp.int32)


@pytest.mark.parametrize("chunk", [1, 7, 512, 5000])
def test_any_chunk_gives_the_same_loss(monkeypatch, chunk):
    monkeypatch.setattr(losses, "_CHUNK", chunk)
    leaves, labels = leaves_of(TIED), LABELS[:, :40]
    total, _ = chunked_loss(TIED, HIDDEN[:, :40], leaves, capacity=160, labels=labels)
    logits = np.asarray(HIDDEN[:, :40] @ leaves["embed/kernel"].T)
    picked = np.take_along_axis(logits, np.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    each = np.log(np.exp(logits).sum(-1)) - picked
    np.testing.assert_allclose(total, each[labels != -100].sum(), rtol=1e-6)


def test_a_capacity_too_small_by_one_gives_nan():
    leaves = leaves_of(TIED)
    assert np.isfinite(chunked_loss(TIED, HIDDEN, leaves, capacity=COUNT)[0])
    total, count = chunked_loss(TIED, HIDDEN, leaves, capacity=COUNT - 1)
    assert np.isnan(total)
    assert count == COUNT


def test_capacity_is_that_of_the_fullest_shard():
    mesh = meshes.make_mesh(2, 2, 1)
    fullest = int((LABELS != IGNORED).sum(axis=1).max())
    leaves = leaves_of(TIED)

    @functools.partial(jax.jit, static_argnums=1)
    def loss(hidden, capacity):
        return chunked_loss(TIED, hidden, leaves, capacity, mesh)

    hidden = jax.device_put(HIDDEN, meshes.rows(mesh, axis=0))
    total, count = loss(hidden, fullest)
    assert count == COUNT
    np.testing.assert_allclose(total, full_loss(TIED, HIDDEN, leaves), rtol=1e-6)
    assert np.isnan(loss(hidden, fullest - 1)[0])


def test_no_targets_give_zero_and_zero_gradients():
    labels = np.full_like(LABELS, IGNORED)

    def loss(hidden):
        return chunked_loss(TIED, hidden, leaves_of(TIED), 128, labels=labels)

    (total, count), grads = jax.value_and_grad(loss, has_aux=True)(HIDDEN)
    assert (total, count) == (0, 0)
    assert not grads.any()


@pytest.mark.parametrize("trained", [(), ("embed/kernel",)])
def test_logits_never_exist_for_more_than_a_chunk(monkeypatch, trained):
    monkeypatch.setattr(losses, "_CHUNK", 64)
    leaves = leaves_of(TIED)

    def loss(hidden, chosen):
        return chunked_loss(TIED, hidden, {**leaves, **chosen}, capacity=COUNT)[0]

    chosen = {path: leaves[path] for path in trained}
    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(HIDDEN, chosen).jaxpr
    kernel = {(WIDTH, VOCABULARY), (VOCABULARY, WIDTH)}
    logits = {shape for shape in programs.traced_products(jaxpr) if VOCABULARY in shape} - kernel
    assert logits
    assert all(len(shape) == 2 and shape[0] <= 64 for shape in logits)


def test_a_frozen_head_keeps_nothing_but_the_gradient_of_the_hidden_states():
    leaves = leaves_of(UNTIED)
    pull_back = jax.eval_shape(
        lambda hidden: jax.vjp(lambda h: chunked_loss(UNTIED, h, leaves, 512)[0], hidden)[1],
        HIDDEN,
    )
    kept = [leaf for leaf in jax.tree.leaves(pull_back) if leaf.size > 512 * 2]
    assert [leaf.shape for leaf in kept] == [(1, 512, WIDTH)]


def test_bfloat16_hidden_states_get_a_float32_loss_and_bfloat16_gradients():
    hidden, leaves = HIDDEN.astype(jnp.bfloat16), leaves_of(TIED)
    total, d_hidden = jax.value_and_grad(lambda h: chunked_loss(TIED, h, leaves)[0])(hidden)
    assert (total.dtype, d_hidden.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(total, full_loss(TIED, HIDDEN, leaves), rtol=2e-3)


def test_head_leaves_are_those_that_the_head_reads():
    assert set(leaves_of(TIED)) == {"embed/kernel"}
    assert set(leaves_of(UNTIED)) == {"head/kernel"}
    assert set(leaves_of(TIED_ADAPTED)) == {
        *("embed/kernel", "head/lora_a", "head/lora_b", "head/lora_scaling"),
    }
    assert "embed/kernel" in trees.flatten(tiny.random_leaves(UNTIED))
