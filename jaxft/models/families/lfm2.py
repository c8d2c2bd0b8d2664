"""LFM2: short convolutions in most layers, grouped-query attention in the others.

Source: transformers `configuration_lfm2.py`, `modeling_lfm2.py` (defaults and names).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxft.errors import UnsupportedModelError
from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import Family, linear, norm, plain, replaced
from jaxft.models.families.keys import Key, with_keys, without_keys
from jaxft.models.families.llama import KEYS, TENSORS, llama_config, read_llama
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
    "tie_word_embeddings": True,
}
_KEYS = with_keys(without_keys(KEYS, "activation"), Key("norm_eps", "norm_eps", 1e-5))
# Names of keys in older files. The older name wins where both are there.
_OLDER = {"block_ff_dim": "intermediate_size", "tie_embedding": "tie_word_embeddings"}


def _settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json in which older names are replaced by the usual ones."""
    named = {key: value for key, value in config.items() if key not in _OLDER}
    return named | {_OLDER[key]: config[key] for key in _OLDER if key in config}


def _read_lfm2(reader: ConfigReader) -> ModelSpec:
    """Read the config.json of an LFM2."""
    for key in ("hidden_act", "rms_norm_eps"):
        reader.get(key, None)  # transformers' class reads neither
    spec = read_llama(reader, _KEYS, theta=1_000_000.0, qk_norm="head", activation="silu")
    conv = ConvSpec(reader.get("conv_L_cache", 3), reader.get("conv_bias", False))
    mlp = spec.blocks[0].mlp
    mlp = dataclasses.replace(mlp, dim=_adjusted(mlp.dim, reader))
    blocks = (
        BlockSpec(conv if kind == _CONV else block.mixer, mlp)
        for kind, block in zip(_read_kinds(reader), spec.blocks, strict=True)
    )
    return dataclasses.replace(spec, blocks=tuple(blocks))


def _read_kinds(reader: ConfigReader) -> list[str]:
    """Return the kind of each layer, attention or convolution.

    Raises:
        UnsupportedModelError: A kind is not supported, or there is not one for each layer.
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
    """Return the MLP's width: two thirds of `width` times a factor, rounded up to a multiple.

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
    """Return the config.json keys of an LFM2 for `spec`."""
    convs = [block.mixer for block in spec.blocks if isinstance(block.mixer, ConvSpec)]
    kinds = [_CONV if isinstance(block.mixer, ConvSpec) else FULL for block in spec.blocks]
    conv = {"conv_L_cache": convs[0].width, "conv_bias": convs[0].bias} if convs else {}
    further = {"block_auto_adjust_ff_dim": False, "layer_types": kinds}
    return llama_config(spec, _KEYS) | conv | further


LFM2 = Family("lfm2", _read_lfm2, lfm2_config, _TENSORS, defaults=_DEFAULTS, settle=_settled)
