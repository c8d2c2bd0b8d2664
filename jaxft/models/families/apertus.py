"""Apertus: an MLP without a gate whose activation is learned, and each head of q and k is normed.

Source: transformers `configuration_apertus.py`, `modeling_apertus.py` (defaults and names).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import IGNORED, Family, buffer, norm, plain, replaced
from jaxft.models.families.llama import TENSORS, llama_config, read_llama
from jaxft.models.spec import ModelSpec

_LAYER = "model.layers.{layer}"
_ACT = f"{_LAYER}.mlp.act_fn"
_TENSORS = (
    *replaced(
        TENSORS,
        *norm("attn_norm", f"{_LAYER}.attention_layernorm"),
        *norm("mlp_norm", f"{_LAYER}.feedforward_layernorm"),
    ),
    plain("mlp/act/alpha_p", f"{_ACT}.alpha_p"),
    plain("mlp/act/alpha_n", f"{_ACT}.alpha_n"),
    buffer("mlp/act/beta", f"{_ACT}.beta"),
    buffer("mlp/act/eps", f"{_ACT}.eps"),
)
_THETA = 12_000_000.0
_ROPE = {
    "rope_type": "llama3",
    "rope_theta": _THETA,
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


def apertus_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of an Apertus."""
    has_rope = any(config.get(key) for key in ("rope_parameters", "rope_scaling"))
    rope = {} if has_rope else {"rope_parameters": _ROPE}
    # The learned activation has no name among those that need no weights; it takes its place below.
    is_learned = config.get("hidden_act", "xielu") == "xielu"
    act = {"hidden_act": "silu"} if is_learned else {}
    reader = ConfigReader({"rms_norm_eps": 1e-5} | dict(config) | rope | act)
    bias = reader.get("attention_bias", False)
    spec = read_llama(reader, biases=(bias, bias, False), theta=_THETA)
    reader.finish()
    spec = dataclasses.replace(spec, mlp="plain", qk_norm="head")
    return dataclasses.replace(spec, activation="xielu") if is_learned else spec


def apertus_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of an Apertus says of `spec`."""
    return llama_config(spec) | {"attention_bias": spec.qkv_bias}


APERTUS = Family(
    "apertus",
    apertus_spec,
    apertus_config,
    _TENSORS,
    IGNORED,
    ("q_proj", "v_proj"),
    "lm_head",
    "model.",
)
