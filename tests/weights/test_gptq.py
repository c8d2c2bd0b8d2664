"""GPTQ: the codes of its definition in float64, nearer results than rounding to the nearest."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.models import quantized
from jaxft.weights import gptq

KINDS = pytest.mark.parametrize("kind", ["nf4", "int4"])


def made(num_in, num_out=24, seed=0):
    """Return a weight, and inputs [b t i] that are of one another and of unequal size."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((num_in, num_out)).astype(np.float32) * 0.02
    mix = rng.standard_normal((num_in, num_in)) * np.exp(rng.standard_normal(num_in))
    x = rng.standard_normal((4, 100, num_in)) @ mix
    return weight, x.astype(np.float32)


def moments_of(x, counted=None):
    counted = np.ones(x.shape[:2], bool) if counted is None else counted
    return np.asarray(gptq.include(gptq.empty(x.shape[-1]), jnp.asarray(x), jnp.asarray(counted)))


def rounded(weight, x, kind):
    return gptq.rounded(jnp.asarray(weight), gptq.plan(moments_of(x)), kind)


def factors(found):
    """Return the factors of blocks, float32 [blocks out]."""
    return np.asarray(found.blocks, np.float32) * np.asarray(found.scale)


def by_definition(weight, moments, scales, kind):
    """Round row by row; each time the rows left are moved to the least squares solution."""
    levels = np.asarray(quantized.levels(kind)[0], np.float64)
    weight, h = weight.astype(np.float64), moments.astype(np.float64)
    h = h / np.trace(h) * len(h) + 0.01 * np.eye(len(h))
    block = len(weight) // len(scales)
    sums = np.diag(h).reshape(-1, block).sum(1)
    left = sorted(range(len(weight)), key=lambda row: (-sums[row // block], -h[row, row]))
    done = np.zeros_like(weight)
    while left:
        row = left.pop(0)
        scale = np.asarray(scales[row // block], np.float64)
        choices = levels[:, None] * scale
        done[row] = choices[np.abs(choices - weight[row]).argmin(0), np.arange(weight.shape[1])]
        lost = weight[row] - done[row]
        # min over d of (lost e_row + d)^T H (lost e_row + d), d free in the rows that are left.
        weight[left] += np.linalg.solve(h[np.ix_(left, left)], np.outer(h[left, row], lost))
    return done


@KINDS
@pytest.mark.parametrize("num_in", [64, 192, 88])
def test_codes_are_those_of_the_definition(kind, num_in):
    weight, x = made(num_in)
    found = rounded(weight, x, kind)
    expected = by_definition(weight, moments_of(x)[0], factors(found), kind)
    np.testing.assert_allclose(quantized.dequantize(found), expected, rtol=1e-5, atol=1e-7)


@KINDS
def test_what_inputs_give_changes_less_than_by_rounding_to_the_nearest(kind):
    weight, x = made(192)
    fitted = quantized.dequantize(rounded(weight, x, kind))
    nearest = quantized.dequantize(quantized.quantize(jnp.asarray(weight), kind))

    def change(other):
        return np.linalg.norm(x @ (other - weight))

    assert change(fitted) < 0.7 * change(nearest)
    # New inputs of the same kind, and not those that it was made with, are what counts.
    x = made(192)[1][:2]
    fitted = quantized.dequantize(rounded(weight, made(192)[1][2:], kind))
    assert change(fitted) < 0.8 * change(nearest)


@KINDS
def test_inputs_that_have_nothing_to_do_with_one_another_leave_the_nearest_code(kind):
    weight, _ = made(128)
    alone = np.diag(np.exp(np.random.default_rng(1).standard_normal(128)))[None]
    found = gptq.rounded(jnp.asarray(weight), gptq.plan(alone.astype(np.float32)), kind)
    scale = np.repeat(factors(found), 16, axis=0)
    choices = np.asarray(quantized.levels(kind)[0])[:, None, None] * scale
    nearest = np.take_along_axis(choices, np.abs(choices - weight).argmin(0)[None], 0)[0]
    np.testing.assert_allclose(quantized.dequantize(found), nearest, rtol=1e-6)


def test_an_input_that_counts_more_is_rounded_better():
    weight, _ = made(64, num_out=200)
    moments = np.diag(np.where(np.arange(64) < 4, 1000.0, 1.0))[None].astype(np.float32)
    found = gptq.rounded(jnp.asarray(weight), gptq.plan(moments), "nf4")
    error = ((quantized.dequantize(found) - weight) ** 2).mean(axis=1)
    assert error[:4].mean() < 0.5 * error[4:].mean()


def test_spans_are_rounded_each_for_itself(monkeypatch):
    weight, x = made(192)
    weight[::64] = 0.1  # the largest weight of every part, by which the parts are scaled alike
    monkeypatch.setattr(gptq, "_MAX_SPAN", 64)
    whole = quantized.dequantize(rounded(weight, x, "nf4"))
    for start in (0, 64, 128):
        part = slice(start, start + 64)
        # Of all the moments: the damping goes by their mean.
        plan = gptq.plan(moments_of(x))
        alone = gptq.RoundingPlan(*(leaf[start // 64][None] for leaf in plan))
        found = gptq.rounded(jnp.asarray(weight[part]), alone, "nf4")
        np.testing.assert_array_equal(quantized.dequantize(found), whole[part])


def test_spans_are_as_wide_as_may_be():
    widths = {64: 64, 576: 576, 1536: 768, 4096: 1024, 11008: 688, 88: 88, 100: 100}
    for num_in, span in widths.items():
        assert gptq.empty(num_in).shape == (num_in // span, span, span)


def test_moments_are_sums_over_the_tokens_that_count():
    x = made(192)[1]
    counted = np.random.default_rng(2).random(x.shape[:2]) < 0.7
    whole = np.einsum("kn,km->nm", *[x[counted].astype(np.float64)] * 2)
    found = moments_of(np.where(counted[..., None], x, np.nan), counted)
    np.testing.assert_allclose(found[0], whole, rtol=1e-4, atol=1e-4 * np.abs(whole).max())
    halves = gptq.include(
        gptq.include(gptq.empty(192), jnp.asarray(x[:2]), jnp.asarray(counted[:2])),
        jnp.asarray(x[2:]),
        jnp.asarray(counted[2:]),
    )
    np.testing.assert_allclose(halves, found, rtol=1e-4, atol=1e-4 * np.abs(whole).max())


@KINDS
def test_nothing_read_and_weights_of_zero_make_numbers(kind):
    weight, x = made(128)
    weight[:, 3], weight[:16] = 0, 0
    for inputs in (x, np.zeros_like(x), np.where(np.arange(128) % 2, x, 0)):
        found = quantized.dequantize(rounded(weight, inputs, kind))
        assert not np.asarray(found[:, 3]).any()
        assert np.linalg.norm(found - weight) < 0.3 * np.linalg.norm(weight)


@KINDS
def test_it_takes_the_same_room(kind):
    weight, x = made(192)
    found, plain = rounded(weight, x, kind), quantized.quantize(jnp.asarray(weight), kind)
    assert found.kind == kind
    for ours, theirs in zip(*map(jax.tree.leaves, (found, plain)), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
