"""Falcon: attention and MLP side by side; one kv head, some, or as many as query heads.

The fused projection holds for every kv head its queries, its k and its v: in 7B, with one kv head,
as in 40B, 180B and 11B, with several. Checkpoints with ALiBi (falcon-rw) are refused: transformers
rounds their slopes to bfloat16, and multiplies them by the scale of the scores.

Source: transformers `configuration_falcon.py`, `modeling_falcon.py` (defaults and names).
"""

from collections.abc import Mapping
from typing import Any

from jaxft.models.families.activation_names import activation_name, read_activation
from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import ABSENT, IGNORED, Family, linear, norm, plain
from jaxft.models.families.rope_config import context_config, read_rope, rope_config
from jaxft.models.spec import BlockSpec, ModelSpec, NormSpec

_LAYER = "transformer.h.{layer}"
_QKV = ("attn/q", "attn/k", "attn/v")
_OTHERS = ("no", "one_norm")

TENSORS = (
    plain("embed/kernel", "transformer.word_embeddings.weight"),
    *norm("final_norm", "transformer.ln_f"),
    *linear("head", "lm_head"),
    *norm("attn_norm", f"{_LAYER}.ln_attn", parallel=("two_norms",)),
    *norm("mlp_norm", f"{_LAYER}.ln_mlp", parallel=("two_norms",)),
    *norm("attn_norm", f"{_LAYER}.input_layernorm", parallel=_OTHERS),
    *norm("mlp_norm", f"{_LAYER}.post_attention_layernorm", parallel=_OTHERS),
    *linear("attn/qkv", f"{_LAYER}.self_attention.query_key_value", parts=_QKV, by_head=True),
    *linear("attn/o", f"{_LAYER}.self_attention.dense"),
    *linear("mlp/up", f"{_LAYER}.mlp.dense_h_to_4h"),
    *linear("mlp/down", f"{_LAYER}.mlp.dense_4h_to_h"),
)


def falcon_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a Falcon."""
    reader = ConfigReader(config)
    model_dim = reader.get("n_embed", None) or reader.get("hidden_size")
    num_heads, has_bias = reader.get("num_attention_heads"), reader.get("bias", False)
    head_dim = model_dim // num_heads
    reader.get("hidden_size", None)
    reader.require("alibi", (False,), False)
    reader.require("apply_residual_connection_post_layernorm", (False,), False)
    rope = read_rope(reader, head_dim=head_dim, theta=10_000.0)
    num_kv_heads, parallel = _read_architecture(reader, num_heads)
    spec = ModelSpec(
        vocab_size=reader.get("vocab_size"),
        embed_dim=model_dim,
        model_dim=model_dim,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        attn_scale=head_dim**-0.5,
        mlp_dim=reader.get("ffn_hidden_size", None) or 4 * model_dim,
        mlp="plain",
        activation=read_activation(reader.get("activation", "gelu")),
        norm=NormSpec("layer", reader.get("layer_norm_epsilon", 1e-5), scale="plain", bias=True),
        norm_placement="pre",
        final_norm=True,
        positions=None,
        qkv_bias=has_bias,
        out_bias=has_bias,
        mlp_bias=has_bias,
        tied_head=reader.get("tie_word_embeddings", True),
        blocks=(BlockSpec(None, rope),) * reader.get("num_hidden_layers"),
        **ABSENT | {"parallel": parallel},
    )
    reader.finish()
    return spec


def _read_architecture(reader: ConfigReader, num_heads: int) -> tuple[int, str]:
    """Return how many kv heads there are, and how attention and MLP stand to each other."""
    num_kv_heads = reader.get("num_kv_heads", None) or num_heads
    is_multi_query = reader.get("multi_query", True)
    if reader.get("new_decoder_architecture", False):
        reader.require("parallel_attn", (True,), True)
        reader.require("num_ln_in_parallel_attn", (None, 1, 2))
        num_norms = reader.get("num_ln_in_parallel_attn", None) or 2
        return num_kv_heads, "one_norm" if num_norms == 1 else "two_norms"
    reader.require("num_ln_in_parallel_attn", (None, 1))
    if not is_multi_query:
        reader.require("num_kv_heads", (None, num_heads))
    is_parallel = reader.get("parallel_attn", True)
    return 1 if is_multi_query else num_heads, "one_norm" if is_parallel else "no"


def falcon_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of a Falcon says of `spec`."""
    rope, num_kv_heads = spec.blocks[0].rope, spec.num_kv_heads
    assert rope is not None
    is_new = spec.parallel == "two_norms" or 1 < num_kv_heads < spec.num_heads
    num_norms = {"num_ln_in_parallel_attn": 2 if spec.parallel == "two_norms" else 1}
    return {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.model_dim,
        "ffn_hidden_size": spec.mlp_dim,
        "num_hidden_layers": len(spec.blocks),
        "num_attention_heads": spec.num_heads,
        "num_kv_heads": num_kv_heads if is_new else spec.num_heads,
        "new_decoder_architecture": is_new,
        "multi_query": is_new or num_kv_heads == 1,
        "parallel_attn": spec.parallel != "no",
        **(num_norms if is_new else {}),
        "alibi": False,
        "bias": spec.qkv_bias,
        "activation": activation_name(spec.activation),
        "layer_norm_epsilon": spec.norm.eps,
        "rope_parameters": rope_config(rope, spec.head_dim),
        **context_config(rope),
        "tie_word_embeddings": spec.tied_head,
    }


FALCON = Family(
    "falcon",
    falcon_spec,
    falcon_config,
    TENSORS,
    IGNORED,
    ("query_key_value",),
    "lm_head",
    "transformer.",
)
