"""BLOOM: ALiBi instead of positions, a norm of the embeddings, queries, keys and values by head.

Source: transformers `configuration_bloom.py`, `modeling_bloom.py` (defaults and names).
"""

from collections.abc import Mapping
from typing import Any

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import ABSENT, IGNORED, Family, linear, norm, plain
from jaxft.models.spec import Alibi, BlockSpec, ModelSpec, NormSpec

_LAYER = "transformer.h.{layer}"
_QKV = ("attn/q", "attn/k", "attn/v")

TENSORS = (
    plain("embed/kernel", "transformer.word_embeddings.weight"),
    *norm("embed_norm", "transformer.word_embeddings_layernorm"),
    *norm("final_norm", "transformer.ln_f"),
    *linear("head", "lm_head"),
    *norm("attn_norm", f"{_LAYER}.input_layernorm"),
    *linear("attn/qkv", f"{_LAYER}.self_attention.query_key_value", parts=_QKV, by_head=True),
    *linear("attn/o", f"{_LAYER}.self_attention.dense"),
    *norm("mlp_norm", f"{_LAYER}.post_attention_layernorm"),
    *linear("mlp/up", f"{_LAYER}.mlp.dense_h_to_4h"),
    *linear("mlp/down", f"{_LAYER}.mlp.dense_4h_to_h"),
)

# Keys of the published files that the model never reads: of its first code base's kernels.
_UNUSED = (
    "attention_softmax_in_fp32",
    "bias_dropout_fusion",
    "masked_softmax_fusion",
    "n_inner",
    "offset_alibi",
    "seq_length",
    "skip_bias_add",
    "skip_bias_add_qkv",
)


def bloom_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a BLOOM."""
    reader = ConfigReader(config)
    model_dim = reader.get("n_embed", None) or reader.get("hidden_size")
    num_heads = reader.get("num_attention_heads", None) or reader.get("n_head")
    num_layers = reader.get("num_hidden_layers", None) or reader.get("n_layer")
    for key in ("hidden_size", "n_head", "n_layer", *_UNUSED):
        reader.get(key, None)
    reader.require("slow_but_exact", (False,), False)  # it forgets biases
    is_post = reader.get("apply_residual_connection_post_layernorm", False)
    spec = ModelSpec(
        vocab_size=reader.get("vocab_size"),
        embed_dim=model_dim,
        model_dim=model_dim,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=model_dim // num_heads,
        attn_scale=(model_dim // num_heads) ** -0.5,
        mlp_dim=4 * model_dim,
        mlp="plain",
        activation="gelu_tanh",
        norm=NormSpec("layer", reader.get("layer_norm_epsilon", 1e-5), scale="plain", bias=True),
        norm_placement="pre_residual" if is_post else "pre",
        final_norm=True,
        positions=Alibi(),
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied_head=reader.get("tie_word_embeddings", True),
        blocks=(BlockSpec(None, None),) * num_layers,
        **ABSENT | {"embed_norm": True},
    )
    reader.finish()
    return spec


def bloom_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of a BLOOM says of `spec`."""
    return {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.model_dim,
        "n_head": spec.num_heads,
        "n_layer": len(spec.blocks),
        "layer_norm_epsilon": spec.norm.eps,
        "apply_residual_connection_post_layernorm": spec.norm_placement == "pre_residual",
        "tie_word_embeddings": spec.tied_head,
    }


BLOOM = Family(
    "bloom",
    bloom_spec,
    bloom_config,
    TENSORS,
    IGNORED,
    ("query_key_value",),
    "lm_head",
    "transformer.",
)
