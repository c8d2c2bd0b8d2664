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

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import Family
from jaxft.models.families.keys import with_keys
from jaxft.models.families.llama import (
    ATTENTION_BIAS,
    KEYS,
    OUTPUT_NORM_TENSORS,
    TENSORS,
    llama_config,
    llama_family,
    read_head_dim,
    read_llama,
)
from jaxft.models.families.rope_config import read_ropes, ropes_config
from jaxft.models.families.windows import each_nth_full, read_windows, windows_config
from jaxft.models.spec import ModelSpec, NormSpec

_KEYS = with_keys(KEYS, ATTENTION_BIAS)
_DEFAULTS = {"rms_norm_eps": 1e-5}
_OLMO3_THETA = 500_000.0


def olmo_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of an OLMo 1."""
    reader = ConfigReader(config)
    reader.require("clip_qkv", (None,))
    spec = read_llama(reader, _KEYS)
    reader.finish()
    return dataclasses.replace(spec, norm=NormSpec("layer", 1e-5, scale="none", bias=False))


def olmo_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of an OLMo 1 says of `spec`."""
    written = llama_config(spec, _KEYS)
    del written["rms_norm_eps"]
    return written


def olmo3_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of an OLMo 3."""
    reader = ConfigReader(_DEFAULTS | dict(config))
    default = each_nth_full(reader.get("num_hidden_layers"), 4)
    windows = read_windows(reader, default, reader.get("sliding_window", 4096))
    ropes = read_ropes(
        reader,
        head_dim=read_head_dim(reader),
        windows=windows,
        theta=_OLMO3_THETA,
        local_theta=_OLMO3_THETA,
    )
    spec = read_llama(
        reader, _KEYS, windows=windows, ropes=ropes, qk_norm="full", norm_placement="output"
    )
    reader.finish()
    return spec


def olmo3_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of an OLMo 3 says of `spec`."""
    ropes = {"rope_parameters": ropes_config(spec)}
    return llama_config(spec, _KEYS) | windows_config(spec) | ropes


OLMO = Family("olmo", olmo_spec, olmo_config, TENSORS)
OLMO2 = llama_family(
    "olmo2",
    ATTENTION_BIAS,
    defaults=_DEFAULTS,
    tensors=OUTPUT_NORM_TENSORS,
    qk_norm="full",
    norm_placement="output",
)
OLMO3 = Family("olmo3", olmo3_spec, olmo3_config, OUTPUT_NORM_TENSORS)
