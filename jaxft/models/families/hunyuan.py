"""Dense Hunyuan: a Llama whose queries and keys are normed after they are turned.

Its rope is stretched by a factor on the base, `alpha`, under the name "dynamic"; without `alpha`
that would be another kind, which depends on the length of the text.

Source: transformers `configuration_hunyuan_v1_dense.py`, `modeling_hunyuan_v1_dense.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import IGNORED, Family, norm, replaced
from jaxft.models.families.llama import TENSORS, llama_config, read_head_dim, read_llama
from jaxft.models.families.rope_config import read_rope
from jaxft.models.spec import AlphaScaling, ModelSpec, Rope

_ATTENTION = "model.layers.{layer}.self_attn"
_TENSORS = replaced(
    TENSORS,
    *norm("attn/q_norm", f"{_ATTENTION}.query_layernorm"),
    *norm("attn/k_norm", f"{_ATTENTION}.key_layernorm"),
)


def hunyuan_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a dense Hunyuan."""
    reader = ConfigReader({"rms_norm_eps": 1e-5} | dict(config))
    reader.get("eod_token_id", None)
    bias = reader.get("attention_bias", False)
    ropes = (_read_rope(reader),) * reader.get("num_hidden_layers")
    spec = read_llama(reader, biases=(bias, bias, False), ropes=ropes)
    reader.finish()
    return dataclasses.replace(spec, qk_norm="turned")


def _read_rope(reader: ConfigReader) -> Rope:
    head_dim = read_head_dim(reader)
    found = reader.get("rope_scaling", None) or reader.get("rope_parameters", None) or {}
    kind = found.get("rope_type") or found.get("type")
    if kind != "dynamic" or not found.get("alpha"):
        return read_rope(reader, head_dim=head_dim, theta=10_000.0)
    reader.get("rope_parameters", None)
    theta = found.get("rope_theta") or reader.get("rope_theta", None) or 10_000.0
    return Rope(float(theta), head_dim, False, AlphaScaling(float(found["alpha"])))


def hunyuan_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of a dense Hunyuan says of `spec`."""
    return llama_config(spec) | {"attention_bias": spec.qkv_bias}


HUNYUAN_DENSE = Family(
    "hunyuan_v1_dense",
    hunyuan_spec,
    hunyuan_config,
    _TENSORS,
    IGNORED,
    ("q_proj", "v_proj"),
    "lm_head",
    "model.",
)
