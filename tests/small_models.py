"""Model folders on disk, tiny and random: an OPT, a GPT-2 and Llamas, with a tokenizer of bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import byte_tokenizer
import ml_dtypes
import numpy as np
import safetensors.numpy
import tiny

from jaxft import tree as trees
from jaxft.models import families
from jaxft.models.network import base_network
from jaxft.weights import layout, names

VOCABULARY = byte_tokenizer.VOCAB_SIZE

OPT: dict[str, Any] = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "ffn_dim": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 160,
    "word_embed_proj_dim": 24,
    "do_layer_norm_before": True,
    "eos_token_id": 0,
}
GPT2: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": VOCABULARY,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 48,
    "eos_token_id": 0,
}
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "eos_token_id": 0,
}


def write(folder: Path, config: dict[str, Any], *, dtype: str = "float32", seed: int = 0) -> Path:
    """Write random weights in safetensors beside config.json and tokenizer.json."""
    write_weights(folder, config, dtype=dtype, seed=seed)
    byte_tokenizer.write_plain(folder)
    return folder


def write_weights(folder: Path, config: dict[str, Any], *, dtype: str, seed: int) -> None:
    """Write random weights in safetensors beside config.json."""
    family = families.family_of(config)
    network = base_network(family.spec_from_config(config))
    leaves = trees.flatten(tiny.random_leaves(network, seed))
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
    tensors = {
        name: layout.join(leaves, slots).astype(kind)
        for name, slots in names.slots(family, network).items()
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": dtype}))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
