"""Llamas with layer norms: StarCoder 2, StableLM, Nemotron and Jais 2.

Source: transformers `configuration_starcoder2.py`, `configuration_stablelm.py`,
`configuration_nemotron.py`, `configuration_jais2.py` and their `modeling_*.py` (defaults and
names).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import IGNORED, Family, linear, replaced
from jaxft.models.families.llama import TENSORS, llama_config, read_llama
from jaxft.models.spec import ModelSpec, NormSpec

_TARGETS = ("q_proj", "v_proj")


def layer_normed(
    spec: ModelSpec, eps: float, *, scale: Literal["plain", "offset"] = "plain", bias: bool = True
) -> ModelSpec:
    """Return the spec of a Llama with layer norms in the place of its own."""
    return dataclasses.replace(spec, norm=NormSpec("layer", eps, scale=scale, bias=bias))


def layer_normed_config(spec: ModelSpec, eps_key: str) -> dict[str, Any]:
    """Return what `llama_config` says, with the norm's eps at another key."""
    written = llama_config(spec)
    del written["rms_norm_eps"]
    return written | {eps_key: spec.norm.eps}


def starcoder2_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a StarCoder 2."""
    defaults = {
        "hidden_act": "gelu_pytorch_tanh",
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    }
    reader = ConfigReader(defaults | dict(config))
    for key, value in (("mlp_type", "default"), ("norm_type", "layer_norm")):
        reader.require(key, (value,), value)  # the published files write them
    window = reader.get("sliding_window", None)
    windows = (window,) * reader.get("num_hidden_layers")
    spec = read_llama(reader, biases=(reader.get("use_bias", True),) * 3, windows=windows)
    spec = layer_normed(spec, reader.get("norm_epsilon", 1e-5))
    reader.finish()
    return dataclasses.replace(spec, mlp="plain")


def starcoder2_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of a StarCoder 2 says of `spec`."""
    own = {"use_bias": spec.mlp_bias, "sliding_window": spec.blocks[0].window}
    return layer_normed_config(spec, "norm_epsilon") | own


STARCODER2 = Family(
    "starcoder2",
    starcoder2_spec,
    starcoder2_config,
    replaced(
        TENSORS,
        *linear("mlp/up", "model.layers.{layer}.mlp.c_fc"),
        *linear("mlp/down", "model.layers.{layer}.mlp.c_proj"),
    ),
    IGNORED,
    _TARGETS,
    "lm_head",
    "model.",
)


def stablelm_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a StableLM."""
    reader = ConfigReader({"num_key_value_heads": 32} | dict(config))
    reader.require("qk_layernorm", (False,), False)
    spec = read_llama(
        reader, biases=(reader.get("use_qkv_bias", False), False, False), partial=0.25
    )
    spec = layer_normed(spec, reader.get("layer_norm_eps", 1e-5))
    is_parallel = reader.get("use_parallel_residual", False)
    reader.finish()
    return dataclasses.replace(spec, parallel="one_norm" if is_parallel else "no")


def stablelm_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of a StableLM says of `spec`."""
    own = {"use_qkv_bias": spec.qkv_bias, "use_parallel_residual": spec.parallel == "one_norm"}
    return layer_normed_config(spec, "layer_norm_eps") | own


STABLELM = Family(
    "stablelm", stablelm_spec, stablelm_config, TENSORS, IGNORED, _TARGETS, "lm_head", "model."
)


def _biased_spec(
    reader: ConfigReader, eps_key: str, *, bias: bool, partial: float | None
) -> ModelSpec:
    """Read what Nemotron and Jais 2 share; `bias` is the default of their biases."""
    attention_bias, mlp_bias = reader.get("attention_bias", bias), reader.get("mlp_bias", bias)
    biases = (attention_bias, attention_bias, mlp_bias)
    spec = read_llama(reader, biases=biases, partial=partial)
    spec = layer_normed(spec, reader.get(eps_key, 1e-5))
    reader.finish()
    return dataclasses.replace(spec, mlp="plain")


def _biased_config(spec: ModelSpec, eps_key: str) -> dict[str, Any]:
    biases = {"attention_bias": spec.qkv_bias, "mlp_bias": spec.mlp_bias}
    return layer_normed_config(spec, eps_key) | biases


def nemotron_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a Nemotron."""
    reader = ConfigReader({"hidden_act": "relu2"} | dict(config))
    reader.get("rope_percent", None)  # of old files; transformers does not read it
    head_dim = reader.get("kv_channels", None)  # so in some files; transformers does not read it
    spec = _biased_spec(reader, "norm_eps", bias=False, partial=0.5)
    if head_dim not in (None, spec.head_dim):
        reader.require("kv_channels", (spec.head_dim,))
    return layer_normed(spec, spec.norm.eps, scale="offset")


def nemotron_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of a Nemotron says of `spec`."""
    return _biased_config(spec, "norm_eps")


def jais2_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a Jais 2."""
    reader = ConfigReader({"hidden_act": "relu2"} | dict(config))
    return _biased_spec(reader, "layer_norm_eps", bias=True, partial=None)


def jais2_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of a Jais 2 says of `spec`."""
    return _biased_config(spec, "layer_norm_eps")


NEMOTRON = Family(
    "nemotron", nemotron_spec, nemotron_config, TENSORS, IGNORED, _TARGETS, "lm_head", "model."
)
JAIS2 = Family("jais2", jais2_spec, jais2_config, TENSORS, IGNORED, _TARGETS, "lm_head", "model.")
