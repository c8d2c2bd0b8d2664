"""The two linear primitives against autodiff of the plain formulas, and what they keep."""

import functools
import itertools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxft.models import dropout, linear

B, T, N, M, R = 2, 7, 12, 20, 3
SCALING, RATE = jnp.float32(1.5), 0.25
RNG = np.random.default_rng(0)


def draw(*shape, dtype="float32"):
    return jnp.asarray(RNG.standard_normal(shape), dtype)


X, W, A, B_UP, DY = draw(B, T, N), draw(N, M), draw(R, N), draw(R, M), draw(B, T, M)
SEEDS = dropout.module_seeds(dropout.token_seeds(0, 0, jnp.arange(B), T), 0, "attn/q")


def cast(weight, dtype):
    return weight.astype(dtype)


def product(x, w):
    return linear.product(x, w, cast, jnp.float32)


def lora(x, a, b, rate=0.0, seeds=None):
    return linear.lora(x, a, b, SCALING, jnp.asarray(dropout.threshold(rate)), seeds)


def plain_lora(x, a, b, rate=0.0, seeds=None):
    dropped = (
        x
        if seeds is None
        else x * (dropout.apply(jnp.ones_like(x), dropout.threshold(rate), seeds))
    )
    return SCALING * ((dropped @ a.T) @ b)


def trained_subsets(count):
    return [s for n in range(1, count + 1) for s in itertools.combinations(range(count), n)]


def pull_back(function, arguments, trained):
    """Return the value and the gradients with respect to the arguments that are `trained`."""

    def of_trained(*some):
        full = list(arguments)
        for index, value in zip(trained, some, strict=True):
            full[index] = value
        return function(*full)

    value, pull = jax.vjp(of_trained, *[arguments[index] for index in trained])
    return value, pull(DY)


@pytest.mark.parametrize("trained", trained_subsets(2))
def test_product_has_the_value_and_gradients_of_the_plain_one(trained):
    value, grads = pull_back(product, (X, W), trained)
    plain, expected = pull_back(jnp.matmul, (X, W), trained)
    for ours, theirs in zip((value, *grads), (plain, *expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trained", trained_subsets(3))
@pytest.mark.parametrize("seeds", [None, SEEDS], ids=["whole", "dropped"])
def test_lora_has_the_value_and_gradients_of_the_plain_one(trained, seeds):
    bound = functools.partial(lora, rate=RATE, seeds=seeds)
    plain = functools.partial(plain_lora, rate=RATE, seeds=seeds)
    value, grads = pull_back(bound, (X, A, B_UP), trained)
    plain_value, expected = pull_back(plain, (X, A, B_UP), trained)
    for ours, theirs in zip((value, *grads), (plain_value, *expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


def test_scaling_is_a_factor_on_the_output_and_on_every_gradient():
    def with_scaling(scaling):
        function = lambda x, a, b: linear.lora(x, a, b, jnp.float32(scaling), None, None)  # noqa: E731
        value, pull = jax.vjp(function, X, A, B_UP)
        return value, *pull(DY)

    for once, thrice in zip(with_scaling(1.0), with_scaling(3.0), strict=True):
        np.testing.assert_allclose(3 * once, thrice, rtol=1e-5, atol=1e-5)


def test_zero_b_gives_exactly_zero():
    assert not lora(X, A, jnp.zeros_like(B_UP), RATE, SEEDS).any()


def test_bfloat16_activations_multiply_float32_adapters_in_one_rounding():
    x = X.astype(jnp.bfloat16)
    exact = plain_lora(x.astype(jnp.float32), A.astype(jnp.bfloat16).astype(jnp.float32), B_UP)
    np.testing.assert_allclose(lora(x, A, B_UP), exact, rtol=1e-5, atol=1e-5)
    grads = pull_back(lora, (x, A, B_UP), (0, 1, 2))[1]
    assert [grad.dtype for grad in grads] == [jnp.bfloat16, jnp.float32, jnp.float32]
    expected = pull_back(plain_lora, (x.astype(jnp.float32), A, B_UP), (0, 1, 2))[1]
    for ours, theirs in zip(grads, expected, strict=True):
        error = np.linalg.norm(ours.astype(jnp.float32) - theirs) / np.linalg.norm(theirs)
        assert error < 1e-2


def kept(function, *trained):
    """Return dtype and shape of the arrays that the backward pass of `function` closes over."""
    pull = jax.eval_shape(lambda *arrays: jax.vjp(function, *arrays)[1], *trained)
    return sorted((str(leaf.dtype), leaf.shape) for leaf in jax.tree.leaves(pull) if leaf.ndim)


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("active", ["float32", "bfloat16"])
def test_a_frozen_weight_is_kept_as_it_is_stored_and_its_input_is_not(active, stored):
    x, w = X.astype(active), W.astype(stored)
    assert kept(lambda x: product(x, w), x) == [(stored, (N, M))]


def test_a_trained_weight_keeps_its_input_in_the_dtype_it_came_in():
    x = X.astype(jnp.bfloat16)
    assert kept(product, x, W) == [("bfloat16", (B, T, N)), ("float32", (N, M))]


@pytest.mark.parametrize("active", ["float32", "bfloat16"])
def test_lora_keeps_its_input_and_inner_product_and_no_dropped_copy(active):
    x = X.astype(active)
    found = kept(functools.partial(lora, rate=RATE, seeds=SEEDS), x, A, B_UP)
    assert found == sorted(
        [
            (active, (B, T, N)),
            ("float32", (B, T, R)),
            ("float32", (R, N)),
            ("float32", (R, M)),
            ("uint32", (B, T)),
        ]
    )


def test_a_frozen_adapter_keeps_neither_its_input_nor_the_inner_product():
    found = kept(lambda x: lora(x, A, B_UP, RATE, SEEDS), X)
    assert found == sorted([("float32", (R, N)), ("float32", (R, M)), ("uint32", (B, T))])


@pytest.mark.parametrize("active", ["float32", "bfloat16"])
def test_less_its_start_an_adapter_that_has_not_moved_gives_exactly_zero(active):
    @jax.jit
    def delta(x, a, b):
        return linear.minus_start(lora(x, a, b), x, a, b, SCALING)

    assert not delta(X.astype(active), A, B_UP).any()


def test_a_start_is_taken_away_whole_where_the_adapter_drops_inputs():
    a0, b0 = draw(R, N), draw(R, M)

    def delta(x, a, b):
        return linear.minus_start(lora(x, a, b, RATE, SEEDS), x, a0, b0, SCALING)

    def plain(x, a, b):
        return plain_lora(x, a, b, RATE, SEEDS) - SCALING * ((x @ a0.T) @ b0)

    value, grads = pull_back(delta, (X, A, B_UP), (0, 1, 2))
    plain_value, expected = pull_back(plain, (X, A, B_UP), (0, 1, 2))
    for ours, theirs in zip((value, *grads), (plain_value, *expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


def test_inside_a_jitted_function_the_weight_is_still_seen_as_frozen():
    # jit and scan hand symbolic zeros on: the input is not kept there either.
    def layers(x, weights):
        return jax.lax.scan(lambda x, w: (product(x, w), None), x, weights)[0]

    weights = draw(3, N, N)
    shapes = kept(jax.jit(lambda x: layers(x, weights)), X)
    assert shapes == [("float32", (3, N, N))]


def test_a_shape_that_is_not_the_annotated_one_is_an_error_in_tests():
    with pytest.raises(jaxtyping.TypeCheckError):
        lora(X, A[:, 1:], B_UP)
