"""Converts new tokens to text, all at once or in pieces as they arrive.

The joined pieces of a stream are the text of all its tokens. A token may be a part of a character;
its text is held back until later tokens can no longer change it.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jaxft.errors import ConfigError

# Decoders put this in place of bytes that do not form a character (yet).
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# A token that is one byte. Source: tokenizers `decoders/byte_fallback.rs`, which replaces a whole
# sequence of such tokens by replacement characters if a later token makes it invalid.
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the text of tokens, without special tokens."""
    # Cleaning up could remove spaces that a stream has shown already.
    text: str = tokenizer.decode(
        list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def pieces(tokenizer: Any, ids: Iterable[int]) -> Iterator[str]:
    """Yield the text of tokens once it is final; the joined pieces equal `decode`."""
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
    """Return a function that says whether a row ends; `None` without stop strings.

    The function takes the number of a row and its new tokens, and returns whether the last token
    completes a stop string. The string may begin in the prompt, and its last token may have further
    characters, as in transformers `generation/stopping_criteria.py: StopStringCriteria`. The text
    of special tokens counts.

    Args:
        tokenizer: A fast tokenizer.
        prompts: The tokens of the prompt of each row.
        stop_strings: The strings that end an answer.

    Raises:
        ConfigError: If a stop string is empty.
    """
    if not all(stop_strings):
        raise ConfigError("A stop string is empty.", "Give the text that ends an answer.")
    if not stop_strings:
        return None
    # Every token has at least one byte. Some decoders drop a space of the first token.
    reach = max(len(each.encode()) for each in stop_strings) + 4

    def written(ids: Sequence[int]) -> str:
        found: str = tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        return found.rstrip(_REPLACEMENT)

    def ends(row: int, picked: Sequence[int]) -> bool:
        window = [*prompts[row][-reach:], *picked][-reach:]
        before, now = len(written(window[:-1])), written(window)
        return any(each in now[max(before - len(each) + 1, 0) :] for each in stop_strings)

    return ends
