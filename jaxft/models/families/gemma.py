"""Gemma 1, 2 and 3, and VaultGemma: norms of a scale of one plus what is learned.

Embeddings are scaled. From Gemma 2 on, outputs are normed as well, and layers alternate between
windows and all tokens. Gemma 2 caps scores and logits; Gemma 3 norms queries and keys and turns
them by another base in layers with a window. VaultGemma is a Gemma 2 that norms no outputs.

Source: transformers `configuration_gemma.py`, `configuration_gemma2.py`,
`configuration_gemma3.py`, `configuration_vaultgemma.py` and the modeling files beside them
(defaults and names).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxft.models.families.activation_names import activation_name, read_activation
from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import Family, Tensor, norm, replaced
from jaxft.models.families.keys import with_keys
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
from jaxft.models.spec import ModelSpec, Rope

_KEYS = with_keys(KEYS, ATTENTION_BIAS)
_ACTIVATION = "gelu_pytorch_tanh"
_GEMMA_DEFAULTS = {"num_key_value_heads": 16, "head_dim": 256, "tie_word_embeddings": True}
_GEMMA2_DEFAULTS = _GEMMA_DEFAULTS | {"num_key_value_heads": 4}
# Files of Gemma 3's text part leave out what is the class's default, sizes included.
_GEMMA3_DEFAULTS = _GEMMA2_DEFAULTS | {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
}


def gemma_tensors(base: str) -> tuple[Tensor, ...]:
    """Return the name table of a Gemma from 2 on, whose modules but the head are below `base`."""
    layer = f"{base}.layers.{{layer}}"
    return replaced(
        llama_tensors(base),
        *norm("attn_out_norm", f"{layer}.post_attention_layernorm"),
        *norm("mlp_norm", f"{layer}.pre_feedforward_layernorm"),
        *norm("mlp_out_norm", f"{layer}.post_feedforward_layernorm"),
    )


def _read_gemma(
    reader: ConfigReader,
    windows: tuple[int | None, ...] | None = None,
    ropes: tuple[Rope, ...] | None = None,
) -> ModelSpec:
    """Read what all Gemmas share, without `finish`; arguments as of `read_llama`."""
    reader.require("use_bidirectional_attention", (False, None))
    norm = dataclasses.replace(RMS_NORM, scale="offset")
    spec = read_llama(reader, _KEYS, norm=norm, windows=windows, ropes=ropes)
    return dataclasses.replace(spec, embed_scale=spec.model_dim**0.5)


def gemma_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a Gemma 1."""
    named = config.get("hidden_act", _ACTIVATION)
    # The first files mean the approximation by it that the models were trained with.
    named = _ACTIVATION if named == "gelu" else named
    reader = ConfigReader(_GEMMA_DEFAULTS | dict(config) | {"hidden_act": named})
    reader.get("hidden_activation", None)  # of transformers 4, which nothing reads now
    spec = _read_gemma(reader)
    reader.finish()
    return spec


def gemma_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of a Gemma 1 says of `spec`."""
    return llama_config(spec, _KEYS)


def _read_windows(reader: ConfigReader, period: int) -> tuple[int | None, ...]:
    """Return the window of each layer: unless it is listed, all but each `period`-th has one."""
    default = each_nth_full(reader.get("num_hidden_layers"), period)
    return read_windows(reader, default, reader.get("sliding_window", 4096))


def _with_gemma2(
    spec: ModelSpec, reader: ConfigReader, *, final_cap: float | None, placement: Any
) -> ModelSpec:
    """Return `spec` with what Gemmas from 2 on have and the first had not."""
    return dataclasses.replace(
        spec,
        attn_scale=reader.get("query_pre_attn_scalar", 256) ** -0.5,
        activation=read_activation(reader.get("hidden_activation", _ACTIVATION)),
        logit_softcap=reader.get("final_logit_softcapping", final_cap),
        norm_placement=placement,
    )


def _gemma2_spec(config: Mapping[str, Any], placement: str) -> ModelSpec:
    reader = ConfigReader(_GEMMA2_DEFAULTS | dict(config))
    spec = _read_gemma(reader, _read_windows(reader, 2))
    spec = _with_gemma2(spec, reader, final_cap=30.0, placement=placement)
    cap = reader.get("attn_logit_softcapping", 50.0)
    reader.finish()
    return dataclasses.replace(spec, attn_softcap=cap)


def gemma2_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a Gemma 2."""
    return _gemma2_spec(config, "sandwich")


def vaultgemma_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a VaultGemma."""
    return _gemma2_spec(config, "pre")


def gemma2_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of a Gemma 2 or a VaultGemma says of `spec`."""
    written = gemma_config(spec) | windows_config(spec)
    del written["hidden_act"]
    return written | {
        "hidden_activation": activation_name(spec.activation),
        "query_pre_attn_scalar": round(spec.attn_scale**-2),
        "attn_logit_softcapping": spec.attn_softcap,
        "final_logit_softcapping": spec.logit_softcap,
    }


def gemma3_text_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the config.json of a Gemma 3 without a vision part."""
    reader = ConfigReader(_GEMMA3_DEFAULTS | dict(config))
    windows = _read_windows(reader, reader.get("sliding_window_pattern", 6))
    ropes = read_ropes(
        reader,
        head_dim=reader.get("head_dim"),
        windows=windows,
        theta=1_000_000.0,
        local_theta=10_000.0,
        local_key="rope_local_base_freq",
    )
    spec = _read_gemma(reader, windows, ropes)
    spec = _with_gemma2(spec, reader, final_cap=None, placement="sandwich")
    for key in ("attn_logit_softcapping", "_sliding_window_pattern"):
        reader.get(key, None)  # transformers keeps both and uses neither
    reader.finish()
    return dataclasses.replace(spec, qk_norm="head")


def gemma3_text_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the config.json of a Gemma 3 without a vision part says of `spec`."""
    return gemma2_config(spec) | {"rope_parameters": ropes_config(spec)}


_TENSORS = gemma_tensors("model")

GEMMA = Family("gemma", gemma_spec, gemma_config, TENSORS)
GEMMA2 = Family("gemma2", gemma2_spec, gemma2_config, _TENSORS)
GEMMA3_TEXT = Family("gemma3_text", gemma3_text_spec, gemma3_text_config, _TENSORS)
VAULTGEMMA = Family("vaultgemma", vaultgemma_spec, gemma2_config, _TENSORS)
