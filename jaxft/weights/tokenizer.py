"""Make the model's tokenizer: from its folder, or from the metadata of a GGUF file.

Separate because transformers' own GGUF reader needs torch and splits digits otherwise than the
model was trained with. The invariant: what comes back is a fast tokenizer whose special tokens
encode as single ids, with the model's chat template, whichever the source.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from jaxft.errors import UnsupportedModelError, WeightsError
from jaxft.weights import gguf_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# How text is cut before merging, by `tokenizer.ggml.pre`. Source: llama.cpp
# `llama_vocab::impl::load` and the tokenizer.json of the models that its converter names so.
_PRE_TOKENIZERS = {
    "gpt-2": lambda: _byte_level(),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), _byte_level()]
    ),
}

# Special tokens by their transformers name. Source: `gguf.constants.Keys.Tokenizer`.
_ROLES = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}

# `gguf.TokenType`: tokens that text must match whole, and of these the special ones.
_CONTROL, _USER_DEFINED = 3, 4

# Files that a tokenizer's tokens are in. Source: the `VOCAB_FILES_NAMES` of transformers.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model", "vocab.txt", "spiece.model")

_ADVICE = "PyTorch was not found"


def load_folder(folder: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a model folder through transformers, offline.

    Raises:
        WeightsError: The folder has no tokenizer, or a damaged one.
        UnsupportedModelError: Its tokenizer has no fast form, or needs code of its own.
    """
    transformers = _import_transformers()
    if not any((folder / name).exists() for name in _VOCABULARIES):
        # Of a family whose tokenizer it knows, transformers would return one without a token.
        raise WeightsError(
            f"{folder}: no tokenizer can be loaded from it (it has none of their files).",
            "Expected tokenizer.json and tokenizer_config.json beside the weights.",
        )
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    # Damage shows as whatever the library runs into; the tokenizers library raises Exception.
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


def load_gguf(path: Path) -> PreTrainedTokenizerFast:
    """Build the tokenizer that a GGUF file describes.

    Raises:
        WeightsError: The file is damaged, or has no tokenizer.
        UnsupportedModelError: It is of a kind, or cuts text in a way, that is not handled.
    """
    metadata = gguf_file.read_gguf(path).metadata
    _check(path, metadata)
    try:
        tokenizer, roles = _byte_pair_encoder(metadata), _roles(metadata)
    # The tokenizers library raises Exception for merges of tokens that are not there.
    except Exception as error:
        raise WeightsError(
            f"{path}: the tokenizer is damaged ({type(error).__name__}: {error}).",
            "Expected tokens, types and merges that fit together; download the file again.",
        ) from error
    fast = _import_transformers().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **roles
    )
    fast.chat_template = metadata.get("tokenizer.chat_template")
    return fast


def has_template_folder(folder: Path) -> bool:
    """Say whether the tokenizer of a model folder has a chat template, without loading it.

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
    """Say whether a GGUF file has a chat template.

    Raises:
        WeightsError: The file is missing or damaged.
    """
    return bool(gguf_file.read_gguf(path).metadata.get("tokenizer.chat_template"))


def _import_transformers() -> Any:
    """Import transformers without its advice that torch is missing, which is as it should be."""
    logging.getLogger("transformers").addFilter(_is_not_advice)
    import transformers

    return transformers


def _is_not_advice(record: logging.LogRecord) -> bool:
    return _ADVICE not in record.getMessage()


def _check(path: Path, metadata: dict[str, Any]) -> None:
    """Refuse a tokenizer that cannot be built exactly."""
    missing = [
        key
        for key in ("model", "tokens", "token_type", "merges")
        if f"tokenizer.ggml.{key}" not in metadata
    ]
    model = metadata.get("tokenizer.ggml.model", "none")
    cut = metadata.get("tokenizer.ggml.pre", "default")
    remedy = "Use the model's folder with its tokenizer.json instead."
    if model not in ("gpt2", "none"):
        raise UnsupportedModelError(
            f"{path}: its tokenizer is of the kind {model}.",
            f"Expected byte-level BPE (gpt2). {remedy}",
        )
    if missing:
        raise WeightsError(
            f"{path}: the tokenizer lacks {', '.join(missing)}.",
            f"Expected tokens, their types and merges. {remedy}",
        )
    if cut not in _PRE_TOKENIZERS:
        raise UnsupportedModelError(
            f"{path}: its tokenizer cuts text as {cut}.",
            f"Expected one of {', '.join(_PRE_TOKENIZERS)}. {remedy}",
        )
    if metadata.get("tokenizer.ggml.add_space_prefix"):
        raise UnsupportedModelError(f"{path}: its tokenizer puts a space first.", remedy)


def _byte_pair_encoder(metadata: dict[str, Any]) -> Tokenizer:
    """Build the tokenizer proper: vocabulary, merges, cutting, added tokens."""
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[metadata["tokenizer.ggml.pre"]]()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [
            AddedToken(token, normalized=False, special=kind == _CONTROL)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (_CONTROL, _USER_DEFINED)
        ]
    )
    tokenizer.post_processor = _frame(metadata)
    return tokenizer


def _byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _roles(metadata: dict[str, Any]) -> dict[str, str]:
    """Return the special tokens by their transformers names."""
    tokens = metadata["tokenizer.ggml.tokens"]
    return {role: tokens[metadata[key]] for role, key in _ROLES.items() if key in metadata}


def _frame(metadata: dict[str, Any]) -> processors.PostProcessor | None:
    """Put the tokens around a text that the model expects there."""
    has_bos = metadata.get("tokenizer.ggml.add_bos_token", False)
    has_eos = metadata.get("tokenizer.ggml.add_eos_token", False)
    if not has_bos and not has_eos:
        return None
    roles = _roles(metadata)
    return processors.TemplateProcessing(
        single=[*[roles["bos_token"]] * has_bos, "$A", *[roles["eos_token"]] * has_eos],
        special_tokens=[
            (roles[role], metadata[_ROLES[role]])
            for role in ("bos_token", "eos_token")
            if role in roles
        ],
    )
