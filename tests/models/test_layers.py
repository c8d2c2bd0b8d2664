"""The small layers against their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.models.activations import ACTIVATIONS, Xielu, xielu
from jaxft.models.layers import Norm
from jaxft.models.spec import NormSpec

X = np.linspace(-4, 4, 60, dtype=np.float32).reshape(1, 4, 15)
ERF = np.vectorize(math.erf)
FORMULAS = {
    "silu": X / (1 + np.exp(-X)),
    "gelu": 0.5 * X * (1 + ERF(X / math.sqrt(2))),
    "gelu_tanh": 0.5 * X * (1 + np.tanh(math.sqrt(2 / math.pi) * (X + 0.044715 * X**3))),
    "relu": np.maximum(X, 0),
    "relu2": np.maximum(X, 0) ** 2,
}


def make_norm(kind, eps, scale="plain"):
    return Norm(NormSpec(kind, eps, scale=scale, bias=kind == "layer"), 15)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_its_formula(name):
    np.testing.assert_allclose(ACTIVATIONS[name](X), FORMULAS[name], atol=2e-6)


def test_the_learned_activation_is_its_formula():
    act = Xielu()
    act.alpha_p[...], act.alpha_n[...] = jnp.full(1, 0.4), jnp.full(1, -0.3)
    p, n = np.log1p(np.exp(0.4)), 0.5 + np.log1p(np.exp(-0.3))
    expected = np.where(X > 0, p * X**2, (np.expm1(np.minimum(X, -1e-6)) - X) * n) + 0.5 * X
    np.testing.assert_allclose(xielu(jnp.asarray(X), *act.numbers()), expected, atol=2e-6)


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


def test_a_scale_may_be_one_plus_what_is_learned_or_none():
    plain, offset, none = (make_norm("rms", 0.25, scale) for scale in ("plain", "offset", "none"))
    np.testing.assert_array_equal(none(jnp.asarray(X)), plain(jnp.asarray(X)))
    np.testing.assert_array_equal(offset(jnp.asarray(X)), plain(jnp.asarray(X)))
    plain.scale[...], offset.scale[...] = jnp.linspace(0.5, 2, 15), jnp.linspace(-0.5, 1, 15)
    np.testing.assert_allclose(offset(jnp.asarray(X)), plain(jnp.asarray(X)), rtol=1e-6)
    assert not hasattr(none, "scale")


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
