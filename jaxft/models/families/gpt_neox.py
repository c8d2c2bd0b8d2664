"""GPT-NeoX, which Pythia is: rotary positions on a quarter of a head, a parallel residual.

Source: transformers `configuration_gpt_neox.py`, `modeling_gpt_neox.py` (defaults and names).
"""

from collections.abc import Mapping
from typing import Any

from jaxft.models.families.activation_names import activation_name, read_activation
from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import ABSENT, IGNORED, Family, linear, norm, plain
from jaxft.models.families.rope_config import context_config, read_rope, rope_config
from jaxft.models.spec import BlockSpec, ModelSpec, NormSpec

_LAYER = "gpt_neox.layers.{layer}"
_QKV = ("attn/q", "attn/k", "attn/v")

TENSORS = (
    plain("embed/kernel", "gpt_neox.embed_in.weight"),
    *norm("final_norm", "gpt_neox.final_layer_norm"),
    *linear("head", "lm_head"),
    *norm("attn_norm", f"{_LAYER}.input_layernorm"),
    *norm("mlp_norm", f"{_LAYER}.post_attention_layernorm"),
    *linear("attn/qkv", f"{_LAYER}.attention.query_key_value", parts=_QKV, by_head=True),
    *linear("attn/o", f"{_LAYER}.attention.dense"),
    *linear("mlp/up", f"{_LAYER}.mlp.dense_h_to_4h"),
    *linear("mlp/down", f"{_LAYER}.mlp.dense_4h_to_h"),
)

# The mask, stored as weights by old versions.
_IGNORED = (*IGNORED, r"gpt_neox\.layers\.\d+\.attention\.bias")
# Files have the head's name before transformers 5, whose own writes it still.
_RENAMES = ((r"^embed_out\.", "lm_head."),)
_FILE_NAMES = ((r"^lm_head\.", "embed_out."),)


def gpt_neox_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a GPT-NeoX."""
    reader = ConfigReader(config)
    model_dim, num_heads = reader.get("hidden_size"), reader.get("num_attention_heads")
    head_dim = model_dim // num_heads
    has_bias = reader.get("attention_bias", True)
    # Files of transformers 4 have these two, those of its last versions under both names.
    theta = float(reader.get("rotary_emb_base", 10_000))
    partial = float(reader.get("rotary_pct", 0.25))
    reader.require("rope_theta", (theta, None))
    reader.require("partial_rotary_factor", (partial, None))
    rope = read_rope(reader, head_dim=head_dim, theta=theta, partial=partial)
    spec = ModelSpec(
        vocab_size=reader.get("vocab_size"),
        embed_dim=model_dim,
        model_dim=model_dim,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        attn_scale=head_dim**-0.5,
        mlp_dim=reader.get("intermediate_size"),
        mlp="plain",
        activation=read_activation(reader.get("hidden_act", "gelu")),
        norm=NormSpec("layer", reader.get("layer_norm_eps", 1e-5), scale="plain", bias=True),
        norm_placement="pre",
        final_norm=True,
        positions=None,
        qkv_bias=has_bias,
        out_bias=has_bias,
        mlp_bias=True,
        tied_head=reader.get("tie_word_embeddings", False),
        blocks=(BlockSpec(None, rope),) * reader.get("num_hidden_layers"),
        **ABSENT | {"parallel": "two_norms" if reader.get("use_parallel_residual", True) else "no"},
    )
    reader.finish()
    return spec


def gpt_neox_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of a GPT-NeoX says of `spec`."""
    rope = spec.blocks[0].rope
    assert rope is not None
    share = rope.rotary_dim / spec.head_dim
    return {
        **context_config(rope),
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.model_dim,
        "intermediate_size": spec.mlp_dim,
        "num_hidden_layers": len(spec.blocks),
        "num_attention_heads": spec.num_heads,
        "hidden_act": activation_name(spec.activation),
        "layer_norm_eps": spec.norm.eps,
        "attention_bias": spec.qkv_bias,
        "use_parallel_residual": spec.parallel != "no",
        "rope_parameters": rope_config(rope, spec.head_dim) | {"partial_rotary_factor": share},
        "tie_word_embeddings": spec.tied_head,
    }


GPT_NEOX = Family(
    "gpt_neox",
    gpt_neox_spec,
    gpt_neox_config,
    TENSORS,
    _IGNORED,
    ("query_key_value",),
    "lm_head",
    "gpt_neox.",
    renames=_RENAMES,
    file_names=_FILE_NAMES,
)
