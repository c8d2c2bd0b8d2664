"""One layer: a mixer of tokens, which is attention or a short convolution, and an MLP."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxft.models.cache import Cached
from jaxft.models.convolution import ShortConv
from jaxft.models.layers import MLP, Attention, Context, Norm
from jaxft.models.network import Layer
from jaxft.models.spec import AttentionSpec, BlockSpec, ConvSpec, ModelSpec

# The mixers, by the type of their spec: the name in the tree, and the class. The `empty_state` of a
# class returns the state in which its layers keep earlier tokens in decoding.
_MIXERS: dict[type, tuple[str, Any]] = {
    AttentionSpec: ("attn", Attention),
    ConvSpec: ("conv", ShortConv),
}


def empty_state(spec: ModelSpec, block: BlockSpec, batch: int, slots: int, dtype: Any) -> Any:
    """Return the state of a layer before the first token, a tree of arrays.

    Args:
        spec: The model.
        block: The layer.
        batch: The number of batch rows.
        slots: The maximum number of tokens in a batch row.
        dtype: The dtype of activations and matrix products.
    """
    _, mixer = _MIXERS[type(block.mixer)]
    return mixer.empty_state(spec, block.mixer, batch, slots, dtype)


class Block(nnx.Module):
    """One layer: attention or a convolution, and an MLP, each added to the residual stream."""

    def __init__(self, spec: ModelSpec, layer: Layer, rngs: nnx.Rngs):
        """Create the layer's modules."""
        self.spec = spec
        norms = _NORMS[spec.norm_placement]
        if spec.parallel == "one_norm":
            norms = [name for name in norms if name != "mlp_norm"]
        for name in norms:
            setattr(self, name, Norm(spec.norm_of(name), spec.model_dim))
        adapters = dict(layer.adapters)
        self.mixer, mixer = _MIXERS[type(layer.block.mixer)]
        setattr(self, self.mixer, mixer(spec, layer.block.mixer, adapters, rngs))
        self.mlp = MLP(spec, layer.block.mlp, adapters, rngs)

    def __call__(
        self, x: Float[Array, "b t d"], context: Context, layer: Any, cached: Cached | None
    ) -> tuple[Float[Array, "b t d"], Any]:
        """Apply the layer; arguments and results are those of its mixer, such as `Attention`."""
        read = self._read("attn", x)
        mixed, states = getattr(self, self.mixer)(read, context, layer, cached)
        if self.spec.parallel != "no":
            mlp_read = read if self.spec.parallel == "one_norm" else self._read("mlp", x)
            x = self._added("attn", x, read, mixed)
            return self._added("mlp", x, read, self.mlp(mlp_read, context, layer)), states
        x = self._added("attn", x, read, mixed)
        read = self._read("mlp", x)
        return self._added("mlp", x, read, self.mlp(read, context, layer)), states

    def _read(self, sublayer: str, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Return the input of a sublayer: the residual stream, normed if the placement says so."""
        is_read_normed = self.spec.norm_placement in ("pre", "pre_residual", "sandwich")
        return getattr(self, f"{sublayer}_norm")(x) if is_read_normed else x

    def _added(self, sublayer: str, x: Any, read: Any, output: Any) -> Float[Array, "b t d"]:
        """Return the residual stream after a sublayer's output is added to it."""
        placement, scale = self.spec.norm_placement, self.spec.residual_scale
        if placement in ("output", "sandwich"):
            output = getattr(self, f"{sublayer}_out_norm")(output)
        if scale != 1.0:
            output = output * jnp.asarray(scale, output.dtype)
        total = (read if placement == "pre_residual" else x) + output
        return getattr(self, f"{sublayer}_norm")(total) if placement == "post" else total


_INPUT_NORMS, _OUTPUT_NORMS = ["attn_norm", "mlp_norm"], ["attn_out_norm", "mlp_out_norm"]
_NORMS = {
    "pre": _INPUT_NORMS,
    "pre_residual": _INPUT_NORMS,
    "post": _INPUT_NORMS,
    "output": _OUTPUT_NORMS,
    "sandwich": _INPUT_NORMS + _OUTPUT_NORMS,
}
