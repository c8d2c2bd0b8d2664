"""Tiny models of transformers written as GGUF files, the way llama.cpp's converter writes them.

Tensor names are the gguf library's own, so that no table here can share a mistake with ours.

Source: llama.cpp `convert_hf_to_gguf.py`, classes LlamaModel, Qwen2Model, Qwen3Model, Gemma3Model
and Phi3MiniModel.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import transformers

NAMES = {"gemma3_text": "gemma3"}  # where the architecture is not called as the model type


def write(model: transformers.PreTrainedModel, path: Path, extra: dict[str, Any]) -> Path:
    """Write a model in float32; `extra` are keys of the architecture beyond the usual ones."""
    config = model.config
    name = NAMES.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    ropes = config.rope_parameters
    writer.add_rope_freq_base(ropes.get("full_attention", ropes)["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if name in ("qwen3", "gemma3"):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in extra.items():
        add[type(value)](f"{name}.{key}", value)
    for tensor, values in tensors(model, name).items():
        writer.add_tensor(tensor, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors(model: transformers.PreTrainedModel, name: str) -> dict[str, np.ndarray]:
    """Return what the converter stores, by the library's names."""
    config = model.config
    architecture = next(kind for kind, said in gguf.MODEL_ARCH_NAMES.items() if said == name)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    stored = {}
    for theirs, values in model.state_dict().items():
        if theirs == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = values.numpy()
        if name == "llama" and ".q_proj." in theirs:
            array = permute(array, config.num_attention_heads)
        if name == "llama" and ".k_proj." in theirs:
            array = permute(array, config.num_key_value_heads)
        if name == "gemma3" and theirs.endswith("norm.weight"):
            array = array + np.float32(1.0)
        stored[names.get_name(theirs, (".weight", ".bias"))] = array
    return stored | rope_tensors(config.rope_parameters)


def permute(values: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorder rows for rotary pairs that are neighbours."""
    halves = values.reshape(num_heads, 2, values.shape[0] // num_heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def rope_tensors(rope: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the factors that frequencies are divided by, for heads of width 16."""
    if rope.get("rope_type") == "longrope":
        return {
            f"rope_factors_{length}.weight": np.array(rope[f"{length}_factor"], np.float32)
            for length in ("long", "short")
        }
    if rope.get("rope_type") != "llama3":
        return {}
    low, high, original = (
        rope[key]
        for key in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    factors = []
    for channel in range(0, 16, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (channel / 16)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(rope["factor"])
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return {"rope_freqs.weight": np.array(factors, np.float32)}
