"""Qwen 2, 2.5 and 3: a Llama whose later layers may have windows.

Qwen 2 has biases on queries, keys and values; Qwen 3 norms the heads of queries and keys.

Source: transformers `configuration_qwen2.py`, `configuration_qwen3.py`, `modeling_qwen2.py`,
`modeling_qwen3.py` (defaults and names).
"""

from collections.abc import Mapping
from typing import Any

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import Family
from jaxft.models.families.keys import with_keys
from jaxft.models.families.llama import ATTENTION_BIAS, KEYS, TENSORS, llama_config, read_llama
from jaxft.models.families.windows import FULL, SLIDING, read_windows, windows_config
from jaxft.models.spec import ModelSpec

_QWEN2_DEFAULTS = {"num_key_value_heads": 32}
_QWEN3_DEFAULTS = _QWEN2_DEFAULTS | {"head_dim": 128}


def qwen2_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a Qwen 2 or 2.5."""
    reader = ConfigReader(_QWEN2_DEFAULTS | dict(config))
    reader.require("use_mrope", (False, None))  # distilled models write it
    spec = read_llama(reader, windows=_read_windows(reader), qkv_bias=True)
    reader.finish()
    return spec


def qwen3_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a Qwen 3."""
    reader = ConfigReader(_QWEN3_DEFAULTS | dict(config))
    keys = with_keys(KEYS, ATTENTION_BIAS)
    spec = read_llama(reader, keys, windows=_read_windows(reader), qk_norm="head")
    reader.finish()
    return spec


def _read_windows(reader: ConfigReader) -> tuple[int | None, ...]:
    window, first = reader.get("sliding_window", 4096), reader.get("max_window_layers", 28)
    if not reader.get("use_sliding_window", False):
        window = None
    layers = range(reader.get("num_hidden_layers"))
    default = [SLIDING if window is not None and n >= first else FULL for n in layers]
    return read_windows(reader, default, window)


def qwen2_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of a Qwen 2 says of `spec`."""
    written = llama_config(spec) | windows_config(spec)
    if "sliding_window" in written:
        written["use_sliding_window"] = True
        written["max_window_layers"] = written["layer_types"].index(SLIDING)
    return written


def qwen3_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of a Qwen 3 says of `spec`."""
    return qwen2_config(spec) | {"attention_bias": spec.qkv_bias}


QWEN2 = Family("qwen2", qwen2_spec, qwen2_config, TENSORS)
QWEN3 = Family("qwen3", qwen3_spec, qwen3_config, TENSORS)
