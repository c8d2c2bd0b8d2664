"""A tokenizer of single bytes, so that most characters take several tokens."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 258
_SPECIALS = ["<|end|>", "<|start|>"]
_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def byte_level() -> Any:
    """Return a tokenizer of bytes as GPT-2 spells them, with a chat template; token 0 ends."""
    alphabet = [*_SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_tokens([AddedToken(token, special=True) for token in _SPECIALS])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=_SPECIALS[0], chat_template=_TEMPLATE
    )
