"""Build the tokenizer in a GGUF file's metadata, byte-level or sentencepiece.

This file knows the meaning of the keys `tokenizer.ggml.*`. The tokens are those that the model was
trained on: an unknown kind of tokenizer, or an unknown way to split text, is refused and not
replaced by a similar one.

Source: llama.cpp `llama_vocab::impl::load`, `llm_tokenizer_bpe`, `llm_tokenizer_spm`, and the
tokenizer.json of the models for which its converter writes each name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from jaxft.errors import UnsupportedModelError, WeightsError

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class _Cut(NamedTuple):
    """The treatment of text by a byte-level tokenizer before merging.

    Attributes:
        steps: Returns the steps that split the text and turn bytes into letters.
        keeps_whole: Whether a piece that is a token is not split, whatever the merges say.
        composes: Whether decomposed characters are composed first. llama.cpp does not do this.
        adds_bos: Whether a text begins with the start token if the file does not say.
    """

    steps: Callable[[], list[pre_tokenizers.PreTokenizer]]
    keeps_whole: bool = False
    composes: bool = False
    adds_bos: bool = False


def _split(pattern: str) -> Callable[[], list[pre_tokenizers.PreTokenizer]]:
    return lambda: [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


# The cuts by their names in `tokenizer.ggml.pre`.
_CUTS = {
    "gpt-2": _Cut(lambda: [_gpt2()]),
    "smollm": _Cut(lambda: [pre_tokenizers.Digits(individual_digits=True), _gpt2()]),
    "llama-bpe": _Cut(_split(_LLAMA3), keeps_whole=True, adds_bos=True),
    "qwen2": _Cut(_split(_LLAMA3.replace("{1,3}", "")), composes=True),
    "gpt-4o": _Cut(_split(_GPT4O)),  # Phi-4-mini
    "dbrx": _Cut(_split(_LLAMA3)),  # Phi-4
}

# The keys of special tokens by their transformers names. Source: `gguf.constants.Keys.Tokenizer`.
_ROLES = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}
# The ids of special tokens in a sentencepiece vocabulary without these keys.
_SENTENCEPIECE_ROLES = {"unk_token": 0, "bos_token": 1, "eos_token": 2}

# Source: `gguf.TokenType`.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5

_SPACE = "\u2581"  # sentencepiece's visible space
_REMEDY = "Use the model's folder with its tokenizer.json instead."


def build(path: Path, metadata: dict[str, Any]) -> tuple[Tokenizer, dict[str, str]]:
    """Return the tokenizer, and its special tokens by their transformers names.

    Raises:
        WeightsError: The file has no tokenizer, or a damaged one.
        UnsupportedModelError: The kind of tokenizer, or its way to split text, is not supported.
    """
    _check(path, metadata)
    is_sentencepiece = metadata["tokenizer.ggml.model"] == "llama"
    try:
        tokenizer = _sentencepiece(metadata) if is_sentencepiece else _byte_level(metadata)
        roles = _roles(metadata)
        tokenizer.add_tokens(_added(metadata))
        tokenizer.post_processor = _frame(metadata, roles)
        tokens = metadata["tokenizer.ggml.tokens"]
        return tokenizer, {role: tokens[number] for role, number in roles.items()}
    # The tokenizers library raises Exception for merges of missing tokens.
    except Exception as error:
        raise WeightsError(
            f"{path}: the tokenizer is damaged ({type(error).__name__}: {error}).",
            "Expected tokens, types, and merges or scores that fit together; "
            "download the file again.",
        ) from error


def _check(path: Path, metadata: dict[str, Any]) -> None:
    """Raise if the tokenizer cannot be built exactly."""
    model = metadata.get("tokenizer.ggml.model", "none")
    ranking = "scores" if model == "llama" else "merges"
    missing = [
        key
        for key in ("model", "tokens", "token_type", ranking)
        if f"tokenizer.ggml.{key}" not in metadata
    ]
    if model not in ("gpt2", "llama", "none"):
        raise UnsupportedModelError(
            f"{path}: its tokenizer is of the kind {model}.",
            f"Expected byte-level BPE (gpt2) or sentencepiece BPE (llama). {_REMEDY}",
        )
    if missing:
        raise WeightsError(
            f"{path}: the tokenizer lacks {', '.join(missing)}.",
            f"Expected tokens, their types, and merges or scores. {_REMEDY}",
        )
    if model == "llama":
        return
    cut = metadata.get("tokenizer.ggml.pre", "default")
    if cut not in _CUTS:
        raise UnsupportedModelError(
            f"{path}: its tokenizer cuts text as {cut}.",
            f"Expected one of {', '.join(_CUTS)}. {_REMEDY}",
        )
    if metadata.get("tokenizer.ggml.add_space_prefix"):
        raise UnsupportedModelError(f"{path}: its tokenizer puts a space first.", _REMEDY)


def _byte_level(metadata: dict[str, Any]) -> Tokenizer:
    """Return byte-level BPE, with the merges in the file."""
    cut = _CUTS[metadata["tokenizer.ggml.pre"]]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: n for n, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, ignore_merges=cut.keeps_whole)
    )
    if cut.composes:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cut.steps())
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(metadata: dict[str, Any]) -> Tokenizer:
    """Return sentencepiece BPE, with merges that follow from the scores of tokens in the file.

    Characters outside the vocabulary become bytes. Unless the file says otherwise, a space is put
    before each piece of text between special tokens.
    """
    tokens = metadata["tokenizer.ggml.tokens"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=_merges(metadata),
            unk_token=tokens[_roles(metadata)["unk_token"]],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    visible: normalizers.Normalizer = normalizers.Replace(" ", _SPACE)
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        visible = normalizers.Sequence([normalizers.Prepend(_SPACE), visible])
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = visible
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merges(metadata: dict[str, Any]) -> list[tuple[str, str]]:
    """Return all pairs of tokens that join to a third token, those with the best third one first.

    Source: `llm_tokenizer_spm::try_add_bigram`, which always makes the token of highest score.
    """
    columns = (metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type", "scores"))
    scores = {
        token: score
        for token, kind, score in zip(*columns, strict=True)
        if kind in (_NORMAL, _UNUSED)
    }
    order = {token: number for number, token in enumerate(scores)}
    merges = []
    for token in sorted(scores, key=lambda token: -scores[token]):
        halves = [(token[:place], token[place:]) for place in range(1, len(token))]
        known = [(left, right) for left, right in halves if left in order and right in order]
        merges += sorted(known, key=lambda pair: (order[pair[0]], order[pair[1]]))
    return merges


def _added(metadata: dict[str, Any]) -> list[AddedToken]:
    """Return the added tokens, which are found in the text before it is split."""
    # The file does not say this; llama.cpp decides by the name too (`LLAMA_TOKEN_ATTR_RSTRIP`).
    name = metadata.get("general.name", "").lower()
    strips = metadata["tokenizer.ggml.model"] == "llama" and ("phi-3" in name or "phi3" in name)
    columns = (metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
    return [
        AddedToken(
            token,
            normalized=False,
            special=kind != _USER_DEFINED,
            rstrip=strips and token not in ("<unk>", "<s>", "<|endoftext|>"),
        )
        for token, kind in zip(*columns, strict=True)
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]


def _roles(metadata: dict[str, Any]) -> dict[str, int]:
    """Return the ids of the special tokens by their transformers names."""
    roles = dict(_SENTENCEPIECE_ROLES) if metadata["tokenizer.ggml.model"] == "llama" else {}
    return roles | {role: metadata[key] for role, key in _ROLES.items() if key in metadata}


def _frame(metadata: dict[str, Any], roles: dict[str, int]) -> processors.PostProcessor | None:
    """Return a post-processor that adds the start and end tokens of a text; None for neither."""
    if metadata["tokenizer.ggml.model"] == "llama":
        begins = True
    else:
        begins = _CUTS[metadata["tokenizer.ggml.pre"]].adds_bos
    has_bos = metadata.get("tokenizer.ggml.add_bos_token", begins)
    has_eos = metadata.get("tokenizer.ggml.add_eos_token", False)
    if not has_bos and not has_eos:
        return None
    tokens = metadata["tokenizer.ggml.tokens"]
    bos, eos = (
        [tokens[roles[role]]] * is_added
        for role, is_added in (("bos_token", has_bos), ("eos_token", has_eos))
    )
    return processors.TemplateProcessing(
        single=[*bos, "$A", *eos],
        special_tokens=[
            (tokens[roles[role]], roles[role])
            for role in ("bos_token", "eos_token")
            if role in roles
        ],
    )
