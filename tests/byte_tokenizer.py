"""Tokenizers of bytes as GPT-2 spells them, so that most characters take several tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 258  # of the two tokenizers here: the bytes and two special tokens
_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def make(
    *,
    first: Sequence[str] = (),
    last: Sequence[str | AddedToken] = (),
    merges: Sequence[tuple[str, str]] = (),
    keeps_words: bool = True,
    **named: Any,
) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token for each byte and for each merge.

    Args:
        first: The special tokens before the bytes.
        last: The special tokens after the merges.
        merges: Pairs of tokens that become one.
        keeps_words: Whether no token is of two words.
        named: What transformers is given: eos_token, chat_template.
    """
    words = [*first, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    inner = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, list(merges)))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=keeps_words)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([*first, *last])
    return PreTrainedTokenizerFast(tokenizer_object=inner, **named)


def byte_level() -> PreTrainedTokenizerFast:
    """Return a tokenizer with a chat template; token 0 ends."""
    return make(first=["<|end|>", "<|start|>"], eos_token="<|end|>", chat_template=_TEMPLATE)


def write_plain(folder: Path) -> None:
    """Write a tokenizer without a chat template, as OPT's has none; token 0 ends."""
    plain = make(first=["</s>", "<pad>"], eos_token="</s>", pad_token="<pad>")
    plain.save_pretrained(folder)
