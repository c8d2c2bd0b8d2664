"""Causal attention over grouped heads: one primitive for training, one function for decoding.

`causal` walks the queries in static chunks, so that a chunk multiplies only the keys that it can
see (half of them on average, fewer under a window), and keeps q, k, v, the output and the
log-sum-exp for its backward pass, never a probability. Keys and values are not repeated for the
query heads that share them. Scores and softmax are float32.

Dimension letters: `b` batch, `t` query position, `s` key position, `g` kv heads, `m` query heads
a kv head, `k` head width.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from jaxft.models.spec import QueryScaling

_MIN_CHUNK = 64  # queries; smaller products do not fill the machine
_MAX_CHUNKS = 16  # chunks are unrolled, and compile time grows with their number
_MASKED = -1e30  # finite, so that a row without a visible key gives no NaN


@dataclasses.dataclass(frozen=True)
class Scores:
    """How a query and a key make a score: ``softcap(scale * q k - slope * distance)``.

    Attributes:
        window: Number of positions seen, itself included; `None` for all before it.
        scale: Factor on the product.
        softcap: Scores s become ``cap * tanh(s / cap)``; `None` leaves them.
        slopes: For each query head the penalty on distance (ALiBi); `None` for none.
    """

    window: int | None
    scale: float
    softcap: float | None
    slopes: tuple[float, ...] | None


def alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """Return the slope of each head: a geometric series, for powers of two.

    Other counts take the series of the power of two below, then every other term of the next.

    Source: Press et al. 2022; transformers `modeling_bloom.py: _get_alibi_slopes`.
    """
    whole = 2 ** math.floor(math.log2(num_heads))
    base, finer = (2 ** -(2 ** -(math.log2(n) - 3)) for n in (whole, 2 * whole))
    slopes = [base**n for n in range(1, whole + 1)]
    extra = [finer**n for n in range(1, 2 * (num_heads - whole) + 1, 2)]
    return tuple(slopes + extra)


def grown(
    q: Float[Array, "b t h k"], positions: Int32[Array, "b t"], scaling: QueryScaling
) -> Float[Array, "b t h k"]:
    """Multiply queries by the factor of their positions, which is computed in float32."""
    lengths = jnp.floor(positions.astype(jnp.float32) / scaling.length)
    factors = 1 + scaling.beta * jnp.log1p(lengths)
    return q * factors[:, :, None, None].astype(q.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def causal(
    q: Float[Array, "b t g m k"],
    k: Float[Array, "b t g k"],
    v: Float[Array, "b t g k"],
    segment_ids: Int32[Array, "b t"],
    scoring: Scores,
) -> Float[Array, "b t g m k"]:
    """Attend causally within segments.

    Args:
        q: Queries, by the kv head they share.
        k: Keys.
        v: Values.
        segment_ids: A position sees only positions of its own segment. Padding is segment 0.
        scoring: How queries and keys make scores.

    Returns:
        The weighted values, in the dtype of `v`.

    Source: Dao 2023 (FlashAttention-2), algorithms 1 and 2, with one block of keys.
    """
    return _forward(q, k, v, segment_ids, scoring)[0]


def _forward(q: Any, k: Any, v: Any, segment_ids: Any, scoring: Scores) -> Any:
    outputs, log_sums = [], []
    for rows, keys in _chunks(q.shape[1], scoring.window):
        scores = _scores(q[:, rows], k[:, keys], segment_ids, rows, keys, scoring)
        log_sum = jax.nn.logsumexp(scores, axis=-1)  # [b g m t]
        weights = jnp.exp(scores - log_sum[..., None]).astype(v.dtype)
        outputs.append(jnp.einsum("bgmts,bsgk->btgmk", weights, v[:, keys]))
        log_sums.append(log_sum)
    return jnp.concatenate(outputs, axis=1), jnp.concatenate(log_sums, axis=-1)


def _causal_fwd(q: Any, k: Any, v: Any, segment_ids: Any, scoring: Scores) -> Any:
    out, log_sum = _forward(q, k, v, segment_ids, scoring)
    return out, (q, k, v, segment_ids, out, log_sum)


def _causal_bwd(scoring: Scores, kept: Any, d_out: Any) -> Any:
    q, k, v, segment_ids, out, log_sum = kept
    # The row sums of weights * d_weights, without forming either.
    delta = jnp.einsum("btgmk,btgmk->bgmt", out, d_out, preferred_element_type=jnp.float32)
    dq, dk, dv = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for rows, keys in _chunks(q.shape[1], scoring.window):
        scores = _scores(q[:, rows], k[:, keys], segment_ids, rows, keys, scoring)
        weights = jnp.exp(scores - log_sum[..., rows, None])
        d_rows = d_out[:, rows]
        dv = dv.at[:, keys].add(_sum_f32("bgmts,btgmk->bsgk", weights.astype(v.dtype), d_rows))
        d_weights = _sum_f32("btgmk,bsgk->bgmts", d_rows, v[:, keys])
        d_scores = weights * (d_weights - delta[..., rows, None]) * scoring.scale
        if scoring.softcap is not None:
            # The slope of the cap; masked scores, far below it, have none.
            capped = jnp.maximum(scores, -scoring.softcap) / scoring.softcap
            d_scores = d_scores * (1 - capped**2)
        d_scores = d_scores.astype(q.dtype)
        dq.append(jnp.einsum("bgmts,bsgk->btgmk", d_scores, k[:, keys]))
        dk = dk.at[:, keys].add(_sum_f32("bgmts,btgmk->bsgk", d_scores, q[:, rows]))
    return jnp.concatenate(dq, axis=1), dk.astype(k.dtype), dv.astype(v.dtype), None


causal.defvjp(_causal_fwd, _causal_bwd)


def cached(
    q: Float[Array, "b t g m k"],
    keys: Float[Array, "b g s k"],
    values: Float[Array, "b g s k"],
    visible: Bool[Array, "b t s"],
    distance: Int32[Array, "t s"],
    scoring: Scores,
) -> Float[Array, "b t g m k"]:
    """Attend to the keys in the cache; for decoding, where nothing is differentiated.

    Args:
        q: Queries, by the kv head they share.
        keys: Of all slots of the cache, in which those of the new tokens are too.
        values: The same.
        visible: Which keys each query may see, before any window.
        distance: How many positions each key lies behind each query.
        scoring: How queries and keys make scores.
    """
    if scoring.window is not None:
        visible = visible & (distance < scoring.window)[None]
    batch, length, groups, members, width = q.shape
    # Products in the one form that needs no other order of keys or values: XLA on CPUs copies.
    by_head = jnp.moveaxis(q, 1, 3).reshape(batch, groups, members * length, width)
    products = jax.lax.dot_general(
        by_head,
        keys.astype(q.dtype),
        (((3,), (3,)), ((0, 1), (0, 1))),
        preferred_element_type=jnp.float32,
    )
    products = products.reshape(batch, groups, members, length, -1)
    scores = jnp.where(visible[:, None, None], _shaped(products, distance, scoring), _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    weights = weights.reshape(batch, groups, members * length, -1)
    mixed = jax.lax.dot_general(weights, values, (((3,), (2,)), ((0, 1), (0, 1))))
    return jnp.moveaxis(mixed.reshape(batch, groups, members, length, width), 3, 1)


def _chunks(length: int, window: int | None) -> Iterator[tuple[slice, slice]]:
    """Yield each chunk's static (queries, keys), the keys from the window to the diagonal."""
    size = max(_MIN_CHUNK, -(-length // _MAX_CHUNKS))
    if length // size < 4:
        size = max(-(-length // 4), 16)
    for start in range(0, length, size):
        end = min(start + size, length)
        first = 0 if window is None else max(start - window + 1, 0)
        yield slice(start, end), slice(first, end)


def _scores(
    q: Any, k: Any, segment_ids: Any, rows: slice, keys: slice, scoring: Scores
) -> Float[Array, "b g m t s"]:
    row, key = jnp.arange(rows.start, rows.stop), jnp.arange(keys.start, keys.stop)
    behind = row[:, None] - key[None, :]  # how many positions the key lies behind the query
    scores = _shaped(_sum_f32("btgmk,bsgk->bgmts", q, k), behind, scoring)
    seen = behind >= 0
    if scoring.window is not None:
        seen = seen & (behind < scoring.window)
    same = segment_ids[:, rows, None] == segment_ids[:, None, keys]
    return jnp.where((same & seen[None])[:, None, None], scores, _MASKED)


def _shaped(products: Any, distance: Any, scoring: Scores) -> Float[Array, "b g m t s"]:
    """Make scores of products, before masking."""
    scores = products * scoring.scale
    if scoring.slopes is not None:
        _, groups, members, _, _ = products.shape
        slopes = np.asarray(scoring.slopes, np.float32).reshape(groups, members, 1, 1)
        scores = scores - (slopes * distance[None, None].astype(jnp.float32))[None]
    if scoring.softcap is not None:
        scores = scoring.softcap * jnp.tanh(scores / scoring.softcap)
    return scores


def _sum_f32(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)
