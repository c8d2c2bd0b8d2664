"""Tiny GGUF files, written with the gguf library's own writer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tokenizers import pre_tokenizers

from jaxft.weights.places import tokenizer

# Widths that differ, so that a swapped pair shows; multiples of 32, a block of the small types.
HIDDEN, HEADS, KV_HEADS, MLP, LAYERS, VOCABULARY = 64, 4, 2, 96, 2, 300

METADATA = {
    "general.type": "model",
    "llama.embedding_length": HIDDEN,
    "llama.feed_forward_length": MLP,
    "llama.block_count": LAYERS,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.context_length": 128,
    "llama.attention.layer_norm_rms_epsilon": 0.5,
    "llama.rope.freq_base": 5000.0,
    "llama.rope.dimension_count": HIDDEN // HEADS,
    "llama.vocab_size": VOCABULARY,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.padding_token_id": 2,
}

SPECIALS = ["<|end|>", "<|start|>", "<|stop|>", "<user>"]
TOKENS = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), "12", "Ġt", "he", "Ġthe"]
TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3, 3, 3, 4] + [1] * (len(TOKENS) - 4),
    "tokenizer.ggml.merges": ["1 2", "Ġ t", "h e", "Ġt he"],
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.padding_token_id": 2,
    "tokenizer.chat_template": (
        "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|stop|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
    ),
}

_BLOCK = {
    "attn_norm": (HIDDEN,),
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (HIDDEN // HEADS * KV_HEADS, HIDDEN),
    "attn_v": (HIDDEN // HEADS * KV_HEADS, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_norm": (HIDDEN,),
    "ffn_gate": (MLP, HIDDEN),
    "ffn_up": (MLP, HIDDEN),
    "ffn_down": (HIDDEN, MLP),
}


def write_file(
    path: Path,
    metadata: dict[str, Any],
    tensors: dict[str, np.ndarray],
    kinds: dict[str, gguf.GGMLQuantizationType],
    architecture: str,
) -> Path:
    """Write any GGUF file; `kinds` says how a tensor is stored where it is not float32."""
    writer = gguf.GGUFWriter(path, architecture)
    adders = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in metadata.items():
        adders[type(value)](key, value)
    for name, values in tensors.items():
        kind = kinds.get(name, gguf.GGMLQuantizationType.F32)
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def llama_tensors() -> dict[str, np.ndarray]:
    """The tensors of a tiny Llama under GGUF names, random; tied, as there is no `output`."""
    rng = np.random.default_rng(0)
    shapes = {"token_embd.weight": (VOCABULARY, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.{part}.weight": shape for part, shape in _BLOCK.items()}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def write_llama(tmp_path: Path, llama_tensors: dict[str, np.ndarray]) -> Callable[..., Path]:
    """Return a function that writes a tiny Llama, changed as told; a None drops a key."""

    def write(
        metadata: dict[str, Any] | None = None,
        tensors: dict[str, np.ndarray] | None = None,
        kinds: dict[str, gguf.GGMLQuantizationType] | None = None,
        architecture: str = "llama",
    ) -> Path:
        keys = {k: v for k, v in (METADATA | (metadata or {})).items() if v is not None}
        values = llama_tensors | (tensors or {})
        return write_file(tmp_path / "tiny.gguf", keys, values, kinds or {}, architecture)

    return write


@pytest.fixture
def write_gguf(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes any GGUF: architecture, metadata, tensors in float32."""

    def write(
        architecture: str, metadata: dict[str, Any], tensors: dict[str, np.ndarray] | None = None
    ) -> Path:
        return write_file(tmp_path / "tiny.gguf", metadata, tensors or {}, {}, architecture)

    return write


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Callable[[Path, dict[str, Any]], Any]:
    """Return a function that writes a tokenizer's metadata, changed as told, and loads it."""

    def build(path: Path, changed: dict[str, Any]) -> Any:
        keys = {k: v for k, v in (TOKENIZER | changed).items() if v is not None}
        return tokenizer.load_gguf(write_file(path, keys, {}, {}, "llama"))

    return build
