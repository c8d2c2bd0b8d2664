"""Load a model's tokenizer from its folder, or from the metadata of a GGUF file.

Both give a fast tokenizer of transformers with the model's chat template, whose special tokens are
single ids. (The GGUF reader of transformers is not used: it needs torch, and does not know how some
models split text.)
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxft.errors import UnsupportedModelError, WeightsError
from jaxft.weights.formats import gguf_file, gguf_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Files with the vocabulary of a tokenizer. Source: the `VOCAB_FILES_NAMES` of transformers.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model", "vocab.txt", "spiece.model")
# All files of a tokenizer. Source: the `*_FILE` names in its `tokenization_utils_base.py`.
FILES = (
    *_VOCABULARIES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
)

_ADVICE = "PyTorch was not found"


def load_folder(folder: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a model folder through transformers, offline.

    Raises:
        WeightsError: The folder has no tokenizer, or a damaged one.
        UnsupportedModelError: Its tokenizer has no fast form, or needs its own code.
    """
    transformers = _import_transformers()
    # Without a vocabulary, transformers would return an empty tokenizer for some families.
    check_vocabulary(folder)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    # Damaged files raise many kinds of errors; the tokenizers library raises Exception.
    except Exception as error:
        raise WeightsError(
            f"{folder}: no tokenizer can be loaded from it ({type(error).__name__}: {error}).",
            "Expected tokenizer.json and tokenizer_config.json beside the weights.",
        ) from error
    if not tokenizer.is_fast:
        raise UnsupportedModelError(
            f"{folder}: {type(tokenizer).__name__} has no fast tokenizer.",
            "Expected a tokenizer.json; convert the tokenizer with transformers first.",
        )
    return tokenizer


def is_in(folder: Path) -> bool:
    """Return whether a folder has a file with the vocabulary of a tokenizer."""
    return any((folder / name).exists() for name in _VOCABULARIES)


def check_vocabulary(folder: Path) -> None:
    """Raise if a model folder has no file with the vocabulary of a tokenizer.

    Raises:
        WeightsError: There is no such file.
    """
    if not is_in(folder):
        raise WeightsError(
            f"{folder}: no tokenizer can be loaded from it (it has none of their files).",
            "Expected tokenizer.json and tokenizer_config.json beside the weights.",
        )


def load_gguf(path: Path) -> PreTrainedTokenizerFast:
    """Build the tokenizer that a GGUF file describes.

    Raises:
        WeightsError: The file is damaged, or has no tokenizer.
        UnsupportedModelError: The kind of tokenizer, or its way to split text, is not supported.
    """
    metadata = gguf_file.read_gguf(path).metadata
    tokenizer, roles = gguf_tokenizer.build(path, metadata)
    fast = _import_transformers().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **roles
    )
    fast.chat_template = metadata.get("tokenizer.chat_template")
    return fast


def has_template_folder(folder: Path) -> bool:
    """Return whether the tokenizer of a model folder has a chat template, without loading it.

    Raises:
        WeightsError: Its tokenizer_config.json is damaged.

    Source: transformers `tokenization_utils_base.py: CHAT_TEMPLATE_FILE`.
    """
    if (folder / "chat_template.jinja").is_file():
        return True
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return False
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read ({error}).", "Copy it anew.") from error
    return isinstance(config, dict) and bool(config.get("chat_template"))


def has_template_gguf(path: Path) -> bool:
    """Return whether a GGUF file has a chat template.

    Raises:
        WeightsError: The file is missing or damaged.
    """
    return bool(gguf_file.read_gguf(path).metadata.get("tokenizer.chat_template"))


def _import_transformers() -> Any:
    """Import transformers without its warning that torch is missing, which jaxft does not need."""
    logging.getLogger("transformers").addFilter(_is_not_advice)
    import transformers

    return transformers


def _is_not_advice(record: logging.LogRecord) -> bool:
    return _ADVICE not in record.getMessage()
