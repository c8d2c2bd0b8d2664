"""Attention in whole batch rows in plain JAX, for training, which does not keep probabilities.

`causal` processes the queries in static chunks, so that a chunk is multiplied only with the keys
that it can see (half of them on average, fewer with a window). It keeps q, k, v, the output and the
log-sum-exp for its backward pass. Keys and values are not repeated for the query heads that share
them. Scores and softmax are float32.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32

from jaxft.models.attention.layout import WholeRows
from jaxft.models.attention.scores import MASKED, Scores, sum_f32

_MIN_CHUNK = 64  # queries; smaller products do not use the hardware fully
_MAX_CHUNKS = 16  # chunks are unrolled, and compile time grows with their number


def attend(
    scoring: Scores,
    q: Float[Array, "b t g m k"],
    k: Float[Array, "b t g k"],
    v: Float[Array, "b t g k"],
    layout: WholeRows,
    mesh: Mesh,
) -> Float[Array, "b t g m k"]:
    """Attend within whole batch rows; the arguments are those of `attend.attend`."""
    del mesh  # XLA divides these operations over the devices by itself
    return causal(q, k, v, layout.segment_ids, scoring)


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
        q: Queries, grouped by the kv head that they share.
        k: Keys.
        v: Values.
        segment_ids: A position sees only positions of its own segment. Padding is segment 0.
        scoring: How scores are computed from queries and keys.

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
        dv = dv.at[:, keys].add(sum_f32("bgmts,btgmk->bsgk", weights.astype(v.dtype), d_rows))
        d_weights = sum_f32("btgmk,bsgk->bgmts", d_rows, v[:, keys])
        d_scores = weights * (d_weights - delta[..., rows, None]) * scoring.scale
        if scoring.softcap is not None:
            # The derivative of the cap; it is 0 for masked scores, which are far below the cap.
            capped = jnp.maximum(scores, -scoring.softcap) / scoring.softcap
            d_scores = d_scores * (1 - capped**2)
        d_scores = d_scores.astype(q.dtype)
        dq.append(jnp.einsum("bgmts,bsgk->btgmk", d_scores, k[:, keys]))
        dk = dk.at[:, keys].add(sum_f32("bgmts,btgmk->bsgk", d_scores, q[:, rows]))
    return jnp.concatenate(dq, axis=1), dk.astype(k.dtype), dv.astype(v.dtype), None


causal.defvjp(_causal_fwd, _causal_bwd)


def _chunks(length: int, window: int | None) -> Iterator[tuple[slice, slice]]:
    """Yield static (queries, keys) of each chunk; keys go from the window to the diagonal."""
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
    scores = scoring.of_products(sum_f32("btgmk,bsgk->bgmts", q, k), behind)
    seen = behind >= 0
    if scoring.window is not None:
        seen = seen & (behind < scoring.window)
    same = segment_ids[:, rows, None] == segment_ids[:, None, keys]
    return jnp.where((same & seen[None])[:, None, None], scores, MASKED)
