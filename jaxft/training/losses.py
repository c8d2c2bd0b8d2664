"""The causal language-model loss as (sum, count), without logits for the whole batch.

The head is applied only to supervised positions, a static number of them per data shard, and in
chunks. If no part of the head is trained, the forward pass also computes each chunk's gradient with
respect to the hidden states, while its logits exist, and keeps nothing else. If a part is trained,
the backward pass computes the chunk again. The choice is made when the function is traced, by which
leaves carry a tangent.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int32, UInt32

from jaxft.data.rows.tokenized import IGNORED
from jaxft.models import forward
from jaxft.models.forward import Hidden
from jaxft.models.network import Network
from jaxft.parallel import mesh as meshes

_CHUNK = 512  # positions per chunk, over all shards

Leaves = Mapping[str, Any]


def causal_lm_loss(
    network: Network,
    mesh: Mesh,
    head_leaves: Leaves,
    hidden: Hidden,
    labels: Int32[Array, "b t"],
    capacity: int,
) -> tuple[Float[Array, ""], Int32[Array, ""]]:
    """Return the summed negative log-likelihood in nats, and the number of labels.

    Args:
        network: The network, whose head is used.
        mesh: The devices of the arrays; batch rows are divided over its data shards.
        head_leaves: The leaves of the head, from `forward.head_leaves`.
        hidden: The final hidden states, to which the head is applied.
        labels: The token to predict at each position, already shifted; `IGNORED` for none.
        capacity: At least the largest number of labels in one data shard.

    Returns:
        The sum and the number. The sum is NaN if a shard has more than `capacity` labels, so that a
        wrong capacity can never look like a valid loss.
    """
    token_losses, selected, count = _selected_losses(
        network, mesh, head_leaves, hidden, labels, capacity
    )
    total = jnp.sum(token_losses)
    return jnp.where(jnp.sum(selected >= 0, dtype=jnp.int32) == count, total, jnp.nan), count


def label_log_probs(
    network: Network,
    mesh: Mesh,
    head_leaves: Leaves,
    hidden: Hidden,
    labels: Int32[Array, "b t"],
    capacity: int,
) -> Float[Array, "b t"]:
    """Return the log-probability of each label in nats, and 0 at positions without a label.

    The arguments are those of `causal_lm_loss`. If a shard has more than `capacity` labels, all
    values are NaN.
    """
    token_losses, selected, count = _selected_losses(
        network, mesh, head_leaves, hidden, labels, capacity
    )
    shards, size = token_losses.shape[0], labels.size // token_losses.shape[0]
    # Entries without a position are scattered past the end, where they are dropped.
    places = jnp.where(selected >= 0, selected, size)
    shard = jnp.arange(shards)[:, None]
    spread = jnp.zeros((shards, size)).at[shard, places].set(-token_losses, mode="drop")
    is_complete = jnp.sum(selected >= 0, dtype=jnp.int32) == count
    return jnp.where(is_complete, spread, jnp.nan).reshape(labels.shape)


def _selected_losses(
    network: Network, mesh: Mesh, head_leaves: Leaves, hidden: Hidden, labels: Any, capacity: int
) -> tuple[Float[Array, "p c"], Int32[Array, "p c"], Int32[Array, ""]]:
    """Return the losses of the supervised positions, the positions, and their total number.

    Each of `p` data shards has `c` entries. A position is an index into the shard, or -1 for an
    entry that is not supervised.
    """
    shards = meshes.row_shards(mesh)
    by_shard = NamedSharding(mesh, PartitionSpec(meshes.ROW_AXES))
    states = hidden.states.reshape(shards, -1, hidden.states.shape[-1])
    states = jax.lax.with_sharding_constraint(states, by_shard)
    seeds = None if hidden.seeds is None else hidden.seeds.reshape(shards, -1)
    labels = labels.reshape(shards, -1)
    count = jnp.sum(labels != IGNORED, dtype=jnp.int32)
    capacity = min(capacity, labels.shape[1])
    (states, labels, seeds), places = _select((states, labels, seeds), labels, capacity)
    logits_of = functools.partial(forward.head_logits, network, mesh)
    chunk = max(_CHUNK // shards, 1)
    found = chunked_cross_entropy(states, labels, seeds, dict(head_leaves), logits_of, chunk)
    return found, jnp.where(labels == IGNORED, -1, places), count


def _select(arrays: Any, labels: Any, capacity: int) -> tuple[Any, Any]:
    """Return the arrays at `capacity` positions of each shard, supervised ones first.

    Args:
        arrays: A tuple of arrays [p n ...]; any of them may be `None`.
        labels: The label of each position, [p n].
        capacity: The number of positions to select in each shard.

    Returns:
        The selected entries of each array, [p capacity ...], and their positions.
    """
    if capacity == labels.shape[1]:
        return arrays, jnp.arange(capacity, dtype=jnp.int32)[None, :]
    order = jnp.argsort(labels == IGNORED, axis=1, stable=True)[:, :capacity]

    def picked(array: Any) -> Any:
        places = order.reshape(*order.shape, *(1,) * (array.ndim - 2))
        return jnp.take_along_axis(array, places, axis=1)

    return jax.tree.map(picked, arrays), order.astype(jnp.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def chunked_cross_entropy(
    hidden: Float[Array, "p c d"],
    labels: Int32[Array, "p c"],
    seeds: UInt32[Array, "p c"] | None,
    head_leaves: Leaves,
    logits_of: Callable[[Leaves, Any, Any], jax.Array],
    chunk: int,
) -> Float[Array, "p c"]:
    """Return ``logsumexp(logits) - logits[label]`` at each position, 0 if it has no label.

    Args:
        hidden: The hidden states of the selected positions of each data shard.
        labels: The token to predict at each position, or `IGNORED`.
        seeds: The dropout seed of each position; `None` for no dropout.
        head_leaves: The leaves that `logits_of` reads.
        logits_of: Static; (head leaves, hidden [p c d], seeds) -> float32 logits [p c v].
        chunk: Static; the number of positions per shard whose logits exist at the same time.
    """

    def losses(_: Any, part: Any) -> Any:
        h, label, seed = part
        return None, _losses(head_leaves, h, label, seed, logits_of)

    parts = _parts(hidden, labels, seeds, chunk)
    return _whole(jax.lax.scan(losses, None, parts)[1], labels.shape)


def _fwd(hidden: Any, labels: Any, seeds: Any, head_leaves: Any, logits_of: Any, chunk: int) -> Any:
    trained = {path: leaf.value for path, leaf in head_leaves.items() if leaf.perturbed}
    frozen = {path: leaf.value for path, leaf in head_leaves.items() if not leaf.perturbed}
    arrays = (hidden.value, labels.value, None if seeds is None else seeds.value)
    if trained:
        losses = chunked_cross_entropy(*arrays, {**trained, **frozen}, logits_of, chunk)
        return losses, (*arrays, trained, frozen)

    def losses_and_gradient(_: Any, part: Any) -> Any:
        h, label, seed = part
        losses, pull_back = jax.vjp(lambda h: _losses(frozen, h, label, seed, logits_of), h)
        # The loss of a position depends only on its own hidden state, so one pull-back suffices.
        return None, (losses, pull_back(jnp.ones_like(losses))[0])

    _, (losses, d_parts) = jax.lax.scan(losses_and_gradient, None, _parts(*arrays, chunk))
    d_hidden = _whole(d_parts, hidden.value.shape)
    losses = _whole(losses, labels.value.shape)
    return losses, (d_hidden, None, None, {}, dict.fromkeys(frozen))


def _bwd(logits_of: Any, chunk: int, kept: Any, d_losses: Any) -> Any:
    hidden, labels, seeds, trained, frozen = kept
    if isinstance(d_losses, SymbolicZero):
        return (None,) * 4
    if labels is None:  # `hidden` is then the gradient from the forward pass
        return (hidden * d_losses[..., None]).astype(hidden.dtype), None, None, None

    def accumulate(d_trained: Any, parts: Any) -> Any:
        (h, label, seed), d_part = parts
        _, pull_back = jax.vjp(
            lambda leaves, h: _losses({**leaves, **frozen}, h, label, seed, logits_of), trained, h
        )
        d_leaves, d_h = pull_back(d_part)
        return jax.tree.map(jnp.add, d_trained, d_leaves), d_h

    zeros = jax.tree.map(jnp.zeros_like, trained)
    parts = (_parts(hidden, labels, seeds, chunk), _part(d_losses, chunk, 0.0))
    d_trained, d_parts = jax.lax.scan(accumulate, zeros, parts)
    return _whole(d_parts, hidden.shape), None, None, {**d_trained, **dict.fromkeys(frozen)}


chunked_cross_entropy.defvjp(_fwd, _bwd, symbolic_zeros=True)


def _parts(hidden: Any, labels: Any, seeds: Any, chunk: int) -> tuple[Any, Any, Any]:
    """Cut positions into chunks, [n p s d] and [n p s]; padding has the label `IGNORED`."""
    chunks = None if seeds is None else _part(seeds, chunk, 0)
    return _part(hidden, chunk, 0.0), _part(labels, chunk, IGNORED), chunks


def _part(array: Any, chunk: int, filler: float | int) -> Any:
    """Cut an array [p c ...] into n chunks of equal size, [n p s ...], padded with `filler`."""
    count = -(-array.shape[1] // chunk)
    size = -(-array.shape[1] // count)
    missing = [(0, 0)] * array.ndim
    missing[1] = (0, count * size - array.shape[1])
    filled = jnp.pad(array, missing, constant_values=filler)
    return jnp.moveaxis(filled.reshape(array.shape[0], count, size, *array.shape[2:]), 1, 0)


def _whole(parts: Any, shape: tuple[int, ...]) -> Any:
    """Undo `_part` for an array of `shape`."""
    joined = jnp.moveaxis(parts, 0, 1).reshape(shape[0], -1, *shape[2:])
    return joined[:, : shape[1]]


def _losses(
    leaves: Leaves, hidden: Any, labels: Any, seeds: Any, logits_of: Any
) -> Float[Array, "p s"]:
    logits = logits_of(leaves, hidden, seeds)
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    # By comparison, not by indexing: a gather along a sharded vocabulary would all-gather it.
    is_label = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == labels[..., None]
    label_logit = jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)
    return jnp.where(labels == IGNORED, 0.0, log_sum - label_logit)
