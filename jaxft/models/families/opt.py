"""OPT: learned positions that begin at row 2, layer norms before or after, a plain MLP, biases.

The 350m model norms after each sublayer and has an embedding narrower than its residual stream.

Source: transformers `configuration_opt.py`, `modeling_opt.py` (defaults and names).
"""

from collections.abc import Mapping
from typing import Any

from jaxft.models.families.activation_names import activation_name, read_activation
from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import ABSENT, IGNORED, Family, linear, norm, plain
from jaxft.models.spec import BlockSpec, Learned, ModelSpec, NormSpec

_MODEL = "model.decoder"
_LAYER = f"{_MODEL}.layers.{{layer}}"

TENSORS = (
    plain("embed/kernel", f"{_MODEL}.embed_tokens.weight"),
    plain("positions/kernel", f"{_MODEL}.embed_positions.weight"),
    *linear("embed_in", f"{_MODEL}.project_in"),
    *linear("embed_out", f"{_MODEL}.project_out"),
    *norm("final_norm", f"{_MODEL}.final_layer_norm"),
    *linear("head", "lm_head"),
    *linear("attn/k", f"{_LAYER}.self_attn.k_proj"),
    *linear("attn/v", f"{_LAYER}.self_attn.v_proj"),
    *linear("attn/q", f"{_LAYER}.self_attn.q_proj"),
    *linear("attn/o", f"{_LAYER}.self_attn.out_proj"),
    *norm("attn_norm", f"{_LAYER}.self_attn_layer_norm"),
    *linear("mlp/up", f"{_LAYER}.fc1"),
    *linear("mlp/down", f"{_LAYER}.fc2"),
    *norm("mlp_norm", f"{_LAYER}.final_layer_norm"),
)

_PADDING_ROWS = 2  # of the table of positions, before that of position 0
_NORM_EPS = 1e-5  # torch's default; OPT's config has no field for it


def opt_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of an OPT."""
    reader = ConfigReader(config)
    model_dim, num_heads = reader.get("hidden_size"), reader.get("num_attention_heads")
    is_pre, has_bias = reader.get("do_layer_norm_before", True), reader.get("enable_bias", True)
    reader.require("layer_norm_elementwise_affine", (True,), True)
    lacks_final_norm = reader.get("_remove_final_layer_norm", False)
    spec = ModelSpec(
        vocab_size=reader.get("vocab_size"),
        embed_dim=reader.get("word_embed_proj_dim", None) or model_dim,
        model_dim=model_dim,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=model_dim // num_heads,
        attn_scale=(model_dim // num_heads) ** -0.5,
        mlp_dim=reader.get("ffn_dim"),
        mlp="plain",
        activation=read_activation(reader.get("activation_function", "relu")),
        norm=NormSpec("layer", _NORM_EPS, scale="plain", bias=True),
        norm_placement="pre" if is_pre else "post",
        final_norm=is_pre and not lacks_final_norm,
        positions=Learned(
            rows=reader.get("max_position_embeddings", 2048) + _PADDING_ROWS, offset=_PADDING_ROWS
        ),
        qkv_bias=has_bias,
        out_bias=has_bias,
        mlp_bias=has_bias,
        tied_head=reader.get("tie_word_embeddings", True),
        blocks=(BlockSpec(window=None, rope=None),) * reader.get("num_hidden_layers"),
        **ABSENT,
    )
    reader.finish()
    return spec


def opt_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of an OPT says of `spec`."""
    assert isinstance(spec.positions, Learned)
    is_pre = spec.norm_placement == "pre"
    return {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.model_dim,
        "word_embed_proj_dim": spec.embed_dim,
        "ffn_dim": spec.mlp_dim,
        "num_hidden_layers": len(spec.blocks),
        "num_attention_heads": spec.num_heads,
        "activation_function": activation_name(spec.activation),
        "do_layer_norm_before": is_pre,
        "_remove_final_layer_norm": is_pre and not spec.final_norm,
        "max_position_embeddings": spec.positions.rows - _PADDING_ROWS,
        "enable_bias": spec.qkv_bias,
        "tie_word_embeddings": spec.tied_head,
    }


OPT = Family(
    "opt", opt_spec, opt_config, TENSORS, IGNORED, ("q_proj", "v_proj"), "lm_head", "model."
)
