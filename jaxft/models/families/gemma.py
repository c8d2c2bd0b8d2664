"""Gemma 1, 2 and 3, and VaultGemma: norms whose scale is one plus the weight, scaled embeddings.

Gemma 2 and 3 norm the outputs of attention and MLP too, and alternate between layers with a window
and layers that see all tokens. Gemma 2 caps scores and logits. Gemma 3 norms queries and keys, and
its layers with a window have another base of rotary positions. VaultGemma is a Gemma 2 without
norms on outputs.

Source: transformers `configuration_gemma.py`, `configuration_gemma2.py`,
`configuration_gemma3.py`, `configuration_vaultgemma.py` and the modeling files beside them
(defaults and names).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import Family, Tensor, norm, replaced
from jaxft.models.families.keys import Key, activation, with_keys, without_keys
from jaxft.models.families.llama import (
    ATTENTION_BIAS,
    KEYS,
    RMS_NORM,
    TENSORS,
    llama_config,
    llama_tensors,
    read_llama,
)
from jaxft.models.families.rope_config import read_ropes, ropes_config
from jaxft.models.families.windows import each_nth_full, read_windows, windows_config
from jaxft.models.spec import ModelSpec

_ACTIVATION = "gelu_pytorch_tanh"
_KEYS = with_keys(KEYS, ATTENTION_BIAS)
_GEMMA2_KEYS = with_keys(
    _KEYS,
    activation("hidden_activation", _ACTIVATION),
    Key(
        "query_pre_attn_scalar",
        "attn_scale",
        256,
        read=lambda width: width**-0.5,
        write=lambda scale: round(scale**-2),
    ),
    Key("attn_logit_softcapping", "attn_softcap", 50.0),
    Key("final_logit_softcapping", "logit_softcap", 30.0),
)
# Gemma 3 does not cap scores, whatever config.json says.
_GEMMA3_KEYS = with_keys(
    without_keys(_GEMMA2_KEYS, "attn_softcap"),
    Key("final_logit_softcapping", "logit_softcap", None),
)
_GEMMA_DEFAULTS = {"num_key_value_heads": 16, "head_dim": 256, "tie_word_embeddings": True}
_GEMMA2_DEFAULTS = _GEMMA_DEFAULTS | {"num_key_value_heads": 4}
# Files of Gemma 3's text part leave out keys at the default of their class, sizes included.
_GEMMA3_DEFAULTS = _GEMMA2_DEFAULTS | {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
}


def gemma_tensors(base: str) -> tuple[Tensor, ...]:
    """Return the name table of a Gemma 2 or 3 whose modules, except the head, are below `base`."""
    layer = f"{base}.layers.{{layer}}"
    return replaced(
        llama_tensors(base),
        *norm("attn_out_norm", f"{layer}.post_attention_layernorm"),
        *norm("mlp_norm", f"{layer}.pre_feedforward_layernorm"),
        *norm("mlp_out_norm", f"{layer}.post_feedforward_layernorm"),
    )


def _read_gemma(reader: ConfigReader, keys: tuple[Key, ...] = _KEYS, **features: Any) -> ModelSpec:
    """Read the keys that all Gemmas share, with the arguments of `read_llama`."""
    reader.require("use_bidirectional_attention", (False, None))
    norm = dataclasses.replace(RMS_NORM, scale="offset")
    spec = read_llama(reader, keys, norm=norm, **features)
    return dataclasses.replace(spec, embed_scale=spec.model_dim**0.5)


def _settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json of a Gemma 1 with the activation that the model was trained with.

    The first files say "gelu", but the models were trained with its approximation.
    """
    named = config.get("hidden_act", _ACTIVATION)
    return dict(config) | {"hidden_act": _ACTIVATION if named == "gelu" else named}


def _read_gemma1(reader: ConfigReader) -> ModelSpec:
    reader.get("hidden_activation", None)  # a key of transformers 4; nothing reads it now
    return _read_gemma(reader)


def _read_windows(reader: ConfigReader, period: int) -> tuple[int | None, ...]:
    """Return the window of each layer.

    If config.json does not list them, every `period`-th layer has none and the others have one.
    """
    default = each_nth_full(reader.get("num_hidden_layers"), period)
    return read_windows(reader, default, reader.get("sliding_window", 4096))


def _read_gemma2(reader: ConfigReader, placement: str) -> ModelSpec:
    reader.get("hidden_act", None)  # nothing reads it
    windows = _read_windows(reader, 2)
    return _read_gemma(reader, _GEMMA2_KEYS, windows=windows, norm_placement=placement)


def gemma2_config(spec: ModelSpec) -> dict[str, Any]:
    """Return the config.json keys of a Gemma 2 or a VaultGemma for `spec`."""
    return llama_config(spec, _GEMMA2_KEYS) | windows_config(spec)


def _read_gemma3_text(reader: ConfigReader) -> ModelSpec:
    """Read the config.json of a Gemma 3 without a vision part."""
    windows = _read_windows(reader, reader.get("sliding_window_pattern", 6))
    ropes = read_ropes(
        reader,
        head_dim=reader.get("head_dim"),
        windows=windows,
        theta=1_000_000.0,
        local_theta=10_000.0,
        local_key="rope_local_base_freq",
    )
    spec = _read_gemma(
        reader,
        _GEMMA3_KEYS,
        windows=windows,
        ropes=ropes,
        norm_placement="sandwich",
        qk_norm="head",
    )
    for key in ("attn_logit_softcapping", "_sliding_window_pattern", "hidden_act"):
        reader.get(key, None)  # transformers keeps the first two and uses none of the three
    return spec


def gemma3_text_config(spec: ModelSpec) -> dict[str, Any]:
    """Return the config.json keys of a Gemma 3 without a vision part for `spec`."""
    return gemma2_config(spec) | {"rope_parameters": ropes_config(spec)}


_TENSORS = gemma_tensors("model")

GEMMA = Family(
    "gemma",
    _read_gemma1,
    functools.partial(llama_config, keys=_KEYS),
    TENSORS,
    defaults=_GEMMA_DEFAULTS,
    settle=_settled,
)
GEMMA2, VAULTGEMMA = (
    Family(
        model_type,
        functools.partial(_read_gemma2, placement=placement),
        gemma2_config,
        _TENSORS,
        defaults=_GEMMA2_DEFAULTS,
    )
    for model_type, placement in (("gemma2", "sandwich"), ("vaultgemma", "pre"))
)
GEMMA3_TEXT = Family(
    "gemma3_text", _read_gemma3_text, gemma3_text_config, _TENSORS, defaults=_GEMMA3_DEFAULTS
)
