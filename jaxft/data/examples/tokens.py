"""The token ids of rows, with masks of the supervised tokens.

`2 + 2 = 4</s>` with the supervised span ` 4</s>` becomes `input_ids` `[17, 10, 17, 28, 220, 19, 2]`
and `loss_mask` `[0, 0, 0, 0, 1, 1, 1]`. A text is tokenized as a whole, as in generation and in
other trainers, and the tokens of the supervised spans are found by their offsets. So no token is
added, merged or cut differently at the edge of a span. No text gets two start tokens.
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
    """One encoded training text: a row, or a reply or piece of it.

    Attributes:
        input_ids: The tokens, special ones included.
        loss_mask: 1 where the token is supervised: it is a target, to be predicted from the tokens
            before it. The first token never is.
    """

    input_ids: Int32[np.ndarray, " t"]
    loss_mask: UInt8[np.ndarray, " t"]


class Encoded(NamedTuple):
    """The encoding of one row.

    Attributes:
        examples: The examples at full length; several if a chat is cut into its replies.
        end_ids: The tokens that end the supervised parts of the examples.
        notes: Names from `notes.NOTES`.
    """

    examples: tuple[Example, ...]
    end_ids: frozenset[int]
    notes: tuple[str, ...]


def encode_rows(rows: Sequence[Row], encoding: Encoding) -> list[Encoded]:
    """Return the examples of rows, tokenized as one batch.

    Args:
        rows: Rows of any shape.
        encoding: Names the tokenizer and the supervised part.

    Raises:
        DataError: The tokenizer has no template or no end token, or its template refuses a row.
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
    """Return the examples of one row; see `encode_rows`."""
    return encode_rows([row], encoding)[0]


def encode_prompt(
    prompt: str | Sequence[Message],
    tokenizer: Tokenizer,
    template_kwargs: Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[int]:
    """Return the tokens of a prompt, which are the same as in training.

    Args:
        prompt: Plain text, to which no template is applied, or the messages of a chat.
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
    """Return the example of a row of tokens. Its first token is never supervised."""
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
    """Return the examples of texts, in order."""
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
    """Return the encodings of texts by the Rust tokenizer, which know the offsets of tokens.

    A call through transformers would convert every offset to a Python object.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} cannot say where its tokens stand in the text.",
            "Use a fast tokenizer, one with a tokenizer.json.",
        )
    backend = tokenizer.backend_tokenizer
    # An earlier caller may have left these on. transformers sets all three in each call.
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend.encode_batch(list(texts), add_special_tokens=is_plain)


def _example(row: Row, rendered: Rendered, encoded: Any, encoding: Encoding) -> Example:
    """Return the tokens of one text, with a mask of the supervised ones.

    Args:
        row: The row, for errors.
        rendered: The text and its supervised spans.
        encoded: The text's encoding by the Rust tokenizer.
        encoding: Names the tokenizer.

    Raises:
        DataError: The offsets of the tokens do not follow the text.
    """
    tokenizer: Tokenizer = encoding.tokenizer
    ids = np.asarray(encoded.ids, np.int32)
    mask = np.zeros(len(ids), np.uint8)
    # The tokenizer added the tokens from `own_stop` on. Tokens outside of `kept` are removed.
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
        # An added token that ends the prompt may include the white space behind it, and is not
        # supervised. Any other token across the start of a span is supervised, as in TRL.
        if ids[first] in encoding.added_ids and encoded.token_to_chars(first)[0] < start:
            first += 1
        mask[first : own_stop if behind is None else behind] = 1
    ids, mask = ids[kept], mask[kept]
    mask[:1] = 0
    return Example(ids, mask)


def _first_ending_after(start: int, encoded: Any, text: str) -> int | None:
    """Return the first token that ends behind a position of the text; None if there is none.

    Byte-level tokenizers leave spaces out of the offsets. So a space may belong to no token, a
    token of spaces is empty, and such a token at the start of the text seems to end at 0.
    """
    token = _token_at(start, encoded, text)
    while token and (chars := encoded.token_to_chars(token - 1)) and max(chars[1], 1) > start:
        token -= 1
    return token


def _first_beginning_at(stop: int, encoded: Any, text: str) -> int | None:
    """Return the first token that begins at a position or behind it; None if there is none.

    The token at the position may begin before it: an end token that includes the white space behind
    it does. Then the next token is returned.
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
    """Return the token of the first character from `start` on that belongs to a token."""
    for position in range(start, len(text)):
        token: int | None = encoded.char_to_token(position)
        if token is not None:
            return token
    return None
