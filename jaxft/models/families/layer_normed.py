"""Llamas with layer norms: StarCoder 2, StableLM, Nemotron and Jais 2.

Source: transformers `configuration_starcoder2.py`, `configuration_stablelm.py`,
`configuration_nemotron.py`, `configuration_jais2.py` and their `modeling_*.py` (defaults and
names).
"""

import dataclasses
import functools

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import Family, linear, replaced
from jaxft.models.families.keys import Key, choice, with_keys
from jaxft.models.families.llama import (
    ATTENTION_BIAS,
    KEYS,
    LAYER_NORM,
    MLP_BIAS,
    TENSORS,
    llama_config,
    llama_family,
    read_head_dim,
    read_llama,
)
from jaxft.models.spec import ModelSpec

STARCODER2 = llama_family(
    "starcoder2",
    Key("use_bias", ("qkv_bias", "out_bias", "mlp_bias"), True),
    Key("sliding_window", "window", None),
    Key("norm_epsilon", "norm_eps", 1e-5),
    defaults={
        "hidden_act": "gelu_pytorch_tanh",
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    # The published files have these keys.
    fixed={"mlp_type": ("default",), "norm_type": ("layer_norm",)},
    tensors=replaced(
        TENSORS,
        *linear("mlp/up", "model.layers.{layer}.mlp.c_fc"),
        *linear("mlp/down", "model.layers.{layer}.mlp.c_proj"),
    ),
    norm=LAYER_NORM,
    mlp="plain",
)
STABLELM = llama_family(
    "stablelm",
    Key("use_qkv_bias", "qkv_bias", False),
    Key("layer_norm_eps", "norm_eps", 1e-5),
    choice("use_parallel_residual", "parallel", False, yes="one_norm", no="no"),
    defaults={"num_key_value_heads": 32},
    fixed={"qk_layernorm": (False,)},
    norm=LAYER_NORM,
    partial=0.25,
)
JAIS2 = llama_family(
    "jais2",
    Key("attention_bias", ("qkv_bias", "out_bias"), True),
    Key("mlp_bias", "mlp_bias", True),
    Key("layer_norm_eps", "norm_eps", 1e-5),
    defaults={"hidden_act": "relu2"},
    norm=LAYER_NORM,
    mlp="plain",
)
_NEMOTRON_KEYS = with_keys(KEYS, ATTENTION_BIAS, MLP_BIAS, Key("norm_eps", "norm_eps", 1e-5))


def _read_nemotron(reader: ConfigReader) -> ModelSpec:
    """Read the config.json of a Nemotron."""
    # Some files have these two keys; transformers does not read them.
    reader.get("rope_percent", None)
    if reader.get("kv_channels", None) is not None:
        reader.require("kv_channels", (read_head_dim(reader),))
    norm = dataclasses.replace(LAYER_NORM, scale="offset")
    return read_llama(reader, _NEMOTRON_KEYS, norm=norm, partial=0.5, mlp="plain")


NEMOTRON = Family(
    "nemotron",
    _read_nemotron,
    functools.partial(llama_config, keys=_NEMOTRON_KEYS),
    TENSORS,
    defaults={"hidden_act": "relu2"},
)
