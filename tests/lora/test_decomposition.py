"""What is taken of one weight: the largest singular vectors, or the first of a QR decomposition."""

import numpy as np
import pytest

from jaxft.lora import decomposition

RANK, SCALING = 5, 3.0
RNG = np.random.default_rng(0)  # which these do not use


def weight(shape, seed=0):
    """Return a matrix whose singular values fall by a fifth from one to the next."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((size, min(shape)))).Q for size in shape)
    return (u * 0.8 ** np.arange(min(shape)) @ v.T).astype(np.float32)


def product(kind, w, seed=0):
    a, b = decomposition.named(kind)(w, RANK, SCALING, np.random.default_rng(seed))
    assert (a.shape, b.shape) == ((RANK, w.shape[1]), (w.shape[0], RANK))
    assert a.dtype == b.dtype == np.float32
    return SCALING * b @ a


def best(w):
    """Return the nearest matrix of the rank (Eckart and Young)."""
    u, s, vh = np.linalg.svd(w.astype(np.float64), full_matrices=False)
    return u[:, :RANK] * s[:RANK] @ vh[:RANK]


SHAPES = [(30, 20), (20, 30), (24, 24)]


@pytest.mark.parametrize("shape", SHAPES)
def test_pissa_takes_the_nearest_matrix_of_its_rank_whatever_the_scaling(shape):
    w = weight(shape)
    np.testing.assert_allclose(product("pissa", w), best(w), atol=2e-6)


def test_pissa_shares_the_singular_values_between_a_and_b():
    a, b = decomposition.named("pissa")(weight((30, 20)), RANK, SCALING, RNG)
    expected = np.diag(0.8 ** np.arange(RANK) / SCALING)
    np.testing.assert_allclose(a @ a.T, expected, atol=1e-6)
    np.testing.assert_allclose(b.T @ b, expected, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_randomised_one_nears_the_exact_one_with_every_iteration(shape):
    w = weight(shape)
    gaps = [np.linalg.norm(product(f"pissa_niter_{n}", w) - best(w)) for n in (0, 1, 4, 30)]
    # Each iteration multiplies the angle by (0.8^2), the square of a ratio of singular values.
    assert gaps[0] > gaps[1] > gaps[2] > gaps[3]
    assert gaps[0] > 0.1
    assert gaps[3] < 1e-5


def test_the_randomised_one_is_a_function_of_its_random_numbers():
    w = weight((30, 20))
    first, again, other = (product("pissa_niter_1", w, seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("shape", SHAPES)
def test_olora_takes_the_first_columns_of_q_and_rows_of_r(shape):
    w = weight(shape)
    a, b = decomposition.named("olora")(w, RANK, SCALING, RNG)
    np.testing.assert_allclose(b.T @ b, np.eye(RANK), atol=1e-6)
    assert np.array_equal(a[:, :RANK], np.triu(a[:, :RANK]))
    # The first columns of W are made of the first columns of Q alone.
    np.testing.assert_allclose(b @ a[:, :RANK], w[:, :RANK], atol=1e-6)
    rest = w - b @ a
    np.testing.assert_allclose(b.T @ rest, 0 * a, atol=1e-6)
