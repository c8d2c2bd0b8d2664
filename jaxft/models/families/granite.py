"""Granite 3: a Llama with a factor on embeddings, attention scores, residuals and logits each.

Source: transformers `configuration_granite.py`, `modeling_granite.py` (defaults and names).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import Family
from jaxft.models.families.llama import IGNORED, TENSORS, llama_config, read_llama
from jaxft.models.spec import ModelSpec


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


GRANITE = Family(
    "granite",
    granite_spec,
    granite_config,
    TENSORS,
    IGNORED,
    ("q_proj", "v_proj"),
    "lm_head",
    "model.",
)
