"""The small layers against their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.models.layers import ACTIVATIONS, RMSNorm

X = np.linspace(-4, 4, 60, dtype=np.float32).reshape(1, 4, 15)
ERF = np.vectorize(math.erf)
FORMULAS = {
    "silu": X / (1 + np.exp(-X)),
    "gelu": 0.5 * X * (1 + ERF(X / math.sqrt(2))),
    "gelu_tanh": 0.5 * X * (1 + np.tanh(math.sqrt(2 / math.pi) * (X + 0.044715 * X**3))),
    "relu": np.maximum(X, 0),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_its_formula(name):
    np.testing.assert_allclose(ACTIVATIONS[name](X), FORMULAS[name], atol=2e-6)


def test_norm_gives_unit_mean_square_times_the_scale():
    norm = RMSNorm(15, 0.25)
    norm.scale[...] = jnp.linspace(0.5, 2, 15)
    expected = X / np.sqrt(np.mean(X**2, axis=-1, keepdims=True) + 0.25)
    np.testing.assert_allclose(norm(jnp.asarray(X)), expected * np.linspace(0.5, 2, 15), rtol=1e-5)


def test_norm_computes_in_float32_and_gives_back_the_dtype_it_got():
    norm = RMSNorm(15, 1e-6)
    x = jnp.asarray(X * 300, jnp.bfloat16)
    found = norm(x)
    assert found.dtype == jnp.bfloat16
    exact = norm(x.astype(jnp.float32))
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))


def test_norm_keeps_no_float32_copy_for_the_backward_pass():
    norm = RMSNorm(15, 1e-6)
    x = jnp.asarray(X, jnp.bfloat16)
    pull_back = jax.eval_shape(lambda x: jax.vjp(norm.__call__, x)[1], x)
    kept = [leaf for leaf in jax.tree.leaves(pull_back) if leaf.shape == X.shape]
    assert [leaf.dtype for leaf in kept] == [jnp.bfloat16]
