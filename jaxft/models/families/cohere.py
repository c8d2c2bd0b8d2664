"""Cohere (Command R): layer norms without bias, attention and MLP in parallel.

Cohere 2 (Command R7B, Command A) has two kinds of layers: some have a sliding window and rotary
positions, the others see all tokens and have no positions.

Source: transformers `configuration_cohere.py`, `configuration_cohere2.py`, `modeling_cohere.py`,
`modeling_cohere2.py` (defaults and names).
"""

import dataclasses
from typing import Any

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import Family
from jaxft.models.families.keys import Key, with_keys
from jaxft.models.families.llama import (
    ATTENTION_BIAS,
    KEYS,
    LAYER_NORM,
    TENSORS,
    llama_config,
    llama_family,
    read_llama,
)
from jaxft.models.families.windows import each_nth_full, read_windows, windows_config
from jaxft.models.spec import ModelSpec

_DEFAULTS = {"tie_word_embeddings": True}
# Keys that the published files of Cohere 2 have and transformers does not read.
_UNUSED = {
    "order_of_interleaved_layers": "local_attn_first",
    "position_embedding_type": "rope_gptj",
    "rotary_pct": 1.0,
    "use_embedding_sharing": True,
    "use_gated_activation": True,
    "use_parallel_block": True,
    "use_qk_norm": False,
}


# Keys for generation, for the tokenizer and for pretraining.
_UNREAD = ("cache_implementation", "model_max_length", "use_parallel_embedding")
_LINES = (
    ATTENTION_BIAS,
    Key("layer_norm_eps", "norm_eps", 1e-5),
    Key("logit_scale", "logit_scale", 0.0625),
)
_KEYS = with_keys(KEYS, *_LINES)
_FEATURES: dict[str, Any] = {
    "norm": dataclasses.replace(LAYER_NORM, bias=False),
    "interleaved": True,
    "parallel": "one_norm",
}


def _read_cohere2(reader: ConfigReader) -> ModelSpec:
    """Read the config.json of a Cohere 2."""
    for key, value in _UNUSED.items():
        reader.require(key, (value,), value)
    for key in _UNREAD:
        reader.get(key, None)
    every = reader.get("sliding_window_pattern", None) or 4
    default = each_nth_full(reader.get("num_hidden_layers"), every)
    windows = read_windows(reader, default, reader.get("sliding_window", 4096))
    is_turned = list(map(bool, windows))
    return read_llama(reader, _KEYS, windows=windows, is_turned=is_turned, **_FEATURES)


def cohere2_config(spec: ModelSpec) -> dict[str, Any]:
    """Return the config.json keys of a Cohere 2 for `spec`."""
    return llama_config(spec, _KEYS) | windows_config(spec)


COHERE = llama_family(
    "cohere",
    *_LINES,
    defaults=_DEFAULTS,
    fixed={"use_qk_norm": (False, None)},
    unread=_UNREAD,
    theta=500_000.0,
    **_FEATURES,
)
COHERE2 = Family("cohere2", _read_cohere2, cohere2_config, TENSORS, defaults=_DEFAULTS)
