"""Families that differ from Llama in a few lines each.

EXAONE 4 norms the outputs of attention and MLP, and the heads of queries and keys; if some of its
layers have a window, the others have no positions. CWM has a window on three layers in four.
Arcee's MLP has no gate. Helium and ERNIE 4.5 rotate neighbouring channels. Seed-OSS has a bias on
queries, keys and values.

Source: transformers `configuration_*.py` and `modeling_*.py` of each (defaults and names).
"""

from typing import Any

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import Family
from jaxft.models.families.keys import Key
from jaxft.models.families.llama import (
    ATTENTION_BIAS,
    MLP_BIAS,
    OUTPUT_NORM_TENSORS,
    llama_config,
    llama_family,
    read_llama,
)
from jaxft.models.families.windows import FULL, SLIDING, Windows, read_windows, windows_config
from jaxft.models.spec import ModelSpec


def _read_exaone4(reader: ConfigReader) -> ModelSpec:
    """Read the config.json of an EXAONE 4."""
    reader.get("attn_implementation", None)
    pattern = reader.get("sliding_window_pattern", None) or 4
    if not isinstance(pattern, str):
        pattern = "L" * (pattern - 1) + "G"  # L is a local layer, G a global one, as in files
    window = reader.get("sliding_window", 4096)
    is_hybrid = window is not None
    kinds = [
        SLIDING if is_hybrid and pattern[layer % len(pattern)] == "L" else FULL
        for layer in range(reader.get("num_hidden_layers"))
    ]
    windows = read_windows(reader, kinds, window)
    is_turned = [bool(each) or not is_hybrid for each in windows]
    return read_llama(
        reader, windows=windows, is_turned=is_turned, norm_placement="output", qk_norm="head"
    )


def exaone4_config(spec: ModelSpec) -> dict[str, Any]:
    """Return the config.json keys of an EXAONE 4 for `spec`."""
    is_hybrid = any(block.rope is None for block in spec.blocks)
    without = {} if is_hybrid else {"sliding_window": None}
    return llama_config(spec) | windows_config(spec) | without


EXAONE4 = Family(
    "exaone4",
    _read_exaone4,
    exaone4_config,
    OUTPUT_NORM_TENSORS,
    defaults={"rms_norm_eps": 1e-5, "num_key_value_heads": 32},
)


def _read_cwm_windows(reader: ConfigReader) -> tuple[int | None, ...]:
    kinds = [SLIDING if layer % 4 else FULL for layer in range(reader.get("num_hidden_layers"))]
    return read_windows(reader, kinds, reader.get("sliding_window", 8192))


_CWM_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CWM = llama_family(
    "cwm",
    MLP_BIAS,
    defaults={"head_dim": 128, "num_key_value_heads": 8, "rms_norm_eps": 1e-5},
    rope=_CWM_ROPE,
    windows=Windows(_read_cwm_windows, windows_config),
    theta=1_000_000.0,
)

ARCEE = llama_family(
    "arcee",
    ATTENTION_BIAS,
    MLP_BIAS,
    defaults={"hidden_act": "relu2", "rms_norm_eps": 1e-5},
    mlp="plain",
)
HELIUM = llama_family(
    "helium",
    Key("attention_bias", "qkv_bias", False),
    MLP_BIAS,
    defaults={"head_dim": 128, "num_key_value_heads": 20, "rms_norm_eps": 1e-8},
    theta=100_000.0,
    interleaved=True,
)
ERNIE = llama_family(
    "ernie4_5",
    Key("use_bias", ("qkv_bias", "out_bias", "mlp_bias"), False),
    defaults={
        "head_dim": 128,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
    theta=500_000.0,
    interleaved=True,
)
SEED_OSS = llama_family(
    "seed_oss",
    Key("attention_bias", "qkv_bias", True),
    Key("attention_out_bias", "out_bias", False),
    MLP_BIAS,
    defaults={"head_dim": 128, "num_key_value_heads": 8},
)
