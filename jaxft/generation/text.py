"""New tokens to text: whole, or in pieces as they come.

Separate because the two must agree: the pieces of a stream join to the text of all its tokens. A
token may be part of a character; its piece is held back until later tokens can no longer change
what was shown.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jaxft.errors import ConfigError

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


def ends_with(
    tokenizer: Any, prompts: Sequence[Sequence[int]], stop_strings: Sequence[str]
) -> Callable[[int, Sequence[int]], bool] | None:
    """Return what tells whether a row's last token completes a stop string; `None` without any.

    The string may begin in the prompt, and its last token may have more after it, as in
    transformers `generation/stopping_criteria.py: StopStringCriteria`. Special tokens count.

    Args:
        tokenizer: A fast tokenizer.
        prompts: The tokens of each row's prompt.
        stop_strings: What ends a row.

    Raises:
        ConfigError: If one of them is empty.
    """
    if not all(stop_strings):
        raise ConfigError("A stop string is empty.", "Give the text that ends an answer.")
    if not stop_strings:
        return None
    # A token is a byte or more; some decoders drop a space of the first that they are given.
    reach = max(len(each.encode()) for each in stop_strings) + 4

    def written(ids: Sequence[int]) -> str:
        found: str = tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        return found.rstrip(_REPLACEMENT)

    def ends(row: int, picked: Sequence[int]) -> bool:
        window = [*prompts[row][-reach:], *picked][-reach:]
        before, now = len(written(window[:-1])), written(window)
        return any(each in now[max(before - len(each) + 1, 0) :] for each in stop_strings)

    return ends
