"""Phi 1, 1.5 and 2: attention and MLP side by side after one norm, biases everywhere.

Source: transformers `configuration_phi.py`, `modeling_phi.py` (defaults and names).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxft.models.families.activation_names import read_activation
from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import IGNORED, Family, linear, norm, plain
from jaxft.models.families.llama import llama_config, read_llama
from jaxft.models.spec import ModelSpec, NormSpec

_LAYER = "model.layers.{layer}"

TENSORS = (
    plain("embed/kernel", "model.embed_tokens.weight"),
    *norm("final_norm", "model.final_layernorm"),
    *linear("head", "lm_head"),
    *linear("attn/q", f"{_LAYER}.self_attn.q_proj"),
    *linear("attn/k", f"{_LAYER}.self_attn.k_proj"),
    *linear("attn/v", f"{_LAYER}.self_attn.v_proj"),
    *linear("attn/o", f"{_LAYER}.self_attn.dense"),
    *norm("attn/q_norm", f"{_LAYER}.self_attn.q_layernorm"),
    *norm("attn/k_norm", f"{_LAYER}.self_attn.k_layernorm"),
    *linear("mlp/up", f"{_LAYER}.mlp.fc1"),
    *linear("mlp/down", f"{_LAYER}.mlp.fc2"),
    *norm("attn_norm", f"{_LAYER}.input_layernorm"),
)


def phi_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a Phi."""
    reader = ConfigReader(config)
    spec = dataclasses.replace(
        read_llama(reader, biases=(True, True, True), partial=0.5),
        mlp="plain",
        activation=read_activation(reader.get("hidden_act", "gelu_new")),
        norm=NormSpec("layer", reader.get("layer_norm_eps", 1e-5), scale="plain", bias=True),
        qk_norm="head" if reader.get("qk_layernorm", False) else "none",
        parallel="one_norm",
        head_bias=True,
    )
    reader.finish()
    return spec


def phi_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of a Phi says of `spec`."""
    written = llama_config(spec)
    del written["rms_norm_eps"]
    rope = spec.blocks[0].rope
    assert rope is not None
    # Written even where it is 1: without it, it is a half.
    written["rope_parameters"]["partial_rotary_factor"] = rope.rotary_dim / spec.head_dim
    return written | {
        "layer_norm_eps": spec.norm.eps,
        "qk_layernorm": spec.qk_norm == "head",
    }


PHI = Family(
    "phi",
    phi_spec,
    phi_config,
    TENSORS,
    IGNORED,
    ("q_proj", "v_proj", "fc1", "fc2"),
    "lm_head",
    "model.",
)
