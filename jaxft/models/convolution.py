"""A mixer of a few neighbouring tokens: a short causal convolution between two gates.

Its state in decoding does not grow with the text: it is the last inputs of the convolution.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int32

from jaxft.models.cache import Cached
from jaxft.models.layers import Context, Linear, Lora
from jaxft.models.network import Adapter
from jaxft.models.spec import ConvSpec, ModelSpec


class LastInputs(NamedTuple):
    """The state of a convolution in decoding, for one layer or for a group's layers stacked.

    Attributes:
        inputs: The last inputs of the convolution [b l d], the latest one last; `l` is the width
            of the convolution minus 1.
    """

    inputs: Float[Array, "*n b l d"]


class Taps(nnx.Module):
    """The factors of a depthwise convolution; those of the latest token are last."""

    def __init__(self, channels: int, conv: ConvSpec, rngs: nnx.Rngs):
        """Create the leaves; the kernel has the shape of torch's `Conv1d`, [channels, 1, width]."""
        shape = (channels, 1, conv.width)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), shape) * conv.width**-0.5)
        if conv.bias:
            self.bias = nnx.Param(jnp.zeros(channels))


class ShortConv(nnx.Module):
    """``o(c(x) * conv(b(x) * x'(x)))``, with four projections and a convolution over time.

    Source: transformers `modeling_lfm2.py: Lfm2ShortConv`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        conv: ConvSpec,
        adapters: Mapping[str, Adapter],
        rngs: nnx.Rngs,
    ):
        """Create the projections, the adapter of b, c and x if it is on all three, and the taps."""
        dims = (spec.model_dim, spec.model_dim)

        def projection(name: str) -> Linear:
            return Linear(f"conv/{name}", dims, conv.bias, adapters.get(f"conv/{name}"), rngs)

        self.b, self.c, self.x = projection("b"), projection("c"), projection("x")
        self.o = projection("o")
        self.bcx = Lora("conv/bcx", (spec.model_dim, 3 * spec.model_dim), adapters.get("conv/bcx"))
        self.taps = Taps(spec.model_dim, conv, rngs)

    @staticmethod
    def empty_state(
        spec: ModelSpec, conv: ConvSpec, batch: int, slots: int, dtype: Any
    ) -> LastInputs:
        """Return the layer's state before the first token: inputs of 0, for any number of slots."""
        return LastInputs(jnp.zeros((batch, conv.width - 1, spec.model_dim), dtype))

    def __call__(
        self, x: Float[Array, "b t d"], context: Context, layer: Any, cached: Cached | None
    ) -> tuple[Float[Array, "b t d"], LastInputs | None]:
        """Mix the tokens; return the output, and `cached.states` updated with these tokens.

        Args:
            x: Activations.
            context: The context of the tokens.
            layer: Index of the layer.
            cached: The state of the earlier tokens; `None` for whole batch rows.
        """
        parts = [self.b, self.c, self.x]
        if self.bcx.adapter is None:
            b, c, inner = (part(x, context, layer) for part in parts)
        else:
            b, c, inner = self.bcx.outputs(parts, x, context, layer)
        kernel = self.taps.kernel[...]
        width = kernel.shape[-1]
        shape = (x.shape[0], width - 1, x.shape[2])
        if cached is None:
            earlier = jnp.zeros(shape, x.dtype)
        else:
            earlier = cached.states.inputs[cached.place].astype(x.dtype)

        # Recomputed in the backward pass, for which the projections are kept, but no shifted copy.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def mix(
            b: jax.Array, c: jax.Array, inner: jax.Array, kernel: jax.Array, bias: jax.Array | None
        ) -> jax.Array:
            inputs = jnp.concatenate([earlier, b * inner], axis=1)
            mixed = convolved(inputs, kernel, context.positions)
            if bias is not None:
                mixed = mixed + bias.astype(jnp.float32)[None, None, :]
            return c * mixed.astype(c.dtype)

        bias = self.taps.bias[...] if hasattr(self.taps, "bias") else None
        output = self.o(mix(b, c, inner, kernel, bias), context, layer)
        if cached is None:
            return output, None
        kept = jnp.concatenate([earlier, b * inner], axis=1)[:, x.shape[1] :]
        stack = cached.states.inputs
        return output, LastInputs(stack.at[cached.place].set(kept.astype(stack.dtype)))


def convolved(
    inputs: Float[Array, "b s d"],
    kernel: Float[Array, "d 1 l"],
    positions: Int32[Array, "b t"],
) -> Float[Array, "b t d"]:
    """Convolve each channel over the latest tokens of the same text, in float32.

    Args:
        inputs: The inputs at the tokens, preceded by those at the `l - 1` tokens before them.
        kernel: The factors of each channel; that of the latest token is last.
        positions: The position of each token in its own text, which is the number of tokens before
            it; inputs further back belong to another text or to padding, and count as 0.
    """
    width, length = kernel.shape[-1], positions.shape[1]
    total = jnp.zeros((*positions.shape, inputs.shape[2]), jnp.float32)
    for back in range(width):
        start = width - 1 - back
        factors = kernel[:, 0, start].astype(jnp.float32)[None, None, :]
        of_the_text = (positions >= back)[..., None]
        shifted = inputs[:, start : start + length].astype(jnp.float32)
        total = total + jnp.where(of_the_text, shifted * factors, 0.0)
    return total
