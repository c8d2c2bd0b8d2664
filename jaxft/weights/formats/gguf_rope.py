"""The rotary embedding of a GGUF model as `rope_parameters` of config.json.

A GGUF describes it partly in keys and partly in tensors of factors, which divide the frequency of
each pair of channels. The resulting frequencies are those that llama.cpp uses, or there is an
error.

Source: llama.cpp `llama_model::load_hparams` (what missing keys mean), `get_rope_factors`,
`ggml_rope_yarn_corr_dims`; `convert_hf_to_gguf.py`, `generate_extra_tensors` of LlamaModel and
Phi3MiniModel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxft.errors import UnsupportedModelError

# Returns the values of a tensor outside the blocks, or None if the file has no such tensor.
ReadTensor = Callable[[str], np.ndarray | None]

FACTORS = "rope_freqs"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long", "rope_factors_short"

# The scaling of Llama 3.1 and its successors. A file has only the factors that follow from it.
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_REMEDY = "Use the model's safetensors weights instead."


def one(config: Mapping[str, Any], keys: Mapping[str, Any], read: ReadTensor) -> dict[str, Any]:
    """Return the rope of a model that rotates whole heads, and does not depend on the text length.

    Raises:
        UnsupportedModelError: The scaling is not supported, or only a part of a head is rotated.
    """
    head_dim = config["head_dim"]
    rotary_dim = keys.get("rope.dimension_count", head_dim)
    if rotary_dim != head_dim:
        raise UnsupportedModelError(
            f"The GGUF's rope.dimension_count is {rotary_dim} where a head's width is {head_dim}.",
            f"Expected heads that are turned whole. {_REMEDY}",
        )
    written = {"rope_theta": keys.get("rope.freq_base", 10000.0), "rope_type": "default"}
    scaling, factors = _scaling(config, keys), read(FACTORS)
    if factors is None:
        return written | scaling
    if scaling:
        raise UnsupportedModelError(
            f"The GGUF has a rope of kind {scaling['rope_type']} and {FACTORS} besides.",
            f"Expected one of the two. {_REMEDY}",
        )
    return written | _from_factors(config, written["rope_theta"], factors)


def by_length(
    config: Mapping[str, Any], keys: Mapping[str, Any], read: ReadTensor
) -> dict[str, Any]:
    """Return the rope of a Phi-3, which may have other factors for long texts than for short ones.

    Raises:
        UnsupportedModelError: There is only one set of factors, or a magnitude without factors.
    """
    written = {"rope_theta": keys.get("rope.freq_base", 10000.0), "rope_type": "default"}
    rotary_dim = keys.get("rope.dimension_count", config["head_dim"])
    if rotary_dim != config["head_dim"]:
        written["partial_rotary_factor"] = rotary_dim / config["head_dim"]
    magnitude = keys.get("rope.scaling.attn_factor")
    short, long = read(SHORT_FACTORS), read(LONG_FACTORS)
    if (short is None) != (long is None) or (short is None and magnitude not in (None, 1.0)):
        raise UnsupportedModelError(
            f"The GGUF's rope has a magnitude of {magnitude}, "
            f"{'no' if short is None else 'some'} short and "
            f"{'no' if long is None else 'some'} long factors.",
            f"Expected all three or none. {_REMEDY}",
        )
    if short is None or long is None:
        return written
    return written | {
        "rope_type": "longrope",
        "short_factor": short.tolist(),
        "long_factor": long.tolist(),
        "attention_factor": 1.0 if magnitude is None else magnitude,
    }


def _scaling(config: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the keys below `rope.scaling`; the result is empty if they change nothing."""
    kind = keys.get("rope.scaling.type", "linear")
    factor = keys.get("rope.scaling.factor", 0.0) or 1.0
    if kind == "none" or (kind in ("linear", "yarn") and factor == 1.0):
        return {}
    if kind == "linear":
        return {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        key = "rope.scaling.original_context_length"
        original = keys.get(key, config["max_position_embeddings"])
        return {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original}
    raise UnsupportedModelError(
        f"The GGUF's rope.scaling.type is {kind}.", f"Expected none, linear or yarn. {_REMEDY}"
    )


def _from_factors(config: Mapping[str, Any], theta: float, factors: np.ndarray) -> dict[str, Any]:
    """Return Llama 3's scaling if the factors are those; other factors are written as longrope."""
    stretch = float(factors.max())
    if factors.shape == (config["head_dim"] // 2,) and stretch > 1.0:
        expected = _llama3_factors(config["head_dim"], theta, stretch)
        if np.allclose(factors, expected, rtol=1e-5, atol=0.0):
            return {"rope_type": "llama3", "factor": stretch, **_LLAMA3}
    return {
        "rope_type": "longrope",
        "short_factor": factors.tolist(),
        "long_factor": factors.tolist(),
        "attention_factor": 1.0,
        "original_max_position_embeddings": config["max_position_embeddings"],
    }


def _llama3_factors(head_dim: int, theta: float, stretch: float) -> np.ndarray:
    """Return the factors by which Llama 3's scaling divides the frequencies."""
    frequencies = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    turns = _LLAMA3["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1 / ((1 - smooth) / stretch + smooth)
