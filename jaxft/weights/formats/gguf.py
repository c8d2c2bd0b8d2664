"""Read a GGUF model as the Hugging Face model that it was converted from.

`gguf_file` knows the container, and `gguf_architectures` has a table for each architecture. Every
key or tensor that changes the model's numbers is either translated or refused: one that is in no
table is an error.

Source: llama.cpp `convert_hf_to_gguf.py`, read backwards. tests/reference/test_gguf_reference.py
tests bit equality with the models that were converted, and with transformers' own conversion.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.errors import UnsupportedModelError, WeightsError
from jaxft.weights.formats import gguf_file, regions
from jaxft.weights.formats.checkpoint import TensorInfo
from jaxft.weights.formats.gguf_architectures import ARCHITECTURES, Architecture
from jaxft.weights.formats.regions import Region

_TENSOR_NAME = re.compile(r"(?:blk\.(?P<block>\d+)\.)?(?P<part>\w+)\.(?P<leaf>weight|bias)")

# The keys of special tokens' ids in config.json, and in the tokenizer's metadata.
_TOKEN_IDS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}
# Tokens that end a turn besides `eos_token_id`: named by these keys, or in the many files without
# the keys found by their texts. Source: llama.cpp `llama_vocab::impl::load`, `special_eog_ids`.
_END_KEYS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
_END_TEXTS = frozenset({"<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>"})

_REMEDY = "use the model's safetensors weights instead."


@dataclass(frozen=True)
class _Origin:
    """The origin of a tensor in the file, and the changes of the conversion to be undone.

    Attributes:
        name: The tensor's name in the file.
        heads: The number of heads whose rows were reordered; 0 if the rows were not.
        offset: The number that was added to the values.
    """

    name: str
    heads: int
    offset: float


@dataclass(frozen=True)
class GgufCheckpoint:
    """A `Checkpoint` in a GGUF file; every tensor is float32.

    Attributes:
        path: The file.
        file: Its parsed header.
        origins: The origin of each tensor, by its Hugging Face name.
    """

    path: Path
    file: gguf_file.GgufFile
    origins: dict[str, _Origin]

    def infos(self) -> dict[str, TensorInfo]:
        """List the tensors under their Hugging Face names, in the file's order."""
        float32 = np.dtype(np.float32)
        return {
            name: TensorInfo(self.file.tensors[origin.name].shape, float32)
            for name, origin in self.origins.items()
        }

    def read(self, name: str, region: Region | None = None) -> np.ndarray:
        """Dequantize one tensor, or a region of it, with the rows in Hugging Face order.

        For a region, only the blocks that hold it are read; if the file has the rows in another
        order, whole heads are read.

        Raises:
            WeightsError: There is no such tensor, or it cannot be read.
        """
        if name not in self.origins:
            raise WeightsError(
                f"{self.path}: there is no tensor {name}.",
                "Expected a complete model; convert or download it again.",
            )
        origin = self.origins[name]
        shape = self.file.tensors[origin.name].shape
        region = regions.whole(shape) if region is None else region
        if not origin.heads:
            values = self.file.read(origin.name, region)
            if origin.offset:
                values -= np.float32(origin.offset)
            return values
        rows, *columns = region
        width = shape[0] // origin.heads
        heads = slice(rows.start // width, -(-rows.stop // width))
        around = slice(heads.start * width, heads.stop * width)
        values = self.file.read(origin.name, (around, *columns))
        values = unpermute(values, heads.stop - heads.start)
        return values[rows.start - around.start : rows.stop - around.start]


def open_gguf(path: Path) -> GgufCheckpoint:
    """Open a GGUF model, reading its header only.

    Raises:
        WeightsError: The file is missing, truncated or damaged.
        UnsupportedModelError: Its architecture, or something in it that changes the model's
            numbers, is not handled.
    """
    file = gguf_file.read_gguf(path)
    architecture, config = _architecture_of(file), gguf_config(path)
    origins: dict[str, _Origin] = {}
    for source in file.tensors:
        matched = _TENSOR_NAME.fullmatch(source)
        block, part, leaf = matched.group("block", "part", "leaf") if matched else (None, "", "")
        if block is None and leaf == "weight" and part in architecture.rope_tensors:
            continue
        table = architecture.tensors if block is None else architecture.block_tensors
        if part not in table or (leaf == "bias" and part not in architecture.biased):
            raise UnsupportedModelError(
                f"{path}: tensor {source} is not part of the architecture as it is handled.",
                f"Expected a plain {config['model_type']} model; {_REMEDY}",
            )
        prefix = "" if block is None else f"model.layers.{block}."
        heads = config[architecture.permuted[part]] if part in architecture.permuted else 0
        offset = architecture.norm_offset if part.endswith("norm") else 0.0
        origins[f"{prefix}{table[part]}.{leaf}"] = _Origin(source, heads, offset)
    return GgufCheckpoint(path, file, origins)


def gguf_config(path: Path) -> dict[str, Any]:
    """Translate the metadata of a GGUF file to the content of a config.json.

    Raises:
        WeightsError: The file is missing or damaged, or lacks a required key.
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
        "model_type": architecture.model_type,
        # Source: llama.cpp `llama_model::load_hparams`, for the defaults of missing keys.
        "num_key_value_heads": found.get("attention.head_count_kv", config["num_attention_heads"]),
        "head_dim": _head_dim(path, config, found),
        "vocab_size": _required(path, prefix, "vocab_size", counted | found),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }

    def read(name: str) -> np.ndarray | None:
        return file.read(f"{name}.weight") if f"{name}.weight" in file.tensors else None

    try:
        config = architecture.finish(config, found, read)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{path}: {error.found}", error.remedy) from error
    return config | _token_ids(file.metadata)


def unpermute(values: np.ndarray, num_heads: int) -> np.ndarray:
    """Undo the reordering of q and k rows for interleaved rotary pairs.

    A GGUF pairs rows 2i and 2i+1 of a head, Hugging Face rows i and i + half.

    Source: llama.cpp `convert_hf_to_gguf.py: LlamaModel.permute`, inverted.
    """
    half = values.shape[0] // num_heads // 2
    pairs = values.reshape(num_heads, half, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _architecture_of(file: gguf_file.GgufFile) -> Architecture:
    """Return the table for the architecture of a file."""
    name = file.metadata.get("general.architecture")
    # Adapters, projectors and others name the architecture of their base.
    kind = file.metadata.get("general.type", "model")
    if name not in ARCHITECTURES or kind != "model":
        raise UnsupportedModelError(
            f"{file.path}: a GGUF {kind} of architecture {name}.",
            f"Expected a model of architecture {', '.join(ARCHITECTURES)}; {_REMEDY}",
        )
    return ARCHITECTURES[name]


def _refuse_unhandled(
    path: Path, prefix: str, architecture: Architecture, found: dict[str, Any]
) -> None:
    """Raise for a key that is in no table, or whose value differs from layer to layer."""
    for key, value in found.items():
        if not architecture.is_handled(key, value):
            raise UnsupportedModelError(
                f"{path}: {prefix}{key} is {value!r:.80}.",
                f"It changes the model in a way that is not handled for GGUF; {_REMEDY}",
            )


def _required(path: Path, prefix: str, key: str, found: dict[str, Any]) -> Any:
    """Return the value of a required key."""
    if key not in found:
        raise WeightsError(
            f"{path}: the key {prefix}{key} is missing.",
            "Expected the metadata of a complete model; convert or download it again.",
        )
    return found[key]


def _head_dim(path: Path, config: dict[str, Any], found: dict[str, Any]) -> int:
    """Return the width of a head, which must be the same for keys and values."""
    default = config["hidden_size"] // config["num_attention_heads"]
    head_dim = found.get("attention.key_length", default)
    if found.get("attention.value_length", head_dim) != head_dim:
        raise UnsupportedModelError(
            f"{path}: attention.value_length is {found['attention.value_length']} "
            f"where a head's width is {head_dim}.",
            f"Expected heads of one width; {_REMEDY}",
        )
    return head_dim


def _token_ids(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the ids of special tokens; `eos_token_id` is a list if several tokens end a turn."""
    ids = {name: metadata[key] for name, key in _TOKEN_IDS.items() if key in metadata}
    if "eos_token_id" in ids:
        ends = {ids["eos_token_id"], *(metadata[key] for key in _END_KEYS if key in metadata)}
        tokens = metadata.get("tokenizer.ggml.tokens", [])
        ends |= {number for number, token in enumerate(tokens) if token in _END_TEXTS}
        ids["eos_token_id"] = sorted(ends) if len(ends) > 1 else ids["eos_token_id"]
    return ids
