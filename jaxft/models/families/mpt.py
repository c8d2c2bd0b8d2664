"""MPT: ALiBi, layer norms, no bias anywhere.

transformers never reads many of the keys in its config.json. A value that differs from what
transformers computes is refused.

Source: transformers `configuration_mpt.py`, `modeling_mpt.py` (defaults and names).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import Family, linear, norm, plain
from jaxft.models.families.gpt import read_gpt
from jaxft.models.families.keys import Key, keys_config
from jaxft.models.spec import Alibi, ModelSpec

_LAYER = "transformer.blocks.{layer}"

TENSORS = (
    plain("embed/kernel", "transformer.wte.weight"),
    *norm("final_norm", "transformer.norm_f"),
    *linear("head", "lm_head"),
    *norm("attn_norm", f"{_LAYER}.norm_1"),
    *linear("attn/qkv", f"{_LAYER}.attn.Wqkv", parts=("attn/q", "attn/k", "attn/v")),
    *linear("attn/o", f"{_LAYER}.attn.out_proj"),
    *norm("mlp_norm", f"{_LAYER}.norm_2"),
    *linear("mlp/up", f"{_LAYER}.ffn.up_proj"),
    *linear("mlp/down", f"{_LAYER}.ffn.down_proj"),
)

# The values that transformers' class computes with, whatever config.json says.
_FIXED: Mapping[str, Any] = {"expansion_ratio": 4, "logit_scale": None, "no_bias": True}
_FIXED_IN_ATTENTION: Mapping[str, Any] = {
    "alibi": True,
    "alibi_bias_max": 8,
    "attn_type": "multihead_attention",
    "clip_qkv": None,
    "prefix_lm": False,
    "qk_ln": False,
}
# Keys of the code that trained the model: how it was initialized, run and trained. ALiBi replaces
# the positions that `learned_pos_emb` asks for.
_UNUSED = (
    "embedding_fraction",
    "init_config",
    "init_device",
    "learned_pos_emb",
    "max_seq_len",
    "norm_type",
    "tokenizer_name",
    "verbose",
)

KEYS = (
    Key("vocab_size", "vocab_size"),
    Key("d_model", "model_dim"),
    Key("n_heads", "num_heads"),
    Key("n_layers", "num_layers"),
    Key("layer_norm_epsilon", "norm_eps", 1e-5),
    Key("tie_word_embeddings", "tied_head", True),
)


def _read_mpt(reader: ConfigReader) -> ModelSpec:
    """Read the config.json of an MPT."""
    # Unread keys are allowed: transformers 4 wrote the keys of any config into it.
    attention = ConfigReader(reader.get("attn_config", None) or {})
    for source, fixed in ((reader, _FIXED), (attention, _FIXED_IN_ATTENTION)):
        for key, value in fixed.items():
            source.require(key, (value,), value)
    for key in _UNUSED:
        reader.get(key, None)
    spec = read_gpt(
        reader,
        KEYS,
        activation="gelu",
        positions=Alibi(),
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
    )
    return dataclasses.replace(
        spec,
        attn_scale=attention.get("softmax_scale", None) or spec.attn_scale,
        norm=dataclasses.replace(spec.norm, bias=False),
    )


def mpt_config(spec: ModelSpec) -> dict[str, Any]:
    """Return the config.json keys of an MPT for `spec`."""
    return keys_config(spec, KEYS) | {"attn_config": {"softmax_scale": spec.attn_scale}}


MPT = Family(
    "mpt",
    _read_mpt,
    mpt_config,
    TENSORS,
    default_targets=("Wqkv",),
    base_prefix="transformer.",
)
