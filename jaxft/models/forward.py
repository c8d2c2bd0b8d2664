"""The functional interface of the network: pure functions of a parameter tree.

`hidden_states` and `head_logits` are for training and evaluation, `empty_cache` and `extend` for
generation. Each binds the tree to the modules at trace time, which costs nothing at run time.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int32, UInt32

from jaxft.models import adapted, dropout, embedding, linear, rope
from jaxft.models import block as blocks
from jaxft.models.attention.layout import Slots, WholeRows
from jaxft.models.bind import bind
from jaxft.models.decoder import Fold, Kept
from jaxft.models.layers import Context
from jaxft.models.network import EMBED, HEAD, OUTSIDE, Group, Layer, Network
from jaxft.models.spec import ModelSpec, Rope
from jaxft.parallel import rules


class Hidden(NamedTuple):
    """The input of the head.

    Attributes:
        states: The normed hidden states of the last layer.
        seeds: One hash per token, from `dropout.token_seeds` in training, because an adapter on
            the head may have dropout. `None` means no dropout.
    """

    states: Float[Array, "b t d"]
    seeds: UInt32[Array, "b t"] | None


def hidden_states(
    network: Network,
    tree: Mapping[str, Any],
    input_ids: Int32[Array, "b t"],
    segment_ids: Int32[Array, "b t"],
    positions: Int32[Array, "b t"],
    *,
    mesh: Mesh,
    dtype: Any,
    dropout_seeds: UInt32[Array, "b t"] | None = None,
    remat: bool = False,
) -> Float[Array, "b t d"]:
    """Return the normed hidden states that the head is applied to.

    Args:
        network: The network to which `tree` is bound.
        tree: All leaves, frozen and trained.
        input_ids: Tokens; padding may have any id.
        segment_ids: 1, 2, ... for the texts packed in a batch row, 0 for padding.
        positions: The position of each token within its own text.
        mesh: The devices of the arrays.
        dtype: The dtype of activations and matrix products.
        dropout_seeds: From `dropout.token_seeds` in training; `None` means no dropout.
        remat: Keep only each period's input for the backward pass and compute the rest again.

    Raises:
        WeightsError: If the tree does not fit the network.
    """
    lengths = rope.text_lengths(positions, segment_ids)
    rotations = _rotations(network.spec, positions, lengths)
    context = Context(mesh, positions, rotations, WholeRows(segment_ids), dropout_seeds)
    return bind(network, tree)(input_ids, context, dtype=dtype, remat=remat)


def fold_inputs(
    network: Network,
    tree: Mapping[str, Any],
    kept: Kept,
    fold: Fold,
    input_ids: Int32[Array, "b t"],
    segment_ids: Int32[Array, "b t"],
    positions: Int32[Array, "b t"],
    *,
    mesh: Mesh,
    dtype: Any,
) -> Kept:
    """Run whole batch rows, and return the summaries of modules' inputs updated with them.

    Args:
        network: The network to which `tree` is bound.
        tree: All leaves.
        kept: The summaries so far, in the form of `Decoder.fold_inputs`.
        fold: Returns the new summary of a module, given the old one and its input [b t i].
        input_ids: As in `hidden_states`.
        segment_ids: As in `hidden_states`.
        positions: As in `hidden_states`.
        mesh: The devices of the arrays.
        dtype: The dtype of activations and matrix products.

    Raises:
        WeightsError: If the tree does not fit the network.
    """
    rotations = _rotations(network.spec, positions, rope.text_lengths(positions, segment_ids))
    context = Context(mesh, positions, rotations, WholeRows(segment_ids), None)
    return bind(network, tree).fold_inputs(input_ids, context, kept, fold, dtype=dtype)


def _rotations(
    spec: ModelSpec, positions: Int32[Array, "b t"], lengths: Int32[Array, "b t"]
) -> dict[Rope, rope.Angles]:
    """Return the cosine and sine of the positions, for every rotary embedding of the layers."""
    in_use = {block.rope: None for block in spec.blocks if block.rope is not None}
    return {each: rope.angles(each, positions, lengths) for each in in_use}


def head_leaves(network: Network, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves that `head_logits` needs, by path."""
    leaves = {f"head/{name}": leaf for name, leaf in tree.get("head", {}).items()}
    if not network.has_own_head:
        leaves["embed/kernel"] = tree[EMBED]["kernel"]
    if network.head_follows:
        shared = ("lora_a", "lora_b", "rows")
        leaves |= {f"embed/{name}": tree[EMBED][name] for name in shared if name in tree[EMBED]}
    return leaves


def head_weight(network: Network, mesh: Mesh) -> tuple[str, linear.Materialise]:
    """Return the path of the head's weight, and the function that makes it a matrix [in, out]."""
    module = HEAD if network.has_own_head else EMBED
    gather = rules.gather(mesh, module)
    return f"{module}/kernel", gather if network.has_own_head else _Transposed(gather)


def head_logits(
    network: Network,
    mesh: Mesh,
    leaves: Mapping[str, Any],
    hidden: Float[Array, "b t d"],
    seeds: UInt32[Array, "b t"] | None,
) -> Float[Array, "b t v"]:
    """Return float32 logits.

    Args:
        network: The network, for its head.
        mesh: The devices of the arrays.
        leaves: The leaves that `head_leaves` selects.
        hidden: The normed hidden states, as in `Hidden`.
        seeds: One hash per token for dropout before the head's adapter, as in `Hidden`.
    """
    path, materialise = head_weight(network, mesh)
    kernels = adapted.Kernels(
        lambda x: [linear.product(x, leaves[path], materialise, jnp.float32)],
        lambda: [materialise(leaves[path], jnp.float32)],
    )
    products = kernels.products(hidden)
    logits = products[0]
    if network.head_rows is not None:
        owner, rows = network.head_rows
        logits = embedding.with_columns(logits, hidden, rows, leaves[f"{owner}/rows"])
    adapter = dict(network.outer_adapters).get(HEAD)
    if adapter is not None:
        at = {part.name: f"head/{part.name}" for part in adapter.parts}
        if network.ties_adapters:  # A and B are exchanged
            at |= {"lora_a": "embed/lora_b", "lora_b": "embed/lora_a"}
        own = {name: leaves[place] for name, place in at.items()}
        if seeds is not None:
            seeds = dropout.module_seeds(seeds, OUTSIDE, HEAD)
        logits = logits + adapted.added(adapter, own, kernels, hidden, products, seeds)
    spec = network.spec
    if spec.head_bias:
        logits = logits + leaves["head/bias"].astype(jnp.float32)[None, None, :]
    if spec.logit_scale != 1.0:
        logits = logits * spec.logit_scale
    if spec.logit_softcap is not None:
        logits = spec.logit_softcap * jnp.tanh(logits / spec.logit_softcap)
    return logits


def logits(
    network: Network,
    tree: Mapping[str, Any],
    input_ids: Int32[Array, "b t"],
    segment_ids: Int32[Array, "b t"],
    positions: Int32[Array, "b t"],
    *,
    mesh: Mesh,
    dtype: Any,
) -> Float[Array, "b t v"]:
    """Return float32 logits of whole batch rows; the arguments are those of `hidden_states`."""
    hidden = hidden_states(network, tree, input_ids, segment_ids, positions, mesh=mesh, dtype=dtype)
    return head_logits(network, mesh, head_leaves(network, tree), hidden, None)


@dataclasses.dataclass(frozen=True)
class _Transposed:
    """The embedding table used as a head: gathered, then transposed."""

    gather: rules.Gather

    def __call__(self, leaf: jax.Array, dtype: Any) -> jax.Array:
        return self.gather(leaf, dtype).T


class Cache(NamedTuple):
    """The states of all layers after the tokens so far.

    Attributes:
        layers: The states, by group and by position of the group's period: a tree as from
            `block.empty_state`, with the group's layers stacked on dimension 0.
        valid: bool [b s], whether each slot holds a token (not padding).
        length: int32, the number of filled slots, the same for every batch row.
        next_position: int32 [b], the position of each batch row's next token.
    """

    layers: tuple[tuple[Any, ...], ...]
    valid: Bool[Array, "b s"]
    length: Int32[Array, ""]
    next_position: Int32[Array, " b"]


def empty_cache(network: Network, batch: int, slots: int, dtype: Any) -> Cache:
    """Return an empty cache with room for `slots` tokens in each of `batch` batch rows."""

    def stacked(group: Group, layer: Layer) -> Any:
        state = blocks.empty_state(network.spec, layer.block, batch, slots, dtype)
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (group.repeats, *leaf.shape)), state
        )

    layers = tuple(
        tuple(stacked(group, layer) for layer in group.period) for group in network.groups
    )
    no_position = jnp.zeros((batch,), jnp.int32)
    return Cache(layers, jnp.zeros((batch, slots), bool), jnp.int32(0), no_position)


def extend(
    network: Network,
    tree: Mapping[str, Any],
    cache: Cache,
    input_ids: Int32[Array, "b t"],
    valid: Bool[Array, "b t"],
    lengths: Int32[Array, " b"],
    *,
    mesh: Mesh,
    dtype: Any,
) -> tuple[Float[Array, "b t d"], Cache]:
    """Run new tokens after those in the cache; return hidden states and the longer cache.

    Padding must be to the left of a batch row's first tokens, so that the tokens of every batch row
    are contiguous in the cache and windows can be measured in slots. The cache is updated in place
    if the caller donates it.

    Args:
        network: The network to which `tree` is bound.
        tree: All leaves.
        cache: The tokens so far; it must have `t` free slots.
        input_ids: The new tokens.
        valid: Which new tokens are not padding.
        lengths: The length of each batch row's text, on which a rotary embedding may depend. For a
            prompt that is read in parts, it counts all of the prompt's tokens.
        mesh: The devices of the arrays.
        dtype: The dtype of activations and matrix products.
    """
    positions = cache.next_position[:, None] + jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1
    positions = jnp.maximum(positions, 0)  # padding on the left would have -1
    of_each = jnp.broadcast_to(lengths[:, None], positions.shape)
    rotations = _rotations(network.spec, positions, of_each)
    seen = jax.lax.dynamic_update_slice_in_dim(cache.valid, valid, cache.length, axis=1)
    layout = _slots(seen, cache.length, valid.shape[1])
    context = Context(mesh, positions, rotations, layout, None)
    hidden, layers = bind(network, tree).extend(input_ids, context, cache.layers, dtype=dtype)
    return hidden, Cache(
        layers,
        seen,
        cache.length + jnp.int32(input_ids.shape[1]),
        cache.next_position + jnp.sum(valid, axis=1, dtype=jnp.int32),
    )


def _slots(seen: Bool[Array, "b s"], first: Int32[Array, ""], num_new: int) -> Slots:
    """Return which slots new tokens see.

    Args:
        seen: Which slots hold a token, including the new ones.
        first: The slot of the first new token.
        num_new: The number of new tokens.
    """
    own_slot = first + jnp.arange(num_new, dtype=jnp.int32)
    distance = own_slot[:, None] - jnp.arange(seen.shape[1], dtype=jnp.int32)[None, :]  # [t s]
    return Slots(seen[:, None, :] & (distance >= 0)[None], distance, first)
