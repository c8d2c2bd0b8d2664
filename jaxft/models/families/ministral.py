"""Ministral: a Mistral that says of each layer whether it has a window.

Source: transformers `configuration_ministral.py`, `modeling_ministral.py` (defaults and names).
"""

from collections.abc import Mapping
from typing import Any

from jaxft.models.families import llama
from jaxft.models.families.config_reader import FULL, SLIDING, ConfigReader
from jaxft.models.families.family import Family
from jaxft.models.families.windows import read_windows, windows_config
from jaxft.models.spec import ModelSpec

_DEFAULTS = {"num_key_value_heads": 8}


def ministral_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a Ministral."""
    reader = ConfigReader(_DEFAULTS | dict(config))
    window = reader.get("sliding_window", 4096)
    default = [FULL if window is None else SLIDING] * reader.get("num_hidden_layers")
    spec = llama.read_llama(reader, windows=read_windows(reader, default, window))
    reader.finish()
    return spec


def ministral_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of a Ministral says of `spec`."""
    return llama.llama_config(spec) | windows_config(spec)


MINISTRAL = Family(
    "ministral",
    ministral_spec,
    ministral_config,
    llama.TENSORS,
    llama.IGNORED,
    ("q_proj", "v_proj"),
    "lm_head",
    "model.",
)
