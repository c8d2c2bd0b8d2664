"""Rotary positions: rotation as complex numbers, and the laws of stretched frequencies."""

import dataclasses
import math

import jax.numpy as jnp
import naive
import numpy as np
import pytest
import tiny

from jaxft.models import rope
from jaxft.models.spec import (
    AlphaScaling,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    YarnScaling,
)

WIDTH = 64
PLAIN = dataclasses.replace(tiny.ROPE, rotary_dim=WIDTH)
LINEAR = dataclasses.replace(PLAIN, scaling=LinearScaling(4.0))
LLAMA3 = dataclasses.replace(PLAIN, scaling=Llama3Scaling(8.0, 1.0, 4.0, 8192))
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((2, 5, 3, WIDTH)), jnp.float32)
POSITIONS = jnp.array([[0, 1, 2, 3, 4], [7, 100, 0, 31, 2000]], jnp.int32)


def turned(x, positions, kind=PLAIN):
    return rope.rotate(x, rope.angles(kind, positions, jnp.ones_like(positions)), kind)


def test_rotation_is_that_of_complex_numbers():
    expected = naive.rotate(np.asarray(X), POSITIONS, PLAIN)
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
    found = rope.frequencies(PLAIN)
    assert found.shape == (WIDTH // 2,)
    assert found[0] == 1
    np.testing.assert_allclose(found[1:] / found[:-1], PLAIN.theta ** (-2 / WIDTH), rtol=1e-5)


def test_linear_scaling_divides_positions():
    stretched = turned(X, POSITIONS * 4, LINEAR)
    np.testing.assert_allclose(stretched, turned(X, POSITIONS), atol=2e-3)
    np.testing.assert_allclose(stretched[0], turned(X, POSITIONS)[0], atol=1e-5)


def test_alpha_keeps_the_highest_frequency_and_divides_the_lowest():
    scaled = rope.frequencies(dataclasses.replace(PLAIN, scaling=AlphaScaling(50.0)))
    share = scaled / rope.frequencies(PLAIN)
    assert share[0] == 1
    np.testing.assert_allclose(share[-1], 1 / 50, rtol=1e-5)
    np.testing.assert_allclose(share[1:] / share[:-1], share[1], rtol=1e-5)


def test_llama3_leaves_short_waves_and_divides_long_ones():
    plain, found = rope.frequencies(PLAIN), rope.frequencies(LLAMA3)
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
    plain, found = rope.frequencies(PLAIN), rope.frequencies(LLAMA3)
    waves = 8192 * plain / (2 * math.pi)
    between = (waves > 1) & (waves < 4)
    share = (waves[between] - 1) / 3  # 0 at low_freq_factor, 1 at high_freq_factor
    np.testing.assert_allclose((found / plain)[between], share + (1 - share) / 8, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rotation_gives_back_the_dtype_it_got(dtype):
    assert turned(X.astype(dtype), POSITIONS).dtype == dtype


@pytest.mark.parametrize("interleaved", [False, True])
def test_only_the_leading_channels_turn(interleaved):
    partial = dataclasses.replace(PLAIN, rotary_dim=24, interleaved=interleaved)
    expected = naive.rotate(np.asarray(X), POSITIONS, partial)
    np.testing.assert_allclose(turned(X, POSITIONS, partial)[0], expected[0], atol=1e-6)
    np.testing.assert_array_equal(turned(X, POSITIONS, partial)[..., 24:], X[..., 24:])


YARN = YarnScaling(8.0, 32.0, 1.0, 4096, is_truncated=False, magnitude=1.25)


def test_yarn_leaves_what_turns_often_divides_what_turns_seldom_and_magnifies():
    kind = dataclasses.replace(PLAIN, scaling=YARN)
    plain, found = rope.frequencies(PLAIN), rope.frequencies(kind)
    turns = 4096 * plain / (2 * math.pi)
    np.testing.assert_array_equal(found[turns > 32], plain[turns > 32])
    np.testing.assert_allclose(found[turns < 1], plain[turns < 1] / 8, rtol=1e-6)
    between = (found / plain)[(turns > 1) & (turns < 32)]
    assert len(between) > 5
    assert (np.diff(between) < 0).all()
    lengths = np.linalg.norm(turned(X, POSITIONS, kind), axis=-1)
    np.testing.assert_allclose(lengths, 1.25 * np.linalg.norm(X, axis=-1), rtol=1e-5)


def test_each_text_of_a_row_takes_the_factors_of_its_own_length():
    half = WIDTH // 2
    long = LongScaling((1.0,) * half, tuple(np.linspace(1, 9, half)), 4, magnitude=1.0)
    kind = dataclasses.replace(PLAIN, scaling=long)
    stretched = dataclasses.replace(
        kind, scaling=dataclasses.replace(long, original_max_positions=0)
    )
    # A text of four tokens, one of five, and padding.
    positions = jnp.array([[0, 1, 2, 3, 0, 1, 2, 3, 4, 0]], jnp.int32)
    segments = jnp.array([[1, 1, 1, 1, 2, 2, 2, 2, 2, 0]], jnp.int32)
    lengths = rope.text_lengths(positions, segments)
    found = rope.angles(kind, positions, lengths)
    for ours, short, far in zip(
        found,
        rope.angles(PLAIN, positions, lengths),
        rope.angles(stretched, positions, lengths),
        strict=True,
    ):
        np.testing.assert_array_equal(ours[:, :4], short[:, :4])
        np.testing.assert_array_equal(ours[:, 4:9], far[:, 4:9])
        assert not np.array_equal(short[:, 4:9], far[:, 4:9])


def test_a_dynamic_base_grows_with_each_text_that_is_longer_than_the_context():
    kind = dataclasses.replace(PLAIN, scaling=DynamicScaling(3.0, 4))
    # A text of four tokens, one of six, and padding: 3 * 6 / 4 - (3 - 1) = 2.5.
    grown = dataclasses.replace(PLAIN, theta=PLAIN.theta * 2.5 ** (WIDTH / (WIDTH - 2)))
    positions = jnp.array([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 0]], jnp.int32)
    segments = jnp.array([[1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0]], jnp.int32)
    lengths = rope.text_lengths(positions, segments)
    found, short, far = (rope.angles(each, positions, lengths) for each in (kind, PLAIN, grown))
    for ours, plain, longer in zip(found, short, far, strict=True):
        np.testing.assert_array_equal(ours[:, :4], plain[:, :4])
        np.testing.assert_allclose(ours[:, 4:10], longer[:, 4:10], atol=2e-6)
        assert not np.allclose(plain[:, 4:10], longer[:, 4:10], atol=1e-3)
