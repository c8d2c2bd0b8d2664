"""The modules that a block is made of, and the context that every one of them is called in.

Dimension letters, the same in shapes and einsums: `b` batch, `t` query position, `s` key
position, `d` model, `h` query heads, `g` kv heads, `m` query heads a kv head, `k` head width,
`f` MLP width, `v` vocabulary, `r` LoRA rank, `n` layers stacked.

Modules say which leaves exist, of what shape, and how they are used. They hold no numerics of
their own choosing: each feature is read from the `ModelSpec`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int32, UInt32

from jaxft.models import attention, dropout, linear, rope
from jaxft.models.network import Adapter, Layer
from jaxft.models.spec import ModelSpec
from jaxft.parallel import rules

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


class Past(NamedTuple):
    """What new tokens see of the keys in the cache followed by their own.

    Attributes:
        visible: bool [b t s], before any window.
        distance: int32 [t s], how many positions each key lies behind.
    """

    visible: Bool[Array, "b t s"]
    distance: Int32[Array, "t s"]


@dataclasses.dataclass(frozen=True)
class Context:
    """What a block needs to know of the tokens it is called on, computed once for all layers.

    Attributes:
        mesh: Where the arrays live.
        positions: int32 [b t], of each token within its own text.
        rotation: For rotary positions their cosine and sine, float32 [b t k/2]; else `None`.
        segment_ids: int32 [b t], 0 in padding.
        dropout_seeds: uint32 [b t] in training, else `None`.
        past: In decoding, what each token sees of the cache and of the new tokens; else `None`.
    """

    mesh: Mesh
    positions: Int32[Array, "b t"]
    rotation: tuple[Float[Array, "b t half"], Float[Array, "b t half"]] | None
    segment_ids: Int32[Array, "b t"]
    dropout_seeds: UInt32[Array, "b t"] | None
    past: Past | None


class Lora(nnx.Module):
    """An adapter: the A and the B of one Hugging Face module, which may be several of ours."""

    def __init__(self, path: str, dims: tuple[int, int], adapter: Adapter | None):
        """Make the leaves; without an adapter there are none.

        Args:
            path: Of the module, in its block ("attn/q") or outside of the layers ("embed_in").
            dims: (in, out).
            adapter: What the network says of this module.
        """
        self.path, self.adapter = path, adapter
        if adapter is not None:
            self.lora_a = nnx.Param(jnp.zeros((adapter.rank, dims[0])))
            self.lora_b = nnx.Param(jnp.zeros((adapter.rank, dims[1])))

    def delta(
        self, x: Float[Array, "b t i"], context: Context, layer: Any
    ) -> Float[Array, "b t o"]:
        """Return what the adapter adds; `layer` is the (traced) index dropout is keyed by."""
        assert self.adapter is not None
        seeds = context.dropout_seeds
        if seeds is not None:
            seeds = dropout.module_seeds(seeds, layer, self.path)
        scaling, rate = self.adapter.scaling, self.adapter.dropout
        out = linear.lora(x, self.lora_a[...], self.lora_b[...], scaling, rate, seeds)
        return out.astype(x.dtype)


class Linear(Lora):
    """``y = x W + bias``, with a LoRA adapter beside it where the network has one."""

    def __init__(
        self, path: str, dims: tuple[int, int], bias: bool, adapter: Adapter | None, rngs: nnx.Rngs
    ):
        """Make the leaves; arguments as of `Lora`."""
        super().__init__(path, dims, adapter)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), dims) * dims[0] ** -0.5)
        if bias:
            self.bias = nnx.Param(jnp.zeros(dims[1]))

    def __call__(
        self, x: Float[Array, "b t i"], context: Context, layer: Any
    ) -> Float[Array, "b t o"]:
        """Apply to activations; `layer` as in `delta`."""
        gather = rules.gather_module(context.mesh, self.path)
        y = linear.product(x, self.kernel[...], gather, x.dtype)
        if hasattr(self, "bias"):
            y = y + self.bias[...].astype(x.dtype)[None, None, :]
        return y if self.adapter is None else y + self.delta(x, context, layer)


class Norm(nnx.Module):
    """RMS norm or layer norm over the last dimension, in float32.

    Source: Zhang and Sennrich 2019, eq. 4; Ba et al. 2016, eq. 4; transformers
    `modeling_llama.py: LlamaRMSNorm`.
    """

    def __init__(self, spec: ModelSpec):
        """Make a scale of ones, and for a layer norm a bias of zeros."""
        self.kind, self.eps = spec.norm, spec.norm_eps
        self.scale = nnx.Param(jnp.ones(spec.model_dim))
        if spec.norm == "layer":
            self.bias = nnx.Param(jnp.zeros(spec.model_dim))

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Normalise the last dimension."""

        # Recomputed in the backward pass: keeping its float32 inside costs more than it saves.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def normalise(x: jax.Array, scale: jax.Array, bias: jax.Array | None) -> jax.Array:
            wide = x.astype(jnp.float32)
            if bias is not None:
                wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
            wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.eps)
            wide = wide * scale.astype(jnp.float32)[None, None, :]
            if bias is not None:
                wide = wide + bias.astype(jnp.float32)[None, None, :]
            return wide.astype(x.dtype)

        return normalise(x, self.scale[...], self.bias[...] if self.kind == "layer" else None)


class Attention(nnx.Module):
    """Grouped-query causal self-attention."""

    def __init__(self, spec: ModelSpec, layer: Layer, rngs: nnx.Rngs):
        """Make the four projections, and the adapter over three of them where they are fused."""
        self.spec, self.window = spec, layer.block.window
        model, width = spec.model_dim, spec.num_heads * spec.head_dim
        kv_width = spec.num_kv_heads * spec.head_dim
        adapters = dict(layer.adapters)

        def projection(name: str, dims: tuple[int, int], bias: bool) -> Linear:
            return Linear(f"attn/{name}", dims, bias, adapters.get(f"attn/{name}"), rngs)

        self.q = projection("q", (model, width), spec.qkv_bias)
        self.k = projection("k", (model, kv_width), spec.qkv_bias)
        self.v = projection("v", (model, kv_width), spec.qkv_bias)
        self.o = projection("o", (width, model), spec.out_bias)
        fused = adapters.get("attn/qkv")
        self.qkv = Lora("attn/qkv", (model, width + 2 * kv_width), fused)

    def _projections(self, x: Float[Array, "b t d"], context: Context, layer: Any) -> Any:
        """Return queries, keys and values, [b t h k] and twice [b t g k]."""
        spec = self.spec
        flat = [module(x, context, layer) for module in (self.q, self.k, self.v)]
        if self.qkv.adapter is not None:
            ends = np.cumsum([part.shape[-1] for part in flat])[:-1]
            deltas = jnp.split(self.qkv.delta(x, context, layer), ends, axis=-1)
            flat = [part + delta for part, delta in zip(flat, deltas, strict=True)]
        q, k, v = (part.reshape(*x.shape[:2], -1, spec.head_dim) for part in flat)
        if context.rotation is not None:
            q, k = rope.rotate(q, *context.rotation), rope.rotate(k, *context.rotation)
        return q, k, v

    def __call__(
        self, x: Float[Array, "b t d"], context: Context, layer: Any, cached_kv: Any
    ) -> tuple[Float[Array, "b t d"], tuple[jax.Array, jax.Array]]:
        """Attend; returns the output and this call's rotated keys and values [b t g k].

        Args:
            x: Activations.
            context: What is known of the tokens.
            layer: Index of the layer.
            cached_kv: Keys and values [b s g k] before these tokens; `None` over whole rows.
        """
        q, k, v = self._projections(x, context, layer)
        # Query heads by the kv head that they share.
        q = q.reshape(*k.shape[:3], -1, k.shape[3])
        scale = self.spec.head_dim**-0.5
        if context.past is None:
            mixed = attention.causal(q, k, v, context.segment_ids, self.window, scale)
        else:
            keys, values = (
                jnp.concatenate([old.astype(new.dtype), new], axis=1)
                for old, new in zip(cached_kv, (k, v), strict=True)
            )
            visible, distance = context.past
            if self.window is not None:
                visible = visible & (distance < self.window)[None]
            mixed = attention.cached(q, keys, values, visible, scale)
        return self.o(mixed.reshape(*x.shape[:2], -1), context, layer), (k, v)


class MLP(nnx.Module):
    """The feed-forward layer, with a gate or without.

    Source: Shazeer 2020, "GLU Variants Improve Transformer", eq. 6, for the gate.
    """

    def __init__(self, spec: ModelSpec, adapters: Mapping[str, Adapter], rngs: nnx.Rngs):
        """Make the projections."""
        self.spec = spec
        wide, narrow = (spec.model_dim, spec.mlp_dim), (spec.mlp_dim, spec.model_dim)
        bias = spec.mlp_bias
        if spec.mlp == "gated":
            self.gate = Linear("mlp/gate", wide, bias, adapters.get("mlp/gate"), rngs)
        self.up = Linear("mlp/up", wide, bias, adapters.get("mlp/up"), rngs)
        self.down = Linear("mlp/down", narrow, bias, adapters.get("mlp/down"), rngs)

    def __call__(
        self, x: Float[Array, "b t d"], context: Context, layer: Any
    ) -> Float[Array, "b t d"]:
        """Apply to activations."""
        activation = ACTIVATIONS[self.spec.activation]

        # Recomputed in the backward pass: a residual of width f for each operand, no more.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def hidden(up: jax.Array, gate: jax.Array | None) -> jax.Array:
            return activation(up) if gate is None else activation(gate) * up

        gate = self.gate(x, context, layer) if self.spec.mlp == "gated" else None
        return self.down(hidden(self.up(x, context, layer), gate), context, layer)


class Block(nnx.Module):
    """One layer: attention and MLP, each added to the residual stream."""

    def __init__(self, spec: ModelSpec, layer: Layer, rngs: nnx.Rngs):
        """Make the layer's modules."""
        self.placement = spec.norm_placement
        self.attn_norm = Norm(spec)
        self.attn = Attention(spec, layer, rngs)
        self.mlp_norm = Norm(spec)
        self.mlp = MLP(spec, dict(layer.adapters), rngs)

    def __call__(
        self, x: Float[Array, "b t d"], context: Context, layer: Any, cached_kv: Any
    ) -> tuple[Float[Array, "b t d"], tuple[jax.Array, jax.Array]]:
        """Apply; `layer` and `cached_kv` as in `Attention`."""
        if self.placement == "pre":
            mixed, kv = self.attn(self.attn_norm(x), context, layer, cached_kv)
            x = x + mixed
            return x + self.mlp(self.mlp_norm(x), context, layer), kv
        mixed, kv = self.attn(x, context, layer, cached_kv)
        x = self.attn_norm(x + mixed)
        return self.mlp_norm(x + self.mlp(x, context, layer)), kv
