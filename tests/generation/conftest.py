"""Tokenizers that cut characters: one of bytes, and one that falls back to them."""

from __future__ import annotations

from typing import Any

import byte_tokenizer
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def byte_level() -> Any:
    """A tokenizer of bytes as GPT-2 spells them, with a chat template; 258 tokens, 0 ends."""
    return byte_tokenizer.byte_level()


@pytest.fixture(scope="session")
def byte_fallback() -> Any:
    """A tokenizer as Llama 2's: letters, and bytes for what it has no token for."""
    letters = ["<unk>", "</s>", "▁", *"abcé", "▁a"]
    vocabulary = [*letters, *(f"<0x{byte:02X}>" for byte in range(256))]
    inner = Tokenizer(
        models.BPE(
            {token: index for index, token in enumerate(vocabulary)},
            [("▁", "a")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")
