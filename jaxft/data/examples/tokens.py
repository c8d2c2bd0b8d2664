"""Rows to token ids and the masks of the supervised ones.

`2 + 2 = 4</s>`, of which ` 4</s>` is supervised, becomes `input_ids` `[17, 10, 17, 28, 220, 19, 2]`
and `loss_mask` `[0, 0, 0, 0, 1, 1, 1]`. A whole text is tokenized at once, as generation and every
other trainer do, and the supervised spans are found by the tokens' offsets: none is added, merged
or cut differently for being near a span's edge, and no text has two start tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from jaxft.data.chats.chat import Chat
from jaxft.data.chats.encoding import Encoding, Tokenizer
from jaxft.data.examples import render
from jaxft.data.examples.render import Rendered
from jaxft.data.rows.row import Message, Row, Tokenized
from jaxft.errors import DataError

_NO_NOTES: tuple[str, ...] = ()


class Example(NamedTuple):
    """One example as tokens.

    Attributes:
        input_ids: The tokens, special ones included.
        loss_mask: 1 where the token is a target, predicted from those before it; never at 0.
    """

    input_ids: Int32[np.ndarray, " t"]
    loss_mask: UInt8[np.ndarray, " t"]


class Encoded(NamedTuple):
    """What became of one row.

    Attributes:
        examples: At full length; more than one where a chat is cut into its replies.
        end_ids: The tokens that end the supervised part of them.
        notes: What is worth counting; see `notes.NOTES`.
    """

    examples: tuple[Example, ...]
    end_ids: frozenset[int]
    notes: tuple[str, ...]


def encode_rows(rows: Sequence[Row], encoding: Encoding) -> list[Encoded]:
    """Return the tokens and targets of rows, tokenized as one batch.

    Args:
        rows: Rows of any shape.
        encoding: The tokenizer, and the supervised part.

    Raises:
        DataError: The tokenizer lacks what a row needs, or its template refuses the row.
    """
    rendered = [_rendered(row, encoding) for row in rows]
    flat = [(row, each) for row, some in zip(rows, rendered, strict=True) for each in some]
    examples = iter(_tokenized(flat, encoding))
    return [
        _own_tokens(row, encoding)
        if isinstance(row, Tokenized)
        else _encoded(some, tuple(next(examples) for _ in some), encoding.tokenizer)
        for row, some in zip(rows, rendered, strict=True)
    ]


def encode_row(row: Row, encoding: Encoding) -> Encoded:
    """Return the tokens and targets of one row; see `encode_rows`."""
    return encode_rows([row], encoding)[0]


def encode_prompt(
    prompt: str | Sequence[Message],
    tokenizer: Tokenizer,
    template_kwargs: Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[int]:
    """Return the tokens from which a model generates an answer, as in training.

    Args:
        prompt: Plain text, which no template touches, or the messages of a chat.
        tokenizer: A fast tokenizer; chats need one with a chat template.
        template_kwargs: Variables of the chat template.
        tools: Tools that may be called, as JSON schemas.

    Raises:
        DataError: The tokenizer has no chat template, or its template refuses the messages.
    """
    if isinstance(prompt, str):
        ids: list[int] = _encodings([prompt], tokenizer, is_plain=True)[0].ids
        # A tokenizer that closes every text with its end token would end the answer here.
        has_end = ids[-1:] == [tokenizer.eos_token_id] and not prompt.endswith(tokenizer.eos_token)
        ids = ids[:-1] if len(ids) > 1 and has_end else ids
        has_two = len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id
        return ids[1:] if has_two else ids
    chat = Chat(tokenizer, tools, template_kwargs or {}, "the prompt")
    text = chat.write(prompt, is_prompt=True)
    written: list[int] = _encodings([text], tokenizer, is_plain=False)[0].ids
    return written


def _rendered(row: Row, encoding: Encoding) -> list[Rendered]:
    if isinstance(row, Tokenized):
        return []
    if encoding.tokenizer is None:
        raise DataError(
            f"{row.place}: the row is text and there is no tokenizer to read it with.",
            "Give the model's tokenizer, or rows of input_ids.",
        )
    return render.render_row(row, encoding)


def _own_tokens(row: Tokenized, encoding: Encoding) -> Encoded:
    """Return a row that came as tokens; the first of them has nothing to be predicted from."""
    mask = row.loss_mask.copy()
    mask[:1] = 0
    ends = frozenset(row.input_ids[mask == 1].tolist()) & frozenset(encoding.stop_ids)
    return Encoded((Example(row.input_ids, mask),), ends, _NO_NOTES)


def _encoded(
    rendered: Sequence[Rendered], examples: tuple[Example, ...], tokenizer: Tokenizer
) -> Encoded:
    ends = {end for each in rendered for end in each.ends}
    notes = dict.fromkeys(note for each in rendered for note in each.notes)
    return Encoded(examples, frozenset(map(tokenizer.convert_tokens_to_ids, ends)), tuple(notes))


def _tokenized(texts: Sequence[tuple[Row, Rendered]], encoding: Encoding) -> list[Example]:
    """Return the tokens of texts, in their order."""
    examples: dict[int, Example] = {}
    for is_plain in (False, True):
        chosen = [index for index, (_, each) in enumerate(texts) if each.is_plain == is_plain]
        if not chosen:
            continue
        encodings = _encodings(
            [texts[index][1].text for index in chosen], encoding.tokenizer, is_plain=is_plain
        )
        for index, encoded in zip(chosen, encodings, strict=True):
            examples[index] = _example(*texts[index], encoded, encoding)
    return [examples[index] for index in range(len(texts))]


def _encodings(texts: Sequence[str], tokenizer: Tokenizer, *, is_plain: bool) -> Any:
    """Return what the Rust tokenizer makes of texts, whose positions it keeps.

    A call through transformers would turn every offset into a Python object.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} cannot say where its tokens stand in the text.",
            "Use a fast tokenizer, one with a tokenizer.json.",
        )
    backend = tokenizer.backend_tokenizer
    # What an earlier caller may have left on; transformers sets all three in each call.
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend.encode_batch(list(texts), add_special_tokens=is_plain)


def _example(row: Row, rendered: Rendered, encoded: Any, encoding: Encoding) -> Example:
    """Return one text's tokens and which of them are supervised."""
    tokenizer: Tokenizer = encoding.tokenizer
    ids = np.asarray(encoded.ids, np.int32)
    mask = np.zeros(len(ids), np.uint8)
    # The text's own tokens; the tokenizer may have put others before and behind them.
    own_stop = len(ids)
    kept = slice(0, len(ids))
    if rendered.is_plain and len(ids) > 1:
        is_added = encoded.special_tokens_mask
        own_stop -= is_added[-1]
        # A text that spells out its start or end token gets a second from some tokenizers.
        has_two_starts = is_added[0] and ids[0] == ids[1] == tokenizer.bos_token_id
        has_two_ends = is_added[-1] and ids[-1] == ids[-2] == tokenizer.eos_token_id
        kept = slice(int(has_two_starts), len(ids) - int(has_two_ends))
    for start, stop in rendered.spans:
        first = _first_ending_after(start, encoded, rendered.text)
        behind = _first_beginning_at(stop, encoded, rendered.text)
        if first is None or (behind is not None and behind <= first):
            raise DataError(
                f"{row.place}: the tokenizer's offsets do not follow the text.",
                "Targets cannot be located with it; use the model's own tokenizer.json.",
            )
        # A token of the prompt that swallows the white space behind it is still the prompt's; any
        # other token across the start is supervised, as in TRL.
        if ids[first] in encoding.added_ids and encoded.token_to_chars(first)[0] < start:
            first += 1
        mask[first : own_stop if behind is None else behind] = 1
    ids, mask = ids[kept], mask[kept]
    mask[:1] = 0
    return Example(ids, mask)


def _first_ending_after(start: int, encoded: Any, text: str) -> int | None:
    """Return the first token that ends behind a position of the text; None if none does.

    Byte-level tokenizers trim spaces off the offsets, so that a space may stand in no token, a
    token that is nothing but spaces is empty, and one that opens the text seems to end at 0.
    """
    token = _token_at(start, encoded, text)
    while token and (chars := encoded.token_to_chars(token - 1)) and max(chars[1], 1) > start:
        token -= 1
    return token


def _first_beginning_at(stop: int, encoded: Any, text: str) -> int | None:
    """Return the first token that begins at a position or behind it; None if none does.

    An end token that swallows the white space behind it begins before that.
    """
    token = _token_at(stop, encoded, text)
    if token is None:
        return None
    if encoded.token_to_chars(token)[0] < stop:
        return token + 1
    while token and (chars := encoded.token_to_chars(token - 1)) and chars[0] >= stop:
        token -= 1
    return token


def _token_at(start: int, encoded: Any, text: str) -> int | None:
    """Return the token of the first character from `start` on that has one."""
    for position in range(start, len(text)):
        token: int | None = encoded.char_to_token(position)
        if token is not None:
            return token
    return None
