"""Quantized weights: qwix's numbers, two 4-bit codes a byte, the dense product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
import tiny

from jaxft.models import linear, quantized
from jaxft.models.quantized import Quantized
from jaxft.parallel import rules

WEIGHT = np.random.default_rng(0).standard_normal((192, 40)).astype(np.float32) * 0.02
KINDS = pytest.mark.parametrize("kind", ["nf4", "int4", "int8", "fp8"])
# The error of rounding N(0, 0.02) to each kind, over its norm.
ERRORS = {"nf4": 0.077, "int4": 0.081, "int8": 0.0068, "fp8": 0.027}


@KINDS
def test_values_are_near_the_originals(kind):
    found = quantized.dequantize(quantized.quantize(jnp.asarray(WEIGHT), kind))
    error = np.linalg.norm(found - WEIGHT) / np.linalg.norm(WEIGHT)
    assert error == pytest.approx(ERRORS[kind], rel=0.08)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_values_in_8_bits_are_those_of_qwix(kind):
    found = quantized.dequantize(quantized.quantize(jnp.asarray(WEIGHT), kind))
    qtype = {"fp8": jnp.float8_e4m3fn}.get(kind, kind)
    theirs = qwix.quantize(jnp.asarray(WEIGHT), qtype, channelwise_axes=(1,))
    np.testing.assert_array_equal(found, qwix.dequantize(theirs))


@pytest.mark.parametrize("kind", ["nf4", "int4"])
def test_values_in_4_bits_are_the_nearest_of_qwix_by_their_scales(kind):
    made = quantized.quantize(jnp.asarray(WEIGHT), kind)
    all_codes = jnp.arange(16, dtype=jnp.uint8)[:, None]
    if kind == "int4":
        all_codes = (all_codes.astype(jnp.int8) - 8).astype(jnp.int4)
    ones = jnp.ones((1, 1))
    values = np.asarray(qwix.dequantize(qwix.QArray(all_codes, ones, qtype=kind)))
    factor = np.repeat(np.asarray(made.blocks, np.float32) * np.asarray(made.scale), 16, axis=0)
    choices = values[:, :, None] * factor
    nearest = np.take_along_axis(choices, np.abs(choices - WEIGHT).argmin(0)[None], 0)[0]
    np.testing.assert_allclose(quantized.dequantize(made), nearest, rtol=1e-6)


@pytest.mark.parametrize("kind", ["nf4", "int4"])
def test_the_scale_of_a_block_is_its_largest_weight_by_the_largest_value_in_8_bits(kind):
    made = quantized.quantize(jnp.asarray(WEIGHT), kind)
    largest = np.abs(WEIGHT.reshape(12, 16, 40)).max(axis=1) / {"nf4": 1, "int4": 7}[kind]
    factor = np.asarray(made.blocks, np.float32) * np.asarray(made.scale)
    np.testing.assert_allclose(factor, largest, rtol=2**-4)
    assert (np.abs(factor / largest - 1) > 1e-3).any()


@KINDS
def test_two_codes_of_four_bits_share_a_byte(kind):
    made = quantized.quantize(jnp.asarray(WEIGHT), kind)
    assert made.shape == WEIGHT.shape
    bits = 4 if kind in ("nf4", "int4") else 8
    assert made.codes.nbytes == WEIGHT.size * bits // 8
    assert made.scale.shape == (1, 40)
    if bits == 4:
        assert (made.blocks.shape, made.blocks.nbytes) == ((12, 40), 12 * 40)
    else:
        assert made.blocks is None


@KINDS
def test_zeros_stay_zeros_and_sizes_may_differ_a_lot(kind):
    weight = WEIGHT * np.logspace(-6, 6, 40, dtype=np.float32)
    weight[:16] = 0
    weight[:, 3] = 0
    found = np.asarray(quantized.dequantize(quantized.quantize(jnp.asarray(weight), kind)))
    assert not found[:16].any()
    assert not found[:, 3].any()
    errors = np.linalg.norm(found - weight, axis=0)
    assert (errors <= 0.12 * np.linalg.norm(weight, axis=0)).all()


def test_nf4_takes_less_than_30_percent_of_bfloat16():
    made = quantized.quantize(jnp.asarray(WEIGHT), "nf4")
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(made)) < 0.3 * 2 * WEIGHT.size


def test_a_width_that_16_does_not_divide_has_smaller_blocks():
    made = quantized.quantize(jnp.asarray(WEIGHT[:88]), "nf4")
    assert made.blocks.shape == (11, 40)
    error = np.linalg.norm(quantized.dequantize(made) - WEIGHT[:88])
    assert error < 0.1 * np.linalg.norm(WEIGHT[:88])


@KINDS
def test_the_product_and_its_gradient_are_those_of_the_dequantized_matrix(kind):
    made = quantized.quantize(jnp.asarray(WEIGHT), kind)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 5, 192)), jnp.float32)
    stored = quantized.ToMatrix(rules.gather(tiny.one_device(), "attn/q"))

    def of(x, weight):
        return jnp.sum(jnp.sin(linear.product(x, weight, stored, x.dtype)))

    value, gradient = jax.value_and_grad(of)(x, made)
    expected = jax.value_and_grad(of)(x, quantized.dequantize(made))
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-5, atol=1e-6)


def test_the_backward_pass_keeps_the_codes_and_no_matrix():
    made = quantized.quantize(jnp.asarray(WEIGHT), "nf4")
    x = jnp.ones((2, 5, 192))
    stored = quantized.ToMatrix(rules.gather(tiny.one_device(), "attn/q"))

    def of(x):
        return linear.product(x, made, stored, x.dtype)

    pull_back = jax.eval_shape(lambda x: jax.vjp(of, x)[1], x)
    kept = {(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(pull_back)}
    assert not any(shape == WEIGHT.shape for shape, _ in kept)


def test_a_quantized_weight_is_one_leaf_whose_slices_are_quantized_weights():
    stack = [quantized.quantize(jnp.asarray(WEIGHT * n), "nf4") for n in (1, 2, 3)]
    stacked = jax.tree.map(lambda *slices: jnp.stack(slices), *stack)
    assert stacked.shape == (3, *WEIGHT.shape)

    def step(total, weight):
        assert isinstance(weight, Quantized)
        return total + quantized.dequantize(weight), None

    total, _ = jax.lax.scan(step, jnp.zeros(WEIGHT.shape), stacked)
    expected = sum(map(quantized.dequantize, stack))
    np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-7)
