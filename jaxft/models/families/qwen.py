"""Qwen 2, 2.5 and 3: a Llama whose later layers may have windows.

Qwen 2 has biases on queries, keys and values; Qwen 3 norms the heads of queries and keys.

Source: transformers `configuration_qwen2.py`, `configuration_qwen3.py`, `modeling_qwen2.py`,
`modeling_qwen3.py` (defaults and names).
"""

from typing import Any

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.llama import ATTENTION_BIAS, llama_family
from jaxft.models.families.windows import FULL, SLIDING, Windows, read_windows, windows_config
from jaxft.models.spec import ModelSpec


def _read_windows(reader: ConfigReader) -> tuple[int | None, ...]:
    window, first = reader.get("sliding_window", 4096), reader.get("max_window_layers", 28)
    if not reader.get("use_sliding_window", False):
        window = None
    layers = range(reader.get("num_hidden_layers"))
    default = [SLIDING if window is not None and n >= first else FULL for n in layers]
    return read_windows(reader, default, window)


def _windows_config(spec: ModelSpec) -> dict[str, Any]:
    written = windows_config(spec)
    if "sliding_window" in written:
        written["use_sliding_window"] = True
        written["max_window_layers"] = written["layer_types"].index(SLIDING)
    return written


_WINDOWS = Windows(_read_windows, _windows_config)

QWEN2 = llama_family(
    "qwen2",
    defaults={"num_key_value_heads": 32},
    fixed={"use_mrope": (False, None)},  # distilled models have this key
    windows=_WINDOWS,
    qkv_bias=True,
)
QWEN3 = llama_family(
    "qwen3",
    ATTENTION_BIAS,
    defaults={"num_key_value_heads": 32, "head_dim": 128},
    windows=_WINDOWS,
    qk_norm="head",
)
