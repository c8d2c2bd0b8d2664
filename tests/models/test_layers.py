"""The small layers against their formulas."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxft.models.layers import ACTIVATIONS, Norm

X = np.linspace(-4, 4, 60, dtype=np.float32).reshape(1, 4, 15)
ERF = np.vectorize(math.erf)
FORMULAS = {
    "silu": X / (1 + np.exp(-X)),
    "gelu": 0.5 * X * (1 + ERF(X / math.sqrt(2))),
    "gelu_tanh": 0.5 * X * (1 + np.tanh(math.sqrt(2 / math.pi) * (X + 0.044715 * X**3))),
    "relu": np.maximum(X, 0),
}


def make_norm(kind, eps):
    return Norm(dataclasses.replace(tiny.SPEC, model_dim=15, norm=kind, norm_eps=eps))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_its_formula(name):
    np.testing.assert_allclose(ACTIVATIONS[name](X), FORMULAS[name], atol=2e-6)


def test_norm_gives_unit_mean_square_times_the_scale():
    norm = make_norm("rms", 0.25)
    norm.scale[...] = jnp.linspace(0.5, 2, 15)
    expected = X / np.sqrt(np.mean(X**2, axis=-1, keepdims=True) + 0.25)
    np.testing.assert_allclose(norm(jnp.asarray(X)), expected * np.linspace(0.5, 2, 15), rtol=1e-5)


def test_layer_norm_gives_zero_mean_and_unit_variance_times_the_scale_plus_the_bias():
    norm = make_norm("layer", 0.25)
    norm.scale[...], norm.bias[...] = jnp.linspace(0.5, 2, 15), jnp.linspace(-1, 1, 15)
    normed = (X - X.mean(-1, keepdims=True)) / np.sqrt(X.var(-1, keepdims=True) + 0.25)
    expected = normed * np.linspace(0.5, 2, 15) + np.linspace(-1, 1, 15)
    np.testing.assert_allclose(norm(jnp.asarray(X)), expected, rtol=1e-5, atol=1e-6)


KINDS = pytest.mark.parametrize("kind", ["rms", "layer"])


@KINDS
def test_norm_computes_in_float32_and_gives_back_the_dtype_it_got(kind):
    norm = make_norm(kind, 1e-6)
    x = jnp.asarray(X * 300, jnp.bfloat16)
    found = norm(x)
    assert found.dtype == jnp.bfloat16
    exact = norm(x.astype(jnp.float32))
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))


@KINDS
def test_norm_keeps_no_float32_copy_for_the_backward_pass(kind):
    norm = make_norm(kind, 1e-6)
    x = jnp.asarray(X, jnp.bfloat16)
    pull_back = jax.eval_shape(lambda x: jax.vjp(norm.__call__, x)[1], x)
    kept = [leaf for leaf in jax.tree.leaves(pull_back) if leaf.shape == X.shape]
    assert [leaf.dtype for leaf in kept] == [jnp.bfloat16]
