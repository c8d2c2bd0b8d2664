"""The modules that a block consists of, and the context with which they are called.

Dimension letters, the same in shapes and einsums: `b` batch, `t` query position, `s` key
position, `d` model, `h` query heads, `g` kv heads, `m` query heads per kv head, `k` head width,
`f` MLP width, `v` vocabulary, `r` LoRA rank, `n` layers stacked.

Modules define which leaves exist, their shapes, and how they are used. They choose no numerics
themselves: each feature is read from the `ModelSpec`.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32, UInt32

from jaxft.models import activations, adapted, dropout, linear, quantized, rope
from jaxft.models.adapted import Adapted
from jaxft.models.attention import scores
from jaxft.models.attention.attend import attend
from jaxft.models.attention.layout import Layout, Slots
from jaxft.models.cache import Cached, KeysValues
from jaxft.models.network import Adapter
from jaxft.models.spec import Alibi, AttentionSpec, MLPSpec, ModelSpec, NormSpec, Rope
from jaxft.parallel import rules


@dataclasses.dataclass(frozen=True)
class Context:
    """What a block needs to know about its tokens, computed once for all layers.

    Attributes:
        mesh: The devices of the arrays.
        positions: int32 [b t], the position of each token within its own text.
        rotations: The cosine and sine of the positions, for every rotary embedding in use.
        layout: Which tokens each token sees: within whole batch rows, or in the slots of a cache.
        dropout_seeds: uint32 [b t], one hash per token in training, else `None`.
        inputs: A dict in which linear modules record their inputs, by path; `None` to record
            nothing. The inputs belong to one trace, so the function that sets the dict must also
            read it.
    """

    mesh: Mesh
    positions: Int32[Array, "b t"]
    rotations: Mapping[Rope, rope.Angles]
    layout: Layout
    dropout_seeds: UInt32[Array, "b t"] | None
    inputs: dict[str, jax.Array] | None = None


class Lora(Adapted):
    """The adapter of one Hugging Face module, which may be several modules here."""

    def __init__(self, path: str, dims: tuple[int, int], adapter: Adapter | None):
        """Create the leaves; without an adapter there are none.

        Args:
            path: The module's path, in its block ("attn/q") or outside the layers ("embed_in").
            dims: (in, out) of the module.
            adapter: The adapter that the network has on this module, or `None`.
        """
        self.path, self.adapter = path, adapter
        if adapter is not None:
            self.make_parts(adapter.parts, adapter.width, dims)

    def outputs(
        self, parts: "Sequence[Linear]", x: Float[Array, "b t i"], context: Context, layer: Any
    ) -> list[Float[Array, "b t _"]]:
        """Return the outputs of the adapter's modules, with the adapter's own output added.

        Args:
            parts: The modules; the adapter's output is split between them in this order.
            x: Activations.
            context: The context of the tokens.
            layer: The (traced) index of the layer, from which dropout is derived.
        """
        assert self.adapter is not None
        seeds = context.dropout_seeds
        if seeds is not None:
            seeds = dropout.module_seeds(seeds, layer, self.path)
        kernels = adapted.Kernels(
            lambda x: [part.product(x, context) for part in parts],
            lambda: [part.matrix(context) for part in parts],
        )
        products = kernels.products(x)
        leaves = {part.name: getattr(self, part.name)[...] for part in self.adapter.parts}
        whole = adapted.added(self.adapter, leaves, kernels, x, products, seeds)
        ends = np.cumsum([product.shape[-1] for product in products])[:-1]
        added = jnp.split(whole, ends, axis=-1)
        outputs = [part.biased(y) for part, y in zip(parts, products, strict=True)]
        return [output + part for output, part in zip(outputs, added, strict=True)]


class Linear(Lora):
    """``y = x W + bias``, plus the output of a LoRA adapter if the network has one here."""

    def __init__(
        self, path: str, dims: tuple[int, int], bias: bool, adapter: Adapter | None, rngs: nnx.Rngs
    ):
        """Create the leaves; `path`, `dims` and `adapter` are those of `Lora`."""
        super().__init__(path, dims, adapter)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), dims) * dims[0] ** -0.5)
        if bias:
            self.bias = nnx.Param(jnp.zeros(dims[1]))

    def __call__(
        self, x: Float[Array, "b t i"], context: Context, layer: Any
    ) -> Float[Array, "b t o"]:
        """Apply to activations; the arguments are those of `outputs`."""
        if context.inputs is not None:
            context.inputs[self.path] = x
        if self.adapter is None:
            return self.biased(self.product(x, context))
        return self.outputs([self], x, context, layer)[0]

    def product(self, x: Float[Array, "b t i"], context: Context) -> Float[Array, "b t o"]:
        """Return ``x W``."""
        return linear.product(x, self.kernel.get_value(), self._to_matrix(context), x.dtype)

    def biased(self, y: Float[Array, "b t o"]) -> Float[Array, "b t o"]:
        """Return `y` plus the bias, if there is one."""
        return y + self.bias[...].astype(y.dtype)[None, None, :] if hasattr(self, "bias") else y

    def matrix(self, context: Context) -> Float[Array, "i o"]:
        """Return W, float32."""
        return self._to_matrix(context)(self.kernel.get_value(), jnp.float32)

    def _to_matrix(self, context: Context) -> quantized.ToMatrix:
        return quantized.ToMatrix(rules.gather(context.mesh, self.path))


class Norm(nnx.Module):
    """RMS norm or layer norm over the last dimension, in float32.

    Source: Zhang and Sennrich 2019, eq. 4; Ba et al. 2016, eq. 4; transformers
    `modeling_llama.py: LlamaRMSNorm`; `modeling_gemma.py: GemmaRMSNorm` for the scale "offset".
    """

    def __init__(self, norm: NormSpec, width: int):
        """Create the scale and the bias that the norm has, with values that change nothing."""
        self.norm = norm
        if norm.scale != "none":
            start = jnp.ones if norm.scale == "plain" else jnp.zeros
            self.scale = nnx.Param(start(width))
        if norm.bias:
            self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Normalise the last dimension."""
        norm, shape = self.norm, (1,) * (x.ndim - 1) + (-1,)

        # Recomputed in the backward pass: storing float32 intermediates costs more than it saves.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def normalise(x: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
            wide = x.astype(jnp.float32)
            if norm.kind == "layer":
                wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
            wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + norm.eps)
            if scale is not None:
                factor = scale.astype(jnp.float32).reshape(shape)
                wide = wide * (1 + factor if norm.scale == "offset" else factor)
            if bias is not None:
                wide = wide + bias.astype(jnp.float32).reshape(shape)
            return wide.astype(x.dtype)

        scale = None if norm.scale == "none" else self.scale[...]
        return normalise(x, scale, self.bias[...] if norm.bias else None)


class Attention(nnx.Module):
    """Grouped-query causal self-attention."""

    def __init__(
        self,
        spec: ModelSpec,
        attention: AttentionSpec,
        adapters: Mapping[str, Adapter],
        rngs: nnx.Rngs,
    ):
        """Create the projections, and the adapter of q, k and v if the checkpoint fuses them."""
        self.spec, self.rope = spec, attention.rope
        is_alibi = isinstance(spec.positions, Alibi)
        slopes = scores.alibi_slopes(spec.num_heads) if is_alibi else None
        self.scoring = scores.Scores(attention.window, spec.attn_scale, spec.attn_softcap, slopes)
        model, width = spec.model_dim, spec.num_heads * spec.head_dim
        kv_width = spec.num_kv_heads * spec.head_dim

        def projection(name: str, dims: tuple[int, int], bias: bool) -> Linear:
            return Linear(f"attn/{name}", dims, bias, adapters.get(f"attn/{name}"), rngs)

        self.q = projection("q", (model, width), spec.qkv_bias)
        self.k = projection("k", (model, kv_width), spec.qkv_bias)
        self.v = projection("v", (model, kv_width), spec.qkv_bias)
        self.o = projection("o", (width, model), spec.out_bias)
        fused = adapters.get("attn/qkv")
        self.qkv = Lora("attn/qkv", (model, width + 2 * kv_width), fused)
        if spec.qk_norm != "none":
            widths = (width, kv_width) if spec.qk_norm == "full" else (spec.head_dim,) * 2
            self.q_norm = Norm(spec.norm_of("q_norm"), widths[0])
            self.k_norm = Norm(spec.norm_of("k_norm"), widths[1])
        if spec.attn_gate:
            self.gate = projection("gate", (model, width), False)

    @staticmethod
    def empty_state(
        spec: ModelSpec, attention: AttentionSpec, batch: int, slots: int, dtype: Any
    ) -> KeysValues:
        """Return the layer's state before the first token: empty slots for keys and values."""
        empty = jnp.zeros((batch, spec.num_kv_heads, slots, spec.head_dim), dtype)
        return KeysValues(empty, empty)

    def _projections(self, x: Float[Array, "b t d"], context: Context, layer: Any) -> Any:
        """Return queries [b t h k], keys [b t g k] and values [b t g k]."""
        spec = self.spec
        parts = [self.q, self.k, self.v]
        if self.qkv.adapter is None:
            flat = [part(x, context, layer) for part in parts]
        else:
            flat = self.qkv.outputs(parts, x, context, layer)
        if spec.qk_norm == "full":
            flat = [self.q_norm(flat[0]), self.k_norm(flat[1]), flat[2]]
        q, k, v = (part.reshape(*x.shape[:2], -1, spec.head_dim) for part in flat)
        if spec.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rope is not None:
            turned = context.rotations[self.rope]
            q, k = (rope.rotate(part, turned, self.rope) for part in (q, k))
        if spec.qk_norm == "turned":
            q, k = self.q_norm(q), self.k_norm(k)
        if spec.query_scaling is not None:
            q = scores.grown(q, context.positions, spec.query_scaling)
        return q, k, v

    def __call__(
        self, x: Float[Array, "b t d"], context: Context, layer: Any, cached: Cached | None
    ) -> tuple[Float[Array, "b t d"], KeysValues | None]:
        """Attend; return the output, and `cached.states` with the rotated keys and the values.

        Args:
            x: Activations.
            context: The context of the tokens.
            layer: Index of the layer.
            cached: The state of the earlier tokens; `None` for whole batch rows.
        """
        q, k, v = self._projections(x, context, layer)
        # Query heads, grouped by the kv head that they share.
        q = q.reshape(*k.shape[:3], -1, k.shape[3])
        states = None
        if cached is not None:
            assert isinstance(context.layout, Slots)
            states = cached.states.written(cached.place, context.layout.first_slot, k, v)
            k, v = states.of_layer(cached.place)
        mixed = attend(self.scoring, q, k, v, context.layout, context.mesh)
        mixed = self._gated(mixed.reshape(*x.shape[:2], -1), x, context, layer)
        return self.o(mixed, context, layer), states

    def _gated(self, mixed: Any, x: Any, context: Context, layer: Any) -> Float[Array, "b t _"]:
        """Return attention's output for `x`, multiplied by its gate if the model has gates."""
        if not self.spec.attn_gate:
            return mixed

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def let_through(mixed: jax.Array, gate: jax.Array) -> jax.Array:
            return mixed * jax.nn.sigmoid(gate)

        return let_through(mixed, self.gate(x, context, layer))


class MLP(nnx.Module):
    """The feed-forward layer, with a gate or without.

    Source: Shazeer 2020, "GLU Variants Improve Transformer", eq. 6, for the gate.
    """

    def __init__(
        self, spec: ModelSpec, mlp: MLPSpec, adapters: Mapping[str, Adapter], rngs: nnx.Rngs
    ):
        """Create the projections, and the adapter of gate and up if the checkpoint fuses them."""
        self.mlp = mlp
        wide, narrow = (spec.model_dim, mlp.dim), (mlp.dim, spec.model_dim)
        if mlp.kind == "gated":
            self.gate = Linear("mlp/gate", wide, mlp.bias, adapters.get("mlp/gate"), rngs)
        self.up = Linear("mlp/up", wide, mlp.bias, adapters.get("mlp/up"), rngs)
        self.down = Linear("mlp/down", narrow, mlp.bias, adapters.get("mlp/down"), rngs)
        if mlp.activation == "xielu":
            self.act = activations.Xielu()
        fused = adapters.get("mlp/gate_up")
        self.gate_up = Lora("mlp/gate_up", (spec.model_dim, 2 * mlp.dim), fused)

    def __call__(
        self, x: Float[Array, "b t d"], context: Context, layer: Any
    ) -> Float[Array, "b t d"]:
        """Apply to activations."""
        is_learned = self.mlp.activation == "xielu"
        activation: Any = (
            activations.xielu if is_learned else activations.ACTIVATIONS[self.mlp.activation]
        )

        # Recomputed in the backward pass, for which only the operands, of width f, are kept.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def hidden(up: jax.Array, gate: jax.Array | None, *numbers: jax.Array) -> jax.Array:
            return activation(up, *numbers) if gate is None else activation(gate, *numbers) * up

        if self.gate_up.adapter is None:
            up = self.up(x, context, layer)
            gate = self.gate(x, context, layer) if self.mlp.kind == "gated" else None
        else:
            gate, up = self.gate_up.outputs([self.gate, self.up], x, context, layer)
        numbers = self.act.numbers() if is_learned else ()
        return self.down(hidden(up, gate, *numbers), context, layer)
