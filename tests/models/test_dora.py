"""DoRA: the norms without the product, PEFT's law under dropout, and what the backward keeps."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from jaxft.models import dora, dropout, layers
from jaxft.models.attention.layout import WholeRows
from jaxft.models.network import Adapter
from jaxft.training import step as steps
from jaxft.training.objective import CAUSAL_LM

B, T, N, M, R, SCALING, RATE = 2, 7, 12, 20, 3, jnp.float32(1.5), 0.25
RNG = np.random.default_rng(0)


def draw(*shape, dtype="float32"):
    return jnp.asarray(RNG.standard_normal(shape), dtype)


X, W, BIAS, A, B_UP, DY = (
    draw(*shape) for shape in [(B, T, N), (N, M), (M,), (R, N), (R, M), (B, T, M)]
)
MAGNITUDE = 1 + 0.3 * draw(M)
TOKENS = dropout.token_seeds(0, 0, jnp.arange(B), T)


def formed_norms(w, a, b):
    return np.linalg.norm(np.asarray(w) + SCALING * np.asarray(a).T @ np.asarray(b), axis=0)


@pytest.mark.parametrize("cuts", [[], [8], [4, 14]])
def test_norms_are_those_of_the_sum_in_one_part_or_several(cuts):
    found = dora.norms(jnp.split(W, cuts, axis=1), A, B_UP, SCALING)
    np.testing.assert_allclose(found, formed_norms(W, A, B_UP), rtol=1e-6)


def test_the_sum_is_not_formed_and_norms_have_no_gradient():
    norms = lambda w, a, b: dora.norms([w], a, b, SCALING)  # noqa: E731
    shapes = {
        variable.aval.shape
        for equation in jax.make_jaxpr(norms)(W, A, B_UP).eqns
        if equation.primitive.name == "dot_general"
        for variable in equation.outvars
    }
    assert shapes == {(R, R), (R, M)}
    grads = jax.grad(lambda *arrays: norms(*arrays).sum(), argnums=(0, 1, 2))(W, A, B_UP)
    assert not any(grad.any() for grad in grads)


def applied(seeds, x, a, b, magnitude, w=W):
    """Apply a linear module of layer 1 with these leaves."""
    adapter = Adapter((R,), bias=False, subtracts_start=False, is_dora=True, drops=True)
    module = layers.Linear("attn/q", (N, M), True, adapter, nnx.Rngs(0))
    leaves = {"kernel": w, "bias": BIAS, "lora_a": a, "lora_b": b, "lora_magnitude": magnitude}
    leaves |= {"lora_scaling": SCALING, "lora_dropout": jnp.asarray(dropout.threshold(RATE))}
    for name, leaf in leaves.items():
        setattr(module, name, nnx.Param(leaf))
    empty = jnp.zeros((B, T), jnp.int32)
    return module(x, layers.Context(tiny.one_device(), empty, {}, WholeRows(empty), seeds), 1)


def law(seeds, x, a, b, magnitude):
    """PEFT's: the base on the input itself, and the change of it on the input that is dropped."""
    scale = magnitude / jax.lax.stop_gradient(jnp.linalg.norm(W + SCALING * a.T @ b, axis=0))
    dropped, bias = x, BIAS[None, None, :]
    if seeds is not None:
        dropped = dropout.apply(
            x, dropout.threshold(RATE), dropout.module_seeds(seeds, 1, "attn/q")
        )
    change, lora = (scale - 1)[None, None, :] * (dropped @ W), SCALING * (dropped @ a.T @ b)
    return x @ W + bias + change + scale[None, None, :] * lora


@pytest.mark.parametrize("seeds", [None, TOKENS], ids=["whole", "dropped"])
def test_output_and_gradients_are_those_of_pefts_law(seeds):
    arguments = (X, A, B_UP, MAGNITUDE)
    found, pull = jax.vjp(functools.partial(applied, seeds), *arguments)
    expected, pull_law = jax.vjp(functools.partial(law, seeds), *arguments)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
    for ours, theirs in zip(pull(DY), pull_law(DY), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=5e-5)
    if seeds is not None:
        without = applied(None, *arguments)
        assert np.abs(found - without).max() > 0.1


def test_at_its_magnitudes_a_module_is_what_it_is_without_dora():
    start = dora.norms([W], A, B_UP, SCALING)
    plain = X @ W + BIAS[None, None, :] + SCALING * (X @ A.T @ B_UP)
    np.testing.assert_allclose(applied(None, X, A, B_UP, start), plain, rtol=2e-5, atol=2e-5)
    base = applied(None, X, A, 0 * B_UP, dora.norms([W], A, 0 * B_UP, SCALING))
    np.testing.assert_allclose(base, X @ W + BIAS[None, None, :], rtol=2e-6, atol=2e-6)


def test_a_row_of_zeros_stays_0_and_finite():
    w, b = (matrix.at[:, 3].set(0.0) for matrix in (W, B_UP))
    found, pull = jax.vjp(functools.partial(applied, None, w=w), X, A, b, jnp.zeros(M))
    np.testing.assert_array_equal(found[..., 3], jnp.broadcast_to(BIAS[3], (B, T)))
    assert all(np.isfinite(grad).all() for grad in pull(DY))


def test_rescaling_keeps_its_input_in_its_dtype():
    y, norms = draw(B, T, M, dtype="bfloat16"), jnp.ones(M)
    pull = jax.eval_shape(lambda *arrays: jax.vjp(dora.rescaled, *arrays, norms)[1], y, MAGNITUDE)
    kept = [leaf for leaf in jax.tree.leaves(pull) if leaf.ndim == 3]
    assert [str(leaf.dtype) for leaf in kept] == ["bfloat16"]


def test_bfloat16_magnitudes_are_not_rounded_to_eight_bits():
    x, w, zero = X.astype(jnp.bfloat16), W.astype(jnp.bfloat16), 0 * B_UP
    start = dora.norms([w.astype(jnp.float32)], A, zero, SCALING)
    # 1.002 is 1 in bfloat16: in one output or another it must show all the same.
    moved, plain = (applied(None, x, A, zero, start * by, w) for by in (1.002, 1.0))
    assert (moved != plain).any()


@functools.cache
def temporary_bytes(is_dora, drops, dtype):
    network = tiny.adapted(
        modules=("attn/q", "attn/v", "attn/o", "mlp/up"), drops=drops, dora=is_dora
    )
    trainable, frozen = tiny.split(tiny.random_leaves(network))
    assert dtype == "float32"
    program = steps.Program(network, tiny.one_device(), dtype, 2 * 13, False, CAUSAL_LM)
    gradients = jax.jit(functools.partial(steps.gradients, program))
    compiled = gradients.lower(trainable, frozen, tiny.make_batch(2, 13), 0, 0).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("drops", [False, True])
def test_no_copy_of_the_weights_is_kept(drops):
    # What each of four modules gives is kept once more, and no matrix: three layers' of them would
    # be 3 * 4 * (64 * 80 + 64 * 40 + 80 * 64 + 64 * 160) bytes.
    activations = 3 * 4 * 2 * 13 * (80 + 40 + 64 + 160)
    added = temporary_bytes(True, drops, "float32") - temporary_bytes(False, drops, "float32")
    one_layer = 4 * (64 * 80 + 64 * 40 + 80 * 64 + 64 * 160)
    assert added < activations + 2 * one_layer
