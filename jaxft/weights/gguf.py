"""Read a GGUF model as the Hugging Face model it was converted from.

Separate from `gguf_file`, which knows the container: here is what its keys and tensors mean. One
table an architecture; a further one is a further entry. The invariant: whatever in the file
changes the model's numbers is either translated or refused, never skipped, so a key or tensor
that no table names is an error.

Source: llama.cpp `convert_hf_to_gguf.py`, class LlamaModel, read backwards; bit equality with
transformers' own conversion is held by tests/reference/test_gguf_reference.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.errors import UnsupportedModelError, WeightsError
from jaxft.weights import gguf_file
from jaxft.weights.checkpoint import TensorInfo


@dataclass(frozen=True)
class _Architecture:
    """How one GGUF architecture says what a Hugging Face model says.

    Attributes:
        config: The config.json key for each required `<architecture>.` key.
        optional: Keys that may be absent, and are looked at one by one.
        neutral: Values at which a key that is otherwise not handled changes nothing.
        model_class: The Hugging Face class.
        fixed: What else config.json says of every model of this architecture.
        tensors: The module's Hugging Face name for each tensor outside the blocks.
        block_tensors: The same inside a block, below `model.layers.N`.
        permuted: Tensors whose rows are reordered for another rotary layout, and the
            config.json key that counts their heads.
    """

    config: dict[str, str]
    optional: frozenset[str]
    neutral: dict[str, Any]
    model_class: str
    fixed: dict[str, Any]
    tensors: dict[str, str]
    block_tensors: dict[str, str]
    permuted: dict[str, str]


_LLAMA = _Architecture(
    config={
        "embedding_length": "hidden_size",
        "feed_forward_length": "intermediate_size",
        "block_count": "num_hidden_layers",
        "attention.head_count": "num_attention_heads",
        "context_length": "max_position_embeddings",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    },
    optional=frozenset(
        {
            "attention.head_count_kv",
            "attention.key_length",
            "attention.value_length",
            "rope.dimension_count",
            "rope.freq_base",
            "vocab_size",
        }
    ),
    neutral={
        "expert_count": 0,
        "expert_used_count": 0,
        "rope.scaling.type": "none",
        "tensor_data_layout": "Meta AI original pth",
    },
    model_class="LlamaForCausalLM",
    fixed={
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    },
    tensors={
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
    },
    block_tensors={
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    },
    permuted={"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"},
)

_ARCHITECTURES = {"llama": _LLAMA}

_TENSOR_NAME = re.compile(r"(?:blk\.(?P<block>\d+)\.)?(?P<part>\w+)\.weight")

# config.json's key for each id that the tokenizer's metadata gives.
_TOKEN_IDS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}


@dataclass(frozen=True)
class GgufCheckpoint:
    """A `Checkpoint` in a GGUF file; every tensor is float32.

    Attributes:
        path: The file.
        file: Its parsed header.
        sources: The file's own name for each Hugging Face name.
        heads: The number of heads of each tensor whose rows are to be put back in order.
    """

    path: Path
    file: gguf_file.GgufFile
    sources: dict[str, str]
    heads: dict[str, int]

    def infos(self) -> dict[str, TensorInfo]:
        """List the tensors under their Hugging Face names, in the file's order."""
        float32 = np.dtype(np.float32)
        return {
            name: TensorInfo(self.file.tensors[source].shape, float32)
            for name, source in self.sources.items()
        }

    def read(self, name: str) -> np.ndarray:
        """Dequantise one tensor, rows in Hugging Face order.

        Raises:
            WeightsError: No such tensor, or the file cannot give it.
        """
        if name not in self.sources:
            raise WeightsError(
                f"{self.path}: there is no tensor {name}.",
                "Expected a complete model; convert or download it again.",
            )
        values = self.file.read(self.sources[name])
        return unpermute(values, self.heads[name]) if name in self.heads else values


def open_gguf(path: Path) -> GgufCheckpoint:
    """Open a GGUF model, reading its header only.

    Raises:
        WeightsError: The file is missing, truncated or damaged.
        UnsupportedModelError: Its architecture, or something in it that changes the model's
            numbers, is not handled.
    """
    file = gguf_file.read_gguf(path)
    architecture, config = _architecture_of(file), gguf_config(path)
    sources: dict[str, str] = {}
    heads: dict[str, int] = {}
    for source in file.tensors:
        matched = _TENSOR_NAME.fullmatch(source)
        block, part = matched.group("block", "part") if matched else (None, "")
        table = architecture.tensors if block is None else architecture.block_tensors
        if part not in table:
            raise UnsupportedModelError(
                f"{path}: tensor {source} is not part of the architecture as it is handled.",
                "Expected a plain Llama model; use its safetensors weights instead.",
            )
        prefix = "" if block is None else f"model.layers.{block}."
        name = f"{prefix}{table[part]}.weight"
        sources[name] = source
        if part in architecture.permuted:
            heads[name] = config[architecture.permuted[part]]
    return GgufCheckpoint(path, file, sources, heads)


def gguf_config(path: Path) -> dict[str, Any]:
    """Translate a GGUF file's metadata to what config.json would say.

    Raises:
        WeightsError: The file is missing or damaged, or lacks a key that is needed.
        UnsupportedModelError: Its architecture, or a key that changes the model's numbers, is
            not handled.
    """
    file = gguf_file.read_gguf(path)
    architecture = _architecture_of(file)
    prefix = file.metadata["general.architecture"] + "."
    found = {
        key.removeprefix(prefix): value
        for key, value in file.metadata.items()
        if key.startswith(prefix)
    }
    _refuse_unhandled(path, prefix, architecture, found)
    config = architecture.fixed | {
        name: _required(path, prefix, key, found) for key, name in architecture.config.items()
    }
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    counted = {} if tokens is None else {"vocab_size": len(tokens)}
    config |= {
        "architectures": [architecture.model_class],
        # Source: llama.cpp `llama_model::load_hparams`: what a missing key means.
        "num_key_value_heads": found.get("attention.head_count_kv", config["num_attention_heads"]),
        "head_dim": _head_dim(path, config, found),
        "rope_parameters": {
            "rope_theta": found.get("rope.freq_base", 10000.0),
            "rope_type": "default",
        },
        "vocab_size": _required(path, prefix, "vocab_size", counted | found),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    ids = {name: file.metadata[key] for name, key in _TOKEN_IDS.items() if key in file.metadata}
    return config | ids


def unpermute(values: np.ndarray, num_heads: int) -> np.ndarray:
    """Undo the reordering of q and k rows for interleaved rotary pairs.

    A GGUF pairs rows 2i and 2i+1 of a head, Hugging Face rows i and i + half.

    Source: llama.cpp `convert_hf_to_gguf.py: LlamaModel.permute`, inverted.
    """
    half = values.shape[0] // num_heads // 2
    pairs = values.reshape(num_heads, half, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _architecture_of(file: gguf_file.GgufFile) -> _Architecture:
    """Look up the table for a file's architecture."""
    name = file.metadata.get("general.architecture")
    # Adapters, projectors and the like carry their base's architecture.
    kind = file.metadata.get("general.type", "model")
    if name not in _ARCHITECTURES or kind != "model":
        raise UnsupportedModelError(
            f"{file.path}: a GGUF {kind} of architecture {name}.",
            f"Expected a model of architecture {', '.join(_ARCHITECTURES)}; "
            "use the model's safetensors weights instead.",
        )
    return _ARCHITECTURES[name]


def _refuse_unhandled(
    path: Path, prefix: str, architecture: _Architecture, found: dict[str, Any]
) -> None:
    """Refuse a key of the architecture that no table names, or a value for each layer."""
    for key, value in found.items():
        is_handled = key in architecture.config or key in architecture.optional
        is_neutral = key in architecture.neutral and architecture.neutral[key] == value
        if not is_neutral and (not is_handled or isinstance(value, list)):
            raise UnsupportedModelError(
                f"{path}: {prefix}{key} is {value!r:.80}.",
                "It changes the model in a way that is not handled for GGUF; "
                "use the model's safetensors weights instead.",
            )


def _required(path: Path, prefix: str, key: str, found: dict[str, Any]) -> Any:
    """Return the value of a key without which there is no model."""
    if key not in found:
        raise WeightsError(
            f"{path}: the key {prefix}{key} is missing.",
            "Expected the metadata of a complete model; convert or download it again.",
        )
    return found[key]


def _head_dim(path: Path, config: dict[str, Any], found: dict[str, Any]) -> int:
    """Return the width of a head, refusing widths that differ in keys, values or rotation."""
    default = config["hidden_size"] // config["num_attention_heads"]
    head_dim = found.get("attention.key_length", default)
    for key in ("attention.value_length", "rope.dimension_count"):
        if found.get(key, head_dim) != head_dim:
            raise UnsupportedModelError(
                f"{path}: {key} is {found[key]} where a head's width is {head_dim}.",
                "Expected heads of one width, rotated whole; "
                "use the model's safetensors weights instead.",
            )
    return head_dim
