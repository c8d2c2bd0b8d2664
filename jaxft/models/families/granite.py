"""Granite: a Llama with a factor on embeddings, attention scores, residuals and logits each.

Of Granite 4 (`granitemoehybrid`) those models that have neither experts nor state spaces.
HyperCLOVA X has the same factors, and norms what attention and MLP give as well.

Source: transformers `configuration_granite.py`, `configuration_granitemoehybrid.py`,
`configuration_hyperclovax.py` and their `modeling_*.py` (defaults and names).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import IGNORED, Family, linear, norm, replaced
from jaxft.models.families.llama import TENSORS, llama_config, read_llama
from jaxft.models.families.windows import FULL, read_layer_types
from jaxft.models.spec import BlockSpec, ModelSpec


def with_factors(reader: ConfigReader, spec: ModelSpec) -> ModelSpec:
    """Return `spec` with the four factors of Granite and its likes."""
    return dataclasses.replace(
        spec,
        embed_scale=reader.get("embedding_multiplier", 1.0),
        attn_scale=reader.get("attention_multiplier", 1.0),
        residual_scale=reader.get("residual_multiplier", 1.0),
        logit_scale=1 / reader.get("logits_scaling", 1.0),
    )


def factors_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what config.json says of the four factors, the inverse of `with_factors`."""
    return {
        "embedding_multiplier": spec.embed_scale,
        "attention_multiplier": spec.attn_scale,
        "residual_multiplier": spec.residual_scale,
        "logits_scaling": 1 / spec.logit_scale,
    }


def granite_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a Granite."""
    reader = ConfigReader(config)
    attention_bias, mlp_bias = reader.get("attention_bias", False), reader.get("mlp_bias", False)
    spec = read_llama(reader, biases=(attention_bias, attention_bias, mlp_bias))
    spec = with_factors(reader, spec)
    reader.finish()
    return spec


def granite_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of a Granite says of `spec`."""
    biases = {"attention_bias": spec.qkv_bias, "mlp_bias": spec.mlp_bias}
    return llama_config(spec) | factors_config(spec) | biases


_OLD_KIND = "attention"  # of layers with full attention
_NO_MIXTURE = {"num_experts_per_tok", "output_router_logits", "router_aux_loss_coef"}


def granite4_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a dense Granite 4."""
    layers = config.get("layer_types") or config.get("layers_block_type") or ["mamba"]
    renamed = dict(config) | {
        "intermediate_size": config.get("shared_intermediate_size", 1024),
        "layer_types": [FULL if kind == _OLD_KIND else kind for kind in layers],
    }
    reader = ConfigReader(renamed)
    reader.require("num_local_experts", (0,), 8)
    reader.require("normalization_function", ("rmsnorm",), "rmsnorm")
    read_layer_types(reader, [FULL] * reader.get("num_hidden_layers"))
    unused = {key for key in config if key.startswith("mamba_")} | _NO_MIXTURE
    for key in unused | {"layers_block_type", "init_method", "time_step_limit"}:
        reader.get(key, None)
    reader.get("shared_intermediate_size", None)
    bias = reader.get("attention_bias", False)
    spec = with_factors(reader, read_llama(reader, biases=(bias, bias, False)))
    if reader.get("position_embedding_type", None) != "rope":
        spec = dataclasses.replace(spec, blocks=(BlockSpec(None, None),) * len(spec.blocks))
    reader.finish()
    return spec


def granite4_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of a dense Granite 4 says of `spec`."""
    written = llama_config(spec) | factors_config(spec)
    del written["intermediate_size"]
    return written | {
        "attention_bias": spec.qkv_bias,
        "layer_types": [FULL] * len(spec.blocks),
        "num_local_experts": 0,
        "position_embedding_type": "rope" if spec.blocks[0].rope else None,
        "shared_intermediate_size": spec.mlp_dim,
    }


def hyperclovax_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a HyperCLOVA X."""
    reader = ConfigReader(config)
    attention_bias, mlp_bias = reader.get("attention_bias", False), reader.get("mlp_bias", False)
    spec = read_llama(reader, biases=(attention_bias, attention_bias, mlp_bias))
    attn_scale = reader.get("attention_multiplier", None)
    is_sandwich = reader.get("use_post_norm", True)
    spec = dataclasses.replace(
        with_factors(reader, spec),
        attn_scale=spec.attn_scale if attn_scale is None else attn_scale,
        logit_scale=reader.get("logits_scaling", 1.0),  # a factor, where Granite divides by it
        norm_placement="sandwich" if is_sandwich else "pre",
    )
    reader.finish()
    return spec


def hyperclovax_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of a HyperCLOVA X says of `spec`."""
    is_sandwich = spec.norm_placement == "sandwich"
    own = {"logits_scaling": spec.logit_scale, "use_post_norm": is_sandwich}
    return granite_config(spec) | own


_LAYER = "model.layers.{layer}"
_GRANITE4_TENSORS = replaced(
    TENSORS,
    *linear("mlp/gate_up", f"{_LAYER}.shared_mlp.input_linear", parts=("mlp/gate", "mlp/up")),
    *linear("mlp/down", f"{_LAYER}.shared_mlp.output_linear"),
)
_HYPERCLOVAX_TENSORS = (
    *TENSORS,
    *norm("attn_out_norm", f"{_LAYER}.post_norm1"),
    *norm("mlp_out_norm", f"{_LAYER}.post_norm2"),
)
_TARGETS = ("q_proj", "v_proj")

GRANITE = Family(
    "granite", granite_spec, granite_config, TENSORS, IGNORED, _TARGETS, "lm_head", "model."
)
GRANITE4 = Family(
    "granitemoehybrid",
    granite4_spec,
    granite4_config,
    _GRANITE4_TENSORS,
    IGNORED,
    _TARGETS,
    "lm_head",
    "model.",
)
HYPERCLOVAX = Family(
    "hyperclovax",
    hyperclovax_spec,
    hyperclovax_config,
    _HYPERCLOVAX_TENSORS,
    IGNORED,
    _TARGETS,
    "lm_head",
    "model.",
)
