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
        cos: float32 [b t k/2], with `sin` the rotation of each token's position.
        sin: float32 [b t k/2].
        segment_ids: int32 [b t], 0 in padding.
        dropout_seeds: uint32 [b t] in training, else `None`.
        past: In decoding, what each token sees of the cache and of the new tokens; else `None`.
    """

    mesh: Mesh
    cos: Float[Array, "b t half"]
    sin: Float[Array, "b t half"]
    segment_ids: Int32[Array, "b t"]
    dropout_seeds: UInt32[Array, "b t"] | None
    past: Past | None


class Linear(nnx.Module):
    """``y = x W + bias``, with a LoRA adapter beside it where the network has one."""

    def __init__(
        self, path: str, dims: tuple[int, int], bias: bool, adapter: Adapter | None, rngs: nnx.Rngs
    ):
        """Make the leaves of the module at `path` (within its block, such as "attn/q")."""
        fan_in, fan_out = dims
        self.path, self.adapter = path, adapter
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), dims) * fan_in**-0.5)
        if bias:
            self.bias = nnx.Param(jnp.zeros(fan_out))
        if adapter is not None:
            self.lora_a = nnx.Param(jnp.zeros((adapter.rank, fan_in)))
            self.lora_b = nnx.Param(jnp.zeros((adapter.rank, fan_out)))

    def __call__(
        self, x: Float[Array, "b t i"], context: Context, layer: Any
    ) -> Float[Array, "b t o"]:
        """Apply to activations; `layer` is the (traced) index that dropout is keyed by."""
        gather = rules.gather(context.mesh, f"groups/0/0/{self.path}/kernel")
        y = linear.product(x, self.kernel[...], gather, x.dtype)
        if hasattr(self, "bias"):
            y = y + self.bias[...].astype(x.dtype)[None, None, :]
        if self.adapter is None:
            return y
        seeds = context.dropout_seeds
        if seeds is not None:
            seeds = dropout.module_seeds(seeds, layer, self.path)
        scaling, rate = self.adapter.scaling, self.adapter.dropout
        delta = linear.lora(x, self.lora_a[...], self.lora_b[...], scaling, rate, seeds)
        return y + delta.astype(x.dtype)


class RMSNorm(nnx.Module):
    """Scale to unit root mean square, in float32.

    Source: Zhang and Sennrich 2019, eq. 4; transformers `modeling_llama.py: LlamaRMSNorm`.
    """

    def __init__(self, dim: int, eps: float):
        """Make the scale, of ones."""
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(dim))

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Normalise the last dimension."""

        # Recomputed in the backward pass: keeping its float32 inside costs more than it saves.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def normalise(x: jax.Array, scale: jax.Array) -> jax.Array:
            wide = x.astype(jnp.float32)
            wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.eps)
            return (wide * scale.astype(jnp.float32)[None, None, :]).astype(x.dtype)

        return normalise(x, self.scale[...])


class Attention(nnx.Module):
    """Grouped-query causal self-attention with rotary positions."""

    def __init__(self, spec: ModelSpec, layer: Layer, rngs: nnx.Rngs):
        """Make the four projections."""
        self.spec, self.window = spec, layer.block.window
        model, heads, kv = spec.model_dim, spec.num_heads, spec.num_kv_heads
        adapters = dict(layer.adapters)

        def projection(name: str, dims: tuple[int, int], bias: bool) -> Linear:
            return Linear(f"attn/{name}", dims, bias, adapters.get(f"attn/{name}"), rngs)

        self.q = projection("q", (model, heads * spec.head_dim), spec.qkv_bias)
        self.k = projection("k", (model, kv * spec.head_dim), spec.qkv_bias)
        self.v = projection("v", (model, kv * spec.head_dim), spec.qkv_bias)
        self.o = projection("o", (heads * spec.head_dim, model), spec.out_bias)

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
        spec = self.spec
        (b, t, _), g, k_dim = x.shape, spec.num_kv_heads, spec.head_dim
        q = self.q(x, context, layer).reshape(b, t, spec.num_heads, k_dim)
        k = self.k(x, context, layer).reshape(b, t, g, k_dim)
        v = self.v(x, context, layer).reshape(b, t, g, k_dim)
        q = rope.rotate(q, context.cos, context.sin)
        k = rope.rotate(k, context.cos, context.sin)
        q = q.reshape(b, t, g, spec.num_heads // g, k_dim)
        scale = k_dim**-0.5
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
        return self.o(mixed.reshape(b, t, -1), context, layer), (k, v)


class GatedMLP(nnx.Module):
    """``down(activation(gate(x)) * up(x))``.

    Source: Shazeer 2020, "GLU Variants Improve Transformer", eq. 6.
    """

    def __init__(self, spec: ModelSpec, adapters: Mapping[str, Adapter], rngs: nnx.Rngs):
        """Make the three projections."""
        self.activation = spec.activation
        wide, narrow = (spec.model_dim, spec.mlp_dim), (spec.mlp_dim, spec.model_dim)
        bias = spec.mlp_bias
        self.gate = Linear("mlp/gate", wide, bias, adapters.get("mlp/gate"), rngs)
        self.up = Linear("mlp/up", wide, bias, adapters.get("mlp/up"), rngs)
        self.down = Linear("mlp/down", narrow, bias, adapters.get("mlp/down"), rngs)

    def __call__(
        self, x: Float[Array, "b t d"], context: Context, layer: Any
    ) -> Float[Array, "b t d"]:
        """Apply to activations."""
        activation = ACTIVATIONS[self.activation]

        # Two residuals of width f instead of four.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def gated(gate: jax.Array, up: jax.Array) -> jax.Array:
            return activation(gate) * up

        hidden = gated(self.gate(x, context, layer), self.up(x, context, layer))
        return self.down(hidden, context, layer)


class Block(nnx.Module):
    """One layer: pre-normed attention and MLP, each added to the residual stream."""

    def __init__(self, spec: ModelSpec, layer: Layer, rngs: nnx.Rngs):
        """Make the layer's modules."""
        self.attn_norm = RMSNorm(spec.model_dim, spec.norm_eps)
        self.attn = Attention(spec, layer, rngs)
        self.mlp_norm = RMSNorm(spec.model_dim, spec.norm_eps)
        self.mlp = GatedMLP(spec, dict(layer.adapters), rngs)

    def __call__(
        self, x: Float[Array, "b t d"], context: Context, layer: Any, cached_kv: Any
    ) -> tuple[Float[Array, "b t d"], tuple[jax.Array, jax.Array]]:
        """Apply; `layer` and `cached_kv` as in `Attention`."""
        mixed, kv = self.attn(self.attn_norm(x), context, layer, cached_kv)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x), context, layer), kv
