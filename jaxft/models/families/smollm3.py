"""SmolLM3: a Llama without rotary positions in every fourth layer.

Source: transformers `configuration_smollm3.py`, `modeling_smollm3.py` (defaults and names).
"""

from typing import Any

from jaxft.errors import UnsupportedModelError
from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import Family
from jaxft.models.families.keys import with_keys
from jaxft.models.families.llama import (
    ATTENTION_BIAS,
    KEYS,
    MLP_BIAS,
    TENSORS,
    llama_config,
    read_llama,
)
from jaxft.models.families.windows import FULL, SLIDING, read_windows, windows_config
from jaxft.models.spec import ModelSpec

_DEFAULTS = {"num_key_value_heads": 4, "tie_word_embeddings": True}
_INTERVAL = 4
_KEYS = with_keys(KEYS, ATTENTION_BIAS, MLP_BIAS)


def _read_smollm3(reader: ConfigReader) -> ModelSpec:
    """Read the config.json of a SmolLM3."""
    is_turned = _read_turned(reader)
    reader.get("max_window_layers", None)  # files have this key; transformers does not read it
    window = reader.get("sliding_window", None)
    has_windows = reader.get("use_sliding_window", False) and window is not None
    default = [SLIDING if has_windows and not turned else FULL for turned in is_turned]
    windows = read_windows(reader, default, window)
    return read_llama(reader, _KEYS, windows=windows, is_turned=is_turned, theta=2_000_000.0)


def _read_turned(reader: ConfigReader) -> list[bool]:
    """Return whether each layer has rotary positions: 1 in `no_rope_layers` means that it has."""
    num_layers = reader.get("num_hidden_layers")
    interval = reader.get("no_rope_layer_interval", _INTERVAL)
    listed = reader.get("no_rope_layers", None)
    if listed is None:
        return [number % interval != 0 for number in range(1, num_layers + 1)]
    if len(listed) != num_layers:
        raise UnsupportedModelError(
            f"The model's config.json has {len(listed)} no_rope_layers and {num_layers} layers.",
            "Take the config.json that belongs to the weights.",
        )
    return [bool(entry) for entry in listed]


def smollm3_config(spec: ModelSpec) -> dict[str, Any]:
    """Return the config.json keys of a SmolLM3 for `spec`."""
    is_turned = [block.rope is not None for block in spec.blocks]
    windows = windows_config(spec)
    first = is_turned.index(False) + 1 if False in is_turned else _INTERVAL
    return (
        llama_config(spec, _KEYS)
        | windows
        | {
            "no_rope_layer_interval": first,
            "no_rope_layers": [int(turned) for turned in is_turned],
            "use_sliding_window": "sliding_window" in windows,
        }
    )


SMOLLM3 = Family("smollm3", _read_smollm3, smollm3_config, TENSORS, defaults=_DEFAULTS)
