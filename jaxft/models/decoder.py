"""The decoder: embedding, groups of scanned blocks, final norm, head.

It is called on whole batch rows for training and evaluation, and by `extend` on new tokens and a
cache for generation. Both return the last hidden states: the head is applied separately
(`forward.head_logits`), because the loss needs it only at positions that are supervised.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int32

from jaxft.leaves import address
from jaxft.models.adapted import Adapted
from jaxft.models.block import Block
from jaxft.models.cache import Cached
from jaxft.models.embedding import EmbeddingTable
from jaxft.models.layers import Context, Linear, Norm
from jaxft.models.network import EMBED, HEAD, OUTSIDE, POSITIONS, Group, Network
from jaxft.models.spec import Learned, Sinusoidal
from jaxft.parallel.mesh import ROW_AXES

Kept = Mapping[str, Mapping[str, Any]]  # a summary of each module's inputs, by block and path
Fold = Callable[[Any, jax.Array], Any]


class Head(Adapted):
    """The leaves of the head: a kernel unless it is tied, a bias, and what tuning adds."""

    def __init__(self, network: Network, rngs: nnx.Rngs):
        """Make the leaves."""
        spec, adapter = network.spec, dict(network.outer_adapters).get(HEAD)
        if network.has_own_head:
            dims = (spec.embed_dim, spec.vocab_size)
            self.kernel = nnx.Param(jax.random.normal(rngs.params(), dims) * dims[0] ** -0.5)
        if spec.head_bias:
            self.bias = nnx.Param(jnp.zeros(spec.vocab_size))
        if adapter is not None:
            # If adapters are tied, all parts but the numbers are the embedding's leaves.
            own = [part for part in adapter.parts if part.role == "number"]
            parts = own if network.ties_adapters else adapter.parts
            self.make_parts(parts, adapter.width, (spec.embed_dim, spec.vocab_size))
        if HEAD in dict(network.rows):
            self.rows = nnx.Param(jnp.zeros((len(dict(network.rows)[HEAD]), spec.embed_dim)))


class Decoder(nnx.Module):
    """A causal language model up to its last hidden state."""

    def __init__(self, network: Network, rngs: nnx.Rngs):
        """Make all leaves; those of a group's blocks are stacked on dimension 0."""
        spec, adapters = network.spec, dict(network.outer_adapters)
        self.network = network
        self.embed = EmbeddingTable(EMBED, (spec.vocab_size, spec.embed_dim), network, rngs)
        if isinstance(spec.positions, Learned):
            dims = (spec.positions.rows, spec.model_dim)
            self.positions = EmbeddingTable(POSITIONS, dims, network, rngs)
        if spec.embed_norm:
            self.embed_norm = Norm(spec.norm_of("embed_norm"), spec.model_dim)
        if spec.embed_dim != spec.model_dim:
            dims = (spec.embed_dim, spec.model_dim)
            self.embed_in = Linear("embed_in", dims, False, adapters.get("embed_in"), rngs)
            self.embed_out = Linear("embed_out", dims[::-1], False, adapters.get("embed_out"), rngs)
        self.groups = nnx.List([_stacked(network, group, rngs) for group in network.groups])
        if spec.final_norm:
            self.final_norm = Norm(spec.norm_of("final_norm"), spec.model_dim)
        self.head = Head(network, rngs)

    def __call__(
        self, input_ids: Int32[Array, "b t"], context: Context, *, dtype: Any, remat: bool
    ) -> Float[Array, "b t e"]:
        """Return the final hidden states of whole batch rows, which are the input of the head."""
        x = self._embedded(input_ids, context, dtype)
        for group, blocks in zip(self.network.groups, self.groups, strict=True):
            x = _run_group(group, blocks, x, context, remat=remat)
        return self._finished(x, context)

    def fold_inputs(
        self,
        input_ids: Int32[Array, "b t"],
        context: Context,
        kept: Kept,
        fold: Fold,
        *,
        dtype: Any,
    ) -> Kept:
        """Run whole batch rows, and return the summaries of modules' inputs updated with them.

        Args:
            input_ids: The tokens.
            context: The context of the tokens.
            kept: The summary of each module's inputs, a tree of arrays, by block ("groups/0/0", or
                "" outside the layers) and path of the module. In the layers, the summaries are
                stacked on dimension 0 like the leaves.
            fold: Returns the new summary for one module in one layer, given the old one and the
                module's input [b t i]; traced once for each position of a period.
            dtype: The dtype of activations and matrix products.
        """
        outer: dict[str, jax.Array] = {}
        context = dataclasses.replace(context, inputs=outer)
        x = self._embedded(input_ids, context, dtype)
        new: dict[str, Any] = {}
        for index, (group, blocks) in enumerate(zip(self.network.groups, self.groups, strict=True)):
            prefixes = [
                address.block_path(index, position) for position in range(len(group.period))
            ]
            before = [kept.get(prefix, {}) for prefix in prefixes]
            x, after = _fold_group(group, blocks, x, context, before, fold)
            new |= dict(zip(prefixes, after, strict=True))
        outer["head"] = self._finished(x, context)
        new[""] = {path: fold(each, outer[path]) for path, each in kept.get("", {}).items()}
        return {prefix: new[prefix] for prefix in kept}

    def extend(
        self, input_ids: Int32[Array, "b t"], context: Context, layers: Any, *, dtype: Any
    ) -> tuple[Float[Array, "b t e"], Any]:
        """Return the hidden states of new tokens, and the layers' states after these tokens.

        Args:
            input_ids: The new tokens.
            context: The context of the new tokens, with the layout `Slots`.
            layers: The layers' states after the earlier tokens, in the form of
                `forward.Cache.layers`, in which they are also returned.
            dtype: The dtype of activations and matrix products.
        """
        x = self._embedded(input_ids, context, dtype)
        new = []
        for group, blocks, before in zip(self.network.groups, self.groups, layers, strict=True):
            x, states = _extend_group(group, blocks, x, context, before)
            new.append(states)
        return self._finished(x, context), tuple(new)

    def _embedded(
        self, input_ids: Int32[Array, "b t"], context: Context, dtype: Any
    ) -> Float[Array, "b t d"]:
        """Return the input of the first layer."""
        spec = self.network.spec
        x = self.embed(input_ids, context.mesh, dtype)
        if spec.embed_scale != 1.0:
            x = x * jnp.asarray(spec.embed_scale, dtype)
        if spec.embed_dim != spec.model_dim:
            x = self.embed_in(x, context, OUTSIDE)
        if isinstance(spec.positions, Learned):
            rows = context.positions + spec.positions.offset
            x = x + self.positions(rows, context.mesh, dtype)
        if isinstance(spec.positions, Sinusoidal):
            x = x + _sinusoids(context.positions + spec.positions.offset, spec.model_dim, dtype)
        return self.embed_norm(x) if spec.embed_norm else x

    def _finished(self, x: Float[Array, "b t d"], context: Context) -> Float[Array, "b t e"]:
        """Return the input of the head."""
        spec = self.network.spec
        if spec.final_norm:
            x = self.final_norm(x)
        return x if spec.embed_dim == spec.model_dim else self.embed_out(x, context, OUTSIDE)


def _sinusoids(positions: Int32[Array, "b t"], width: int, dtype: Any) -> Float[Array, "b t d"]:
    """Return the sines of all frequencies, then the cosines, then a 0 if the width is odd."""
    half = width // 2
    powers = np.exp(np.arange(half, dtype=np.float32) * -(math.log(10_000) / (half - 1)))
    angle = positions[..., None].astype(jnp.float32) * powers[None, None, :]
    waves = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    return jnp.pad(waves, ((0, 0), (0, 0), (0, width % 2))).astype(dtype)


def _stacked(network: Network, group: Group, rngs: nnx.Rngs) -> nnx.List:
    """Create a group's period of blocks `repeats` times, stacked, by mapping the constructor."""

    def construct(key: jax.Array) -> nnx.List:
        keys = nnx.Rngs(key)
        return nnx.List([Block(network.spec, layer, keys) for layer in group.period])

    keys = jax.random.split(rngs.params(), group.repeats)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: construct(jax.random.key(0))))
    return nnx.merge(graphdef, jax.vmap(lambda key: nnx.state(construct(key)))(keys))


def _layer_indices(group: Group) -> jax.Array:
    size = len(group.period)
    first = group.first_layer
    return jnp.arange(first, first + group.repeats * size, dtype=jnp.int32).reshape(-1, size)


def _run_group(group: Group, blocks: nnx.List, x: Any, context: Context, *, remat: bool) -> Any:
    graphdef: Any
    graphdef, state = nnx.split(blocks)
    rows = NamedSharding(context.mesh, PartitionSpec(ROW_AXES))

    def period(x: Any, slices: Any) -> Any:
        leaves, layers = slices
        x = jax.lax.with_sharding_constraint(x, rows)
        for position, block in enumerate(nnx.merge(graphdef, leaves)):
            x, _ = block(x, context, layers[position], None)
        return x, None

    if remat:
        period = jax.checkpoint(period, prevent_cse=False)
    return jax.lax.scan(period, x, (state, _layer_indices(group)))[0]


def _fold_group(
    group: Group, blocks: nnx.List, x: Any, context: Context, kept: list[Any], fold: Fold
) -> tuple[Any, list[Any]]:
    graphdef: Any
    graphdef, state = nnx.split(blocks)
    rows = NamedSharding(context.mesh, PartitionSpec(ROW_AXES))

    def period(x: Any, slices: Any) -> Any:
        leaves, layers, kept = slices
        x = jax.lax.with_sharding_constraint(x, rows)
        new = []
        for position, block in enumerate(nnx.merge(graphdef, leaves)):
            read: dict[str, jax.Array] = {}
            here = dataclasses.replace(context, inputs=read)
            x, _ = block(x, here, layers[position], None)
            new.append({path: fold(each, read[path]) for path, each in kept[position].items()})
        return x, new

    return jax.lax.scan(period, x, (state, _layer_indices(group), kept))


def _extend_group(group: Group, blocks: nnx.List, x: Any, context: Context, before: Any) -> Any:
    graphdef: Any
    graphdef, state = nnx.split(blocks)

    # The states are carried, not sliced and stacked again, so that they are updated in place.
    def period(carried: Any, slices: Any) -> Any:
        x, before = carried
        leaves, layers, index = slices
        after = []
        for position, block in enumerate(nnx.merge(graphdef, leaves)):
            x, states = block(x, context, layers[position], Cached(before[position], index))
            after.append(states)
        return (x, tuple(after)), None

    indices = jnp.arange(group.repeats, dtype=jnp.int32)
    return jax.lax.scan(period, (x, before), (state, _layer_indices(group), indices))[0]
