"""GLM-4: a Llama that turns half of each head, in neighbouring pairs, with gate and up fused.

The models of 2025 (`glm4`) norm what attention and MLP give as well.

Source: transformers `configuration_glm.py`, `configuration_glm4.py`, `modeling_glm.py`,
`modeling_glm4.py` (defaults and names).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import IGNORED, Family, linear, norm, replaced
from jaxft.models.families.llama import TENSORS, llama_config, read_llama
from jaxft.models.spec import ModelSpec

_LAYER = "model.layers.{layer}"
_DEFAULTS = {
    "head_dim": 128,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1.5625e-7,
}

GLM_TENSORS = replaced(
    TENSORS, *linear("mlp/gate_up", f"{_LAYER}.mlp.gate_up_proj", parts=("mlp/gate", "mlp/up"))
)
GLM4_TENSORS = (
    *GLM_TENSORS,
    *norm("attn_out_norm", f"{_LAYER}.post_self_attn_layernorm"),
    *norm("mlp_out_norm", f"{_LAYER}.post_mlp_layernorm"),
)


def glm_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a GLM."""
    reader = ConfigReader(_DEFAULTS | dict(config))
    bias = reader.get("attention_bias", True)
    spec = read_llama(reader, biases=(bias, False, False), partial=0.5, interleaved=True)
    reader.finish()
    return spec


def glm4_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a GLM of 2025."""
    return dataclasses.replace(glm_spec(config), norm_placement="sandwich")


def glm_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of either says of `spec`."""
    written = llama_config(spec) | {"attention_bias": spec.qkv_bias}
    # Half of a head is turned where nothing else is said.
    written["rope_parameters"] = {"partial_rotary_factor": 1.0} | written["rope_parameters"]
    return written


_TARGETS = ("q_proj", "v_proj")

GLM = Family("glm", glm_spec, glm_config, GLM_TENSORS, IGNORED, _TARGETS, "lm_head", "model.")
GLM4 = Family("glm4", glm4_spec, glm_config, GLM4_TENSORS, IGNORED, _TARGETS, "lm_head", "model.")
