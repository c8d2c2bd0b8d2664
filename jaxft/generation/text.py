"""New tokens to text: whole, or in pieces as they come.

Separate because the two must agree: the pieces of a stream join to the text of all its tokens. A
token may be part of a character; its piece is held back until later tokens can no longer change
what was shown.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

# What decoders put in place of bytes that make no character, or not yet.
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# A token that is one byte. Source: tokenizers `decoders/byte_fallback.rs`, which turns a whole
# run of such tokens into replacements when a later one breaks it.
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the text of tokens, without special ones."""
    # Cleaning up would take back spaces that a stream has shown.
    text: str = tokenizer.decode(
        list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def pieces(tokenizer: Any, ids: Iterable[int]) -> Iterator[str]:
    """Yield the text of tokens as soon as it is certain; joined, it is `decode` of them all."""
    seen: list[int] = []
    num_shown = 0
    for token in ids:
        seen.append(token)
        if _BYTE.fullmatch(tokenizer.convert_ids_to_tokens(token) or ""):
            continue
        certain = decode(tokenizer, seen).rstrip(_REPLACEMENT)
        if len(certain) > num_shown:
            yield certain[num_shown:]
            num_shown = len(certain)
    rest = decode(tokenizer, seen)[num_shown:]
    if rest:
        yield rest
