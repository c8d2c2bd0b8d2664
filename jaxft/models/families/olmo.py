"""OLMo 1, 2 and 3: a Llama with norms in other places.

OLMo 1 has layer norms that learn nothing. From OLMo 2 on, attention and MLP read the residual
stream as it is and their outputs are normed, and so are queries and keys, all heads together;
OLMo 3 has windows in all but each fourth layer, and another rope in the layers without.

Source: transformers `configuration_olmo.py`, `configuration_olmo2.py`, `configuration_olmo3.py`,
`modeling_olmo.py`, `modeling_olmo2.py`, `modeling_olmo3.py` (defaults and names).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxft.models.families import llama
from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import IGNORED, Family, norm
from jaxft.models.families.rope_config import read_ropes, ropes_config
from jaxft.models.families.windows import each_nth_full, read_windows, windows_config
from jaxft.models.spec import ModelSpec, NormSpec

_LAYER = "model.layers.{layer}"
_OUTPUT_NORM_TENSORS = (
    *(line for line in llama.TENSORS if not line.ours[0].startswith(("attn_norm", "mlp_norm"))),
    *norm("attn_out_norm", f"{_LAYER}.post_attention_layernorm"),
    *norm("mlp_out_norm", f"{_LAYER}.post_feedforward_layernorm"),
)
_OLMO2_DEFAULTS = {"rms_norm_eps": 1e-5}
_OLMO3_THETA = 500_000.0


def olmo_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of an OLMo 1."""
    reader = ConfigReader(config)
    reader.require("clip_qkv", (None,))
    bias = reader.get("attention_bias", False)
    spec = llama.read_llama(reader, biases=(bias, bias, False))
    reader.finish()
    return dataclasses.replace(spec, norm=NormSpec("layer", 1e-5, scale="none", bias=False))


def olmo_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of an OLMo 1 says of `spec`."""
    written = llama.llama_config(spec) | {"attention_bias": spec.qkv_bias}
    del written["rms_norm_eps"]
    return written


def _with_output_norms(spec: ModelSpec) -> ModelSpec:
    return dataclasses.replace(spec, qk_norm="full", norm_placement="output")


def olmo2_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of an OLMo 2."""
    reader = ConfigReader(_OLMO2_DEFAULTS | dict(config))
    bias = reader.get("attention_bias", False)
    spec = llama.read_llama(reader, biases=(bias, bias, False))
    reader.finish()
    return _with_output_norms(spec)


def olmo2_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of an OLMo 2 says of `spec`."""
    return llama.llama_config(spec) | {"attention_bias": spec.qkv_bias}


def olmo3_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of an OLMo 3."""
    reader = ConfigReader(_OLMO2_DEFAULTS | dict(config))
    bias = reader.get("attention_bias", False)
    default = each_nth_full(reader.get("num_hidden_layers"), 4)
    windows = read_windows(reader, default, reader.get("sliding_window", 4096))
    ropes = read_ropes(
        reader,
        head_dim=llama.read_head_dim(reader),
        windows=windows,
        theta=_OLMO3_THETA,
        local_theta=_OLMO3_THETA,
    )
    spec = llama.read_llama(reader, biases=(bias, bias, False), windows=windows, ropes=ropes)
    reader.finish()
    return _with_output_norms(spec)


def olmo3_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of an OLMo 3 says of `spec`."""
    return olmo2_config(spec) | windows_config(spec) | {"rope_parameters": ropes_config(spec)}


OLMO, OLMO2, OLMO3 = (
    Family(name, read, write, tensors, IGNORED, ("q_proj", "v_proj"), "lm_head", "model.")
    for name, read, write, tensors in (
        ("olmo", olmo_spec, olmo_config, llama.TENSORS),
        ("olmo2", olmo2_spec, olmo2_config, _OUTPUT_NORM_TENSORS),
        ("olmo3", olmo3_spec, olmo3_config, _OUTPUT_NORM_TENSORS),
    )
)
