"""LFM2: short convolutions in most layers, grouped attention in the others.

Source: transformers `configuration_lfm2.py`, `modeling_lfm2.py` (defaults and names).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxft.errors import UnsupportedModelError
from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import Family, linear, norm, plain, replaced
from jaxft.models.families.llama import TENSORS, llama_config, read_llama
from jaxft.models.families.windows import FULL
from jaxft.models.spec import BlockSpec, ConvSpec, ModelSpec

_CONV = "conv"
_LAYER = "model.layers.{layer}"
_TENSORS = (
    *replaced(
        TENSORS,
        *norm("attn_norm", f"{_LAYER}.operator_norm"),
        *norm("mlp_norm", f"{_LAYER}.ffn_norm"),
        *norm("final_norm", "model.embedding_norm"),
        *norm("attn/q_norm", f"{_LAYER}.self_attn.q_layernorm"),
        *norm("attn/k_norm", f"{_LAYER}.self_attn.k_layernorm"),
        *linear("attn/o", f"{_LAYER}.self_attn.out_proj"),
        *linear("mlp/gate", f"{_LAYER}.feed_forward.w1"),
        *linear("mlp/up", f"{_LAYER}.feed_forward.w3"),
        *linear("mlp/down", f"{_LAYER}.feed_forward.w2"),
    ),
    *linear("conv/bcx", f"{_LAYER}.conv.in_proj", parts=("conv/b", "conv/c", "conv/x")),
    *linear("conv/o", f"{_LAYER}.conv.out_proj"),
    plain("conv/taps/kernel", f"{_LAYER}.conv.conv.weight"),
    plain("conv/taps/bias", f"{_LAYER}.conv.conv.bias"),
)
_DEFAULTS = {
    "num_key_value_heads": 8,
    "intermediate_size": 12288,
    "norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
# By the names that older files have, which count where both are there.
_OLDER = {"block_ff_dim": "intermediate_size", "tie_embedding": "tie_word_embeddings"}


def lfm2_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of an LFM2."""
    said = _DEFAULTS | dict(config)
    said |= {name: said.pop(older) for older, name in _OLDER.items() if older in said}
    act = {"hidden_act": "silu"}  # its class asks for no other
    reader = ConfigReader(said | {"rms_norm_eps": said["norm_eps"]} | act)
    reader.get("norm_eps")
    spec = read_llama(reader, theta=1_000_000.0, qk_norm="head")
    conv = ConvSpec(reader.get("conv_L_cache", 3), reader.get("conv_bias", False))
    mlp = spec.blocks[0].mlp
    mlp = dataclasses.replace(mlp, dim=_adjusted(mlp.dim, reader))
    blocks = (
        BlockSpec(conv if kind == _CONV else block.mixer, mlp)
        for kind, block in zip(_read_kinds(reader), spec.blocks, strict=True)
    )
    spec = dataclasses.replace(spec, blocks=tuple(blocks))
    reader.finish()
    return spec


def _read_kinds(reader: ConfigReader) -> list[str]:
    """Return of each layer whether it has attention or a convolution.

    Raises:
        UnsupportedModelError: If there are kinds that are not handled, or too few or too many.
    """
    num_layers = reader.get("num_hidden_layers")
    listed, kinds = reader.get("full_attn_idxs", None), reader.get("layer_types", None)
    if not kinds:
        attention = range(num_layers) if listed is None else listed
        kinds = [FULL if layer in attention else _CONV for layer in range(num_layers)]
    if len(kinds) != num_layers or set(kinds) - {FULL, _CONV}:
        raise UnsupportedModelError(
            f"The model's config.json has {len(kinds)} layer_types, {sorted(set(kinds))}.",
            f"Handled here: one for each of its {num_layers} layers, {FULL} or {_CONV}.",
        )
    return list(kinds)


def _adjusted(width: int, reader: ConfigReader) -> int:
    """Return the MLP's width: two thirds of what is said, by a factor, rounded up to a multiple.

    Source: transformers `modeling_lfm2.py: Lfm2MLP.__init__`.
    """
    factor, multiple = (
        reader.get("block_ffn_dim_multiplier", 1.0),
        reader.get("block_multiple_of", 256),
    )
    if not reader.get("block_auto_adjust_ff_dim", True):
        return width
    return -(-int(factor * int(2 * width / 3)) // multiple) * multiple


def lfm2_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of an LFM2 says of `spec`."""
    written = llama_config(spec)
    del written["hidden_act"]
    convs = [block.mixer for block in spec.blocks if isinstance(block.mixer, ConvSpec)]
    kinds = [_CONV if isinstance(block.mixer, ConvSpec) else FULL for block in spec.blocks]
    conv = {"conv_L_cache": convs[0].width, "conv_bias": convs[0].bias} if convs else {}
    return (
        written
        | conv
        | {
            "norm_eps": written.pop("rms_norm_eps"),
            "block_auto_adjust_ff_dim": False,
            "layer_types": kinds,
        }
    )


LFM2 = Family("lfm2", lfm2_spec, lfm2_config, _TENSORS)
