"""Four-bit codes that keep the outputs of a matrix close to the original's on real inputs (GPTQ).

Rounding each weight to the nearest code ignores the inputs, though some of their channels are
hundreds of times as large as others. GPTQ rounds the rows of a matrix (one for each input channel)
one after another, and corrects the rows that are not rounded yet for the error of those that are.
It needs the second moments of the inputs, ``H = E[x x^T]``: `include` gathers them, `plan` turns
them into a `RoundingPlan` in float64, and `rounded` rounds a matrix by the plan.

The input channels are cut into spans, and moments between two spans are left out, so the moments
take memory in proportion to the weights. All spans have the same length, so a width that only
short spans divide (4,544 is 71 times 64) gains less.

Source: Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization", section 3, algorithm 1;
its authors' `gptq.py: GPTQ.fasterquant` with `actorder`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from jaxft.errors import WeightsError
from jaxft.models import quantized
from jaxft.models.quantized import Quantized

_MAX_SPAN = 1024
# Added to the diagonal of H, as a share of its mean, so that errors in directions with hardly any
# inputs still count. The value of the reference implementation, `gptq.py: GPTQ.fasterquant`.
_DAMPING = 0.01
# Factors on the scale at which the largest weight of a block gets the largest code. A smaller
# scale clips outliers and is finer elsewhere; a larger one shifts the grid.
_SCALES = np.linspace(0.85, 1.2, 15, dtype=np.float32)


class RoundingPlan(NamedTuple):
    """The order in which to round the rows of a matrix, and how to carry errors to later rows.

    The n spans of s input channels each are independent.

    Attributes:
        order: int32 [n s], the rows of each span in the order of rounding: rows with the largest
            inputs come first, while many rows are left to correct for them; the rows of a block
            stay together.
        carry: float32 [n s s], upper triangular, rows and columns in `order`: U of
            ``H^-1 = U^T U``. An error e in row j is corrected in a later row k by
            ``e U_jk / U_jj``; after that it costs ``(e / U_jj)^2``.
    """

    order: Any
    carry: Any


def empty(num_in: int) -> Float[Array, "n s s"]:
    """Return zero moments for a matrix with `num_in` input channels."""
    block = quantized.block_size(num_in)
    span = max(
        span for span in range(block, num_in + 1, block) if not num_in % span and span <= _MAX_SPAN
    )
    return jnp.zeros((num_in // span, span, span))


def include(
    moments: Float[Array, "n s s"], x: Float[Array, "b t i"], is_counted: Bool[Array, "b t"]
) -> Float[Array, "n s s"]:
    """Return the moments with ``x x^T`` of each counted token added."""
    num_spans, span, _ = moments.shape
    x = jnp.where(is_counted[..., None], x.astype(jnp.float32), 0.0)
    x = x.reshape(-1, num_spans, span)
    return moments + jnp.einsum("kns,knz->nsz", x, x, precision="highest")


def plan(moments: Float[np.ndarray, "n s s"]) -> RoundingPlan:
    """Return the plan for a matrix from the moments of its inputs; only their ratios matter.

    It is computed on the host in float64, because H may have full rank only by its damping.

    Raises:
        WeightsError: The moments are not finite.
    """
    moments = moments.astype(np.float64)
    if not np.isfinite(moments).all():
        raise WeightsError(
            "What a matrix of the model reads in the training rows is not finite.",
            "See whether the model works at all in this dtype; model.calibration_tokens=0 rounds "
            "it without reading.",
        )
    num_spans, span, _ = moments.shape
    # Without inputs, or with zeros only, all input channels count the same.
    mean = np.einsum("nss->", moments) / (num_spans * span) or 1.0
    damped = moments / mean + _DAMPING * np.eye(span)
    order = _order(np.einsum("nss->ns", damped), quantized.block_size(num_spans * span))
    damped = np.take_along_axis(damped, order[:, :, None], 1)
    damped = np.take_along_axis(damped, order[:, None, :], 2)
    carry = np.swapaxes(np.linalg.cholesky(np.linalg.inv(damped)), 1, 2)
    return RoundingPlan(order.astype(np.int32), carry.astype(np.float32))


def _order(importance: Float[np.ndarray, "n s"], block: int) -> Int[np.ndarray, "n s"]:
    """Return the order of rounding: by block, and in a block by row, the most important first."""
    by_block = importance.reshape(len(importance), -1, block)
    rows = np.argsort(-by_block, axis=2, kind="stable")
    blocks = np.argsort(-by_block.sum(2), axis=1, kind="stable")[:, :, None]
    return (np.take_along_axis(rows, blocks, 1) + blocks * block).reshape(importance.shape)


@functools.partial(jax.jit, static_argnums=2)
def rounded(weight: Float[Array, "i o"], plan: RoundingPlan, kind: str) -> Quantized:
    """Return a weight [in, out] in 4 bits.

    Args:
        weight: The original weight.
        plan: The plan for the weight's inputs.
        kind: "nf4" or "int4".
    """
    num_in, num_out = weight.shape
    num_spans, span = plan.order.shape
    block = quantized.block_size(num_in)
    levels, codes_of_levels = quantized.levels(kind)
    of_output = quantized.output_scale(weight.astype(jnp.float32), kind)

    def one_block(carried: Any, at: jax.Array) -> Any:
        weight, codes, blocks = carried
        rows, carry = (_part(x, at * block, block) for x in (weight, plan.carry))
        of_block = _scale(rows, _part(costs, at * block, block), levels, of_output)
        scale = of_block.astype(jnp.float32) * of_output

        def one_row(state: Any, row: jax.Array) -> Any:
            rows, codes, lost = state
            here = _part(rows, row, 1)[:, 0]
            code = quantized.nearest(here / scale, levels)
            ratios = _part(_part(carry, row, 1)[:, 0], at * block, block)
            this = _part(ratios, row, 1)
            error = (here - levels[code] * scale) / this
            is_later = jnp.arange(block) > row
            rows -= jnp.where(is_later, ratios, 0.0)[:, :, None] * error[:, None, :]
            return (rows, _with(codes, code, row), _with(lost, error, row)), None

        start = (rows, jnp.zeros(rows.shape, jnp.int32), jnp.zeros_like(rows))
        (_, new, lost), _ = jax.lax.scan(one_row, start, jnp.arange(block))
        is_later = jnp.arange(span) >= (at + 1) * block
        weight -= jnp.einsum(
            "nbs,nbo->nso", jnp.where(is_later, carry, 0.0), lost, precision="highest"
        )
        codes = jax.lax.dynamic_update_slice_in_dim(codes, new, at * block, 1)
        return (weight, codes, _with(blocks, of_block, at)), None

    costs = jnp.einsum("nss->ns", plan.carry) ** -2
    by_span = weight.astype(jnp.float32).reshape(num_spans, span, num_out)
    by_span = jnp.take_along_axis(by_span, plan.order[:, :, None], axis=1)
    start = (
        by_span,
        jnp.zeros(by_span.shape, jnp.int32),
        jnp.zeros((num_spans, span // block, num_out), quantized.SCALE_TYPE),
    )
    (_, codes, blocks), _ = jax.lax.scan(one_block, start, jnp.arange(span // block))
    codes = codes_of_levels[_put_back(codes, plan.order)].reshape(num_in, num_out)
    blocks = _put_back(blocks, plan.order[:, ::block] // block).reshape(num_in // block, num_out)
    return Quantized(quantized.packed(codes), of_output, blocks, kind)


def _scale(
    rows: Float[Array, "n b o"],
    costs: Float[Array, "n b"],
    levels: Float[Array, "16"],
    of_output: Float[Array, "1 o"],
) -> Float[Array, "n o"]:
    """Return the scale of each block of rows for which rounding costs the least."""
    largest = jnp.max(jnp.abs(rows), axis=1) / levels[-1]

    def cost(factor: jax.Array) -> Float[Array, "n o"]:
        of_block = quantized.block_scale(largest * factor, of_output)
        scale = (of_block.astype(jnp.float32) * of_output)[:, None, :]
        error = levels[quantized.nearest(rows / scale, levels)] * scale - rows
        return jnp.einsum("nb,nbo->no", costs, error**2)

    best = jnp.argmin(jax.lax.map(cost, jnp.asarray(_SCALES)), axis=0)
    best = jnp.asarray(_SCALES)[best]
    return quantized.block_scale(largest * best, of_output)


def _put_back(x: jax.Array, order: Int32[Array, "n s"]) -> jax.Array:
    """Return x [n s o] with the row at i moved to order[i]."""
    return jnp.take_along_axis(x, jnp.argsort(order, axis=1)[:, :, None], axis=1)


def _part(x: jax.Array, start: Any, size: int) -> jax.Array:
    """Return `size` elements of x [n s ...] along dimension 1, from `start` on."""
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)


def _with(x: jax.Array, new: jax.Array, at: jax.Array) -> jax.Array:
    """Return x [n s ...] with `new` [n ...] at index `at` of dimension 1."""
    return jax.lax.dynamic_update_slice_in_dim(x, new[:, None], at, axis=1)
