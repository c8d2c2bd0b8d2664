"""MPT: ALiBi, layer norms without a bias, no bias anywhere.

Much that its config.json can say, transformers never reads: other values are refused.

Source: transformers `configuration_mpt.py`, `modeling_mpt.py` (defaults and names).
"""

from collections.abc import Mapping
from typing import Any

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import ABSENT, IGNORED, Family, linear, norm, plain
from jaxft.models.spec import Alibi, BlockSpec, ModelSpec, NormSpec

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

# The values that the class computes with, whatever config.json says.
_FIXED: Mapping[str, Any] = {"expansion_ratio": 4, "logit_scale": None, "no_bias": True}
_FIXED_IN_ATTENTION: Mapping[str, Any] = {
    "alibi": True,
    "alibi_bias_max": 8,
    "attn_type": "multihead_attention",
    "clip_qkv": None,
    "prefix_lm": False,
    "qk_ln": False,
}
# Of the first code base: how the model was made, run and trained. The positions that
# `learned_pos_emb` speaks of, ALiBi stands for.
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


def mpt_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of an MPT."""
    reader = ConfigReader(config)
    # Without `finish`: files of transformers 4 have every key of any config in there.
    attention = ConfigReader(reader.get("attn_config", None) or {})
    model_dim, num_heads = reader.get("d_model"), reader.get("n_heads")
    for source, fixed in ((reader, _FIXED), (attention, _FIXED_IN_ATTENTION)):
        for key, value in fixed.items():
            source.require(key, (value,), value)
    for key in _UNUSED:
        reader.get(key, None)
    spec = ModelSpec(
        vocab_size=reader.get("vocab_size"),
        embed_dim=model_dim,
        model_dim=model_dim,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=model_dim // num_heads,
        attn_scale=attention.get("softmax_scale", None) or (model_dim // num_heads) ** -0.5,
        mlp_dim=4 * model_dim,
        mlp="plain",
        activation="gelu",
        norm=NormSpec("layer", reader.get("layer_norm_epsilon", 1e-5), scale="plain", bias=False),
        norm_placement="pre",
        final_norm=True,
        positions=Alibi(),
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        tied_head=reader.get("tie_word_embeddings", True),
        blocks=(BlockSpec(None, None),) * reader.get("n_layers"),
        **ABSENT,
    )
    reader.finish()
    return spec


def mpt_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of an MPT says of `spec`."""
    return {
        "vocab_size": spec.vocab_size,
        "d_model": spec.model_dim,
        "n_heads": spec.num_heads,
        "n_layers": len(spec.blocks),
        "attn_config": {"softmax_scale": spec.attn_scale},
        "layer_norm_epsilon": spec.norm.eps,
        "tie_word_embeddings": spec.tied_head,
    }


MPT = Family("mpt", mpt_spec, mpt_config, TENSORS, IGNORED, ("Wqkv",), "lm_head", "transformer.")
