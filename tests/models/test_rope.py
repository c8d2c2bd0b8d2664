"""Rotary positions: rotation as complex numbers, and the laws of stretched frequencies."""

import dataclasses
import math

import jax.numpy as jnp
import naive
import numpy as np
import pytest
import tiny

from jaxft.models import rope

PLAIN = tiny.ROPE
LINEAR = dataclasses.replace(PLAIN, scaling="linear", factor=4.0)
LLAMA3 = dataclasses.replace(
    PLAIN,
    scaling="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_positions=8192,
)
RNG = np.random.default_rng(0)
WIDTH = 64
X = jnp.asarray(RNG.standard_normal((2, 5, 3, WIDTH)), jnp.float32)
POSITIONS = jnp.array([[0, 1, 2, 3, 4], [7, 100, 0, 31, 2000]], jnp.int32)


def turned(x, positions, kind=PLAIN):
    return rope.rotate(x, *rope.angles(kind, x.shape[-1], positions))


def test_rotation_is_that_of_complex_numbers():
    expected = naive.rotate(np.asarray(X), POSITIONS, PLAIN.theta)
    # 2,000 positions in float32 leave an angle wrong by some 1e-4.
    np.testing.assert_allclose(turned(X, POSITIONS), expected, atol=1e-3)
    np.testing.assert_allclose(turned(X, POSITIONS)[0], expected[0], atol=1e-6)


def test_position_zero_is_the_identity():
    assert np.array_equal(turned(X, jnp.zeros_like(POSITIONS)), X)


def test_rotation_keeps_lengths():
    np.testing.assert_allclose(
        np.linalg.norm(turned(X, POSITIONS), axis=-1), np.linalg.norm(X, axis=-1), rtol=1e-5
    )


def test_scores_depend_on_the_distance_alone():
    q, k = X[:1], X[1:]
    near = turned(q, POSITIONS[:1]) * turned(k, POSITIONS[:1] + 3)
    far = turned(q, POSITIONS[:1] + 50) * turned(k, POSITIONS[:1] + 53)
    np.testing.assert_allclose(near.sum(-1), far.sum(-1), atol=2e-4)


def test_frequencies_fall_geometrically_from_one():
    found = rope.frequencies(PLAIN, WIDTH)
    assert found.shape == (WIDTH // 2,)
    assert found[0] == 1
    np.testing.assert_allclose(found[1:] / found[:-1], PLAIN.theta ** (-2 / WIDTH), rtol=1e-5)


def test_linear_scaling_divides_positions():
    stretched = turned(X, POSITIONS * 4, LINEAR)
    np.testing.assert_allclose(stretched, turned(X, POSITIONS), atol=2e-3)
    np.testing.assert_allclose(stretched[0], turned(X, POSITIONS)[0], atol=1e-5)


def test_llama3_leaves_short_waves_and_divides_long_ones():
    plain, found = rope.frequencies(PLAIN, WIDTH), rope.frequencies(LLAMA3, WIDTH)
    waves = 2 * math.pi / plain
    short, long = waves < 8192 / 4, waves > 8192 / 1
    assert short.sum() >= 8
    assert long.sum() >= 4
    assert (~short & ~long).sum() >= 2
    np.testing.assert_array_equal(found[short], plain[short])
    np.testing.assert_allclose(found[long], plain[long] / 8, rtol=1e-6)
    between = (found / plain)[~short & ~long]
    assert (between > 1 / 8).all()
    assert (between < 1).all()
    assert (np.diff(between) < 0).all()


def test_llama3_between_is_linear_in_the_number_of_waves_that_fit():
    plain, found = rope.frequencies(PLAIN, WIDTH), rope.frequencies(LLAMA3, WIDTH)
    waves = 8192 * plain / (2 * math.pi)
    between = (waves > 1) & (waves < 4)
    share = (waves[between] - 1) / 3  # 0 at low_freq_factor, 1 at high_freq_factor
    np.testing.assert_allclose((found / plain)[between], share + (1 - share) / 8, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rotation_gives_back_the_dtype_it_got(dtype):
    assert turned(X.astype(dtype), POSITIONS).dtype == dtype
