"""The causal language-model loss as (sum, count), without logits for the whole batch.

Only supervised positions are carried to the head, a static number of them per data shard, and
the head is applied in chunks. If nothing of the head is trained, a chunk's gradient with respect
to the hidden states is computed in the forward pass, while its logits are there, and nothing
else is kept; otherwise the chunk is computed again in the backward pass. Which of the two is
chosen at trace time, from what carries a tangent.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int32

from jaxft.models import forward
from jaxft.models.network import Network
from jaxft.parallel import mesh as meshes

IGNORED = -100  # the label of a position that is not supervised, as in transformers
_CHUNK = 512  # positions a chunk, over all shards

Leaves = Mapping[str, Any]


def causal_lm_loss(
    network: Network,
    mesh: Mesh,
    head_leaves: Leaves,
    hidden: Float[Array, "b t d"],
    labels: Int32[Array, "b t"],
    capacity: int,
) -> tuple[Float[Array, ""], Int32[Array, ""]]:
    """Return the summed negative log-likelihood in nats, and the number of targets.

    Args:
        network: The network, for its head.
        mesh: Where the arrays live; rows are divided over its data shards.
        head_leaves: From `forward.head_leaves`.
        hidden: Final hidden states.
        labels: The token to predict at each position, already shifted; `IGNORED` for none.
        capacity: At least the number of targets in any one data shard.

    Returns:
        The sum is NaN if a shard has more than `capacity` targets: a wrong capacity must never
        pass for a loss.
    """
    shards = meshes.row_shards(mesh)
    by_shard = NamedSharding(mesh, PartitionSpec(meshes.ROW_AXES))
    hidden = hidden.reshape(shards, -1, hidden.shape[-1])
    labels = labels.reshape(shards, -1)
    hidden = jax.lax.with_sharding_constraint(hidden, by_shard)
    count = jnp.sum(labels != IGNORED, dtype=jnp.int32)
    hidden, labels = _select(hidden, labels, min(capacity, labels.shape[1]))
    selected = jnp.sum(labels != IGNORED, dtype=jnp.int32)
    logits_of = functools.partial(forward.head_logits, network, mesh)
    chunk = max(_CHUNK // shards, 1)
    total = chunked_cross_entropy(hidden, labels, dict(head_leaves), logits_of, chunk)
    return jnp.where(selected == count, total, jnp.nan), count


def _select(hidden: Any, labels: Any, capacity: int) -> tuple[Any, Any]:
    """Return the first `capacity` positions of each shard, supervised ones first, in order."""
    if capacity == labels.shape[1]:
        return hidden, labels
    order = jnp.argsort(labels == IGNORED, axis=1, stable=True)[:, :capacity]
    picked = jnp.take_along_axis(hidden, order[..., None], axis=1)
    return picked, jnp.take_along_axis(labels, order, axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def chunked_cross_entropy(
    hidden: Float[Array, "p c d"],
    labels: Int32[Array, "p c"],
    head_leaves: Leaves,
    logits_of: Callable[[Leaves, Any], jax.Array],
    chunk: int,
) -> Float[Array, ""]:
    """Return the sum over supervised positions of ``logsumexp(logits) - logits[label]``.

    Args:
        hidden: For each data shard, the positions to predict from.
        labels: The token to predict, or `IGNORED`.
        head_leaves: What `logits_of` reads.
        logits_of: Static function (head leaves, hidden [p c d]) to float32 logits [p c v].
        chunk: Positions of a shard whose logits exist at one time.
    """

    def add(total: Any, part: Any) -> Any:
        h, label = part
        return total + _loss(head_leaves, h, label, logits_of), None

    return jax.lax.scan(add, jnp.float32(0), _parts(hidden, labels, chunk))[0]


def _fwd(hidden: Any, labels: Any, head_leaves: Any, logits_of: Any, chunk: int) -> Any:
    trained = {path: leaf.value for path, leaf in head_leaves.items() if leaf.perturbed}
    frozen = {path: leaf.value for path, leaf in head_leaves.items() if not leaf.perturbed}
    if trained:
        arrays = (hidden.value, labels.value)
        total = chunked_cross_entropy(*arrays, {**trained, **frozen}, logits_of, chunk)
        return total, (*arrays, trained, frozen)

    def loss_and_gradient(total: Any, part: Any) -> Any:
        h, label = part
        loss, pull_back = jax.vjp(lambda h: _loss(frozen, h, label, logits_of), h)
        return total + loss, pull_back(jnp.ones_like(loss))[0]

    parts = _parts(hidden.value, labels.value, chunk)
    total, d_parts = jax.lax.scan(loss_and_gradient, jnp.float32(0), parts)
    return total, (_whole(d_parts, hidden.value.shape), None, {}, dict.fromkeys(frozen))


def _bwd(logits_of: Any, chunk: int, kept: Any, d_total: Any) -> Any:
    hidden, labels, trained, frozen = kept
    if isinstance(d_total, SymbolicZero):
        return None, None, None
    if labels is None:  # `hidden` is then its gradient already
        return (hidden * d_total).astype(hidden.dtype), None, None

    def accumulate(d_trained: Any, part: Any) -> Any:
        h, label = part
        _, pull_back = jax.vjp(
            lambda leaves, h: _loss({**leaves, **frozen}, h, label, logits_of), trained, h
        )
        d_leaves, d_h = pull_back(d_total)
        return jax.tree.map(jnp.add, d_trained, d_leaves), d_h

    zeros = jax.tree.map(jnp.zeros_like, trained)
    parts = _parts(hidden, labels, chunk)
    d_trained, d_parts = jax.lax.scan(accumulate, zeros, parts)
    return _whole(d_parts, hidden.shape), None, {**d_trained, **dict.fromkeys(frozen)}


chunked_cross_entropy.defvjp(_fwd, _bwd, symbolic_zeros=True)


def _parts(hidden: Any, labels: Any, chunk: int) -> Any:
    """Cut positions into chunks, [n p c d] and [n p c], the last one filled up with `IGNORED`."""
    count = -(-hidden.shape[1] // chunk)
    size = -(-hidden.shape[1] // count)
    missing = count * size - hidden.shape[1]
    hidden = jnp.pad(hidden, ((0, 0), (0, missing), (0, 0)))
    labels = jnp.pad(labels, ((0, 0), (0, missing)), constant_values=IGNORED)
    shards, width = hidden.shape[0], hidden.shape[2]
    return (
        jnp.moveaxis(hidden.reshape(shards, count, size, width), 1, 0),
        jnp.moveaxis(labels.reshape(shards, count, size), 1, 0),
    )


def _whole(parts: Any, shape: tuple[int, ...]) -> Any:
    """Undo `_parts` for an array [n p c d]."""
    joined = jnp.moveaxis(parts, 0, 1).reshape(shape[0], -1, shape[2])
    return joined[:, : shape[1]]


def _loss(leaves: Leaves, hidden: Any, labels: Any, logits_of: Any) -> Float[Array, ""]:
    logits = logits_of(leaves, hidden)
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    # By comparison, not by indexing: a gather along a divided vocabulary would collect it.
    is_label = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == labels[..., None]
    label_logit = jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)
    return jnp.sum(jnp.where(labels == IGNORED, 0.0, log_sum - label_logit))
