"""One row to token ids and the mask of those that are learned.

Separate from templates, which knows text and no ids. The whole text is tokenized at once, as
generation and every other trainer do, and the learned spans are found by the tokens' offsets.
The invariant: no token is added, merged or cut differently for being near a span's edge, and no
text has two start tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from jaxft.data import templates
from jaxft.data.rows import Message, Row, Tokenized
from jaxft.data.templates import Tokenizer
from jaxft.errors import DataError


class Example(NamedTuple):
    """One row as tokens.

    Attributes:
        input_ids: The tokens, special ones included.
        loss_mask: 1 where the token is a target, predicted from those before it; never at 0.
    """

    input_ids: Int32[np.ndarray, " t"]
    loss_mask: UInt8[np.ndarray, " t"]


def encode_row(row: Row, tokenizer: Tokenizer | None) -> Example:
    """Return a row's tokens and targets, at full length.

    Args:
        row: The row, of any shape.
        tokenizer: A fast tokenizer; chats need one with a chat template, tokens need none.

    Raises:
        DataError: The tokenizer lacks what the row needs, or its template cannot be split.
    """
    if isinstance(row, Tokenized):
        mask = row.loss_mask.copy()
        mask[:1] = 0
        return Example(row.input_ids, mask)
    if tokenizer is None:
        raise DataError(
            f"{row.place}: the row is text and there is no tokenizer to read it with.",
            "Give the model's tokenizer, or rows of input_ids.",
        )
    rendered = templates.render_row(row, tokenizer)
    ids, ends = _tokenize(rendered.text, tokenizer, is_plain=rendered.is_plain)
    if ends.max(initial=0) < len(rendered.text.rstrip()) or np.any(np.diff(ends[ends > 0]) < 0):
        raise DataError(
            f"{row.place}: the tokenizer's offsets do not follow the text.",
            "Targets cannot be located with it; use the model's own tokenizer.json.",
        )
    mask = np.zeros(len(ids), np.uint8)
    for start, stop in rendered.spans:
        mask[_inside(ends, start, stop)] = 1
    mask[:1] = 0
    return Example(ids, mask)


def encode_prompt(prompt: str | Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """Return the tokens from which a model generates an answer, as in training.

    Args:
        prompt: Plain text, which no template touches, or the messages of a chat.
        tokenizer: A fast tokenizer; chats need one with a chat template.

    Raises:
        DataError: The tokenizer has no chat template, or its template refuses the messages.
    """
    if isinstance(prompt, str):
        ids, ends = _tokenize(prompt, tokenizer, is_plain=True)
        # A tokenizer that closes every text with its end token would end the answer here.
        if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and ends[-1] == 0:
            ids = ids[:-1]
    else:
        text = templates.chat_text(prompt, tokenizer, "the prompt", has_generation_prompt=True)
        ids, _ = _tokenize(text, tokenizer, is_plain=False)
    return [int(token) for token in ids]


def _tokenize(
    text: str, tokenizer: Tokenizer, *, is_plain: bool
) -> tuple[Int32[np.ndarray, " t"], Int32[np.ndarray, " t"]]:
    """Return the tokens and, in characters, where each ends (0 for those the tokenizer added)."""
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} cannot say where its tokens stand in the text.",
            "Use a fast tokenizer, one with a tokenizer.json.",
        )
    encoded = tokenizer(
        text,
        add_special_tokens=is_plain,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        verbose=False,
    )
    ids = np.asarray(encoded["input_ids"], np.int32)
    is_added = np.asarray(encoded["special_tokens_mask"], bool)
    stops = np.asarray([stop for _, stop in encoded["offset_mapping"]], np.int32)
    # Where spaces are trimmed off the offsets, one that opens the text seems to end at 0.
    ends = np.where(is_added, np.int32(0), np.maximum(stops, 1))
    # A text that spells out its start or end token gets a second from some tokenizers.
    if len(ids) > 1 and is_added[0] and ids[0] == ids[1] == tokenizer.bos_token_id:
        ids, ends, is_added = ids[1:], ends[1:], is_added[1:]
    if len(ids) > 1 and is_added[-1] and ids[-1] == ids[-2] == tokenizer.eos_token_id:
        ids, ends = ids[:-1], ends[:-1]
    return ids, ends


def _inside(ends: Int32[np.ndarray, " t"], start: int, stop: int) -> Bool[np.ndarray, " t"]:
    """Return which tokens end within the span.

    Ends alone decide: byte-level tokenizers trim spaces off the starts. A token across the span's
    start is thereby learned and one across its stop is not, as in TRL.
    """
    return (ends > start) & (ends <= stop)
