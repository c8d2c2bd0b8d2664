"""A row as text, with the spans of it that are supervised.

`{"prompt": "2 + 2 =", "completion": " 4"}` becomes `2 + 2 = 4</s>`, and ` 4</s>` is supervised.
This file decides which part is supervised; `turns` finds its place in a chat, and `tokens` which
tokens it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxft.data.chats import turns
from jaxft.data.chats.chat import Chat, Spans
from jaxft.data.chats.encoding import Encoding, Tokenizer
from jaxft.data.chats.ends import Ends
from jaxft.data.chats.notes import TEMPLATED
from jaxft.data.chats.replies import Reply
from jaxft.data.chats.turns import ChatText
from jaxft.data.rows.row import Dialogue, Message, Row, Text, TextCompletion
from jaxft.errors import DataError


class Rendered(NamedTuple):
    """One example as text.

    Attributes:
        text: What the tokenizer is given.
        spans: Pairs of character positions, start and stop, of the supervised part.
        is_plain: Whether the tokenizer adds its own start token; a chat template wrote it already.
        ends: The tokens that end the supervised part, as text.
        notes: What is worth counting; see `notes.NOTES`.
    """

    text: str
    spans: Spans
    is_plain: bool
    ends: tuple[str, ...]
    notes: tuple[str, ...]


def render_row(row: Row, encoding: Encoding) -> list[Rendered]:
    """Return the examples of a row as text; more than one where a chat is cut into its replies.

    Args:
        row: The row, of any shape but tokens.
        encoding: The supervised part, and the tokenizer.

    Raises:
        DataError: The tokenizer lacks what the row needs, or its template refuses the row.
    """
    match row:
        case Dialogue():
            return _render_dialogue(row, encoding)
        case TextCompletion():
            text = _closed(row.prompt, row.completion, row, encoding.tokenizer)
            is_all = encoding.train_on == "all"
            return [text._replace(spans=((0, len(text.text)),)) if is_all else text]
        case Text():
            rendered = _closed("", row.text, row, encoding.tokenizer)
            # Nothing but an end token would teach the model to say nothing.
            return [rendered if row.text.strip() else rendered._replace(spans=(), ends=())]
    raise TypeError(f"no such row: {type(row).__name__}")


def _closed(prompt: str, completion: str, row: Row, tokenizer: Tokenizer) -> Rendered:
    """Join prompt and completion and close them with the end token.

    Source: TRL 1.16, `SFTTrainer`: the end token is appended to rows that are not conversational,
    unless they end with it; a chat template is not applied to them.
    """
    end = _eos_token(row, tokenizer)
    text = prompt + completion
    if not completion.endswith(end):
        text += end
    is_blank = not isinstance(row, Text) and not completion.strip()
    notes = ("blank_reply",) if is_blank else ()
    return Rendered(text, ((len(prompt), len(text)),), True, (end,), notes)


def _eos_token(row: Row, tokenizer: Tokenizer) -> str:
    if tokenizer.eos_token is None:
        raise DataError(
            f"{row.place}: the tokenizer has no end token to close the text with.",
            "Set data.eos_token, or eos_token in tokenizer_config.json; without it a model cannot "
            "learn to stop.",
        )
    end: str = tokenizer.eos_token
    return end


def _render_dialogue(row: Dialogue, encoding: Encoding) -> list[Rendered]:
    """Write a chat, and choose which of its replies are supervised."""
    tokenizer = encoding.tokenizer
    given = {**encoding.template_kwargs, **row.template_kwargs}
    chat = Chat(tokenizer, row.tools, given, str(row.place))
    ends = encoding.layouts.get("ends") or encoding.layouts.setdefault(
        "ends", Ends(tokenizer, encoding.stop_ids)
    )
    chosen = _chosen(row, encoding)
    if encoding.train_on == "all":
        rendered = [_whole(chat, ends, row, chosen)]
    elif chosen:
        found = turns.pieces(chat, ends, row.messages, chosen, encoding.layouts)
        rendered = [_render_piece(chat, ends, row, piece, encoding) for piece in found]
    else:
        rendered = [Rendered(chat.write(row.messages), (), False, (), ())]
    has_blank = any(_is_blank(row.messages[index]) for index in chosen)
    own = (TEMPLATED, "blank_reply") if has_blank else (TEMPLATED,)
    rendered[0] = rendered[0]._replace(notes=(*own, *rendered[0].notes))
    return rendered


def _chosen(row: Dialogue, encoding: Encoding) -> list[int]:
    """Return the indices of the replies that are supervised.

    Raises:
        DataError: One of them is the first message.
    """
    roles = [message["role"] for message in row.messages]
    of_assistant = [index for index, role in enumerate(roles) if role == "assistant"]
    start = row.num_prompt
    if encoding.train_on == "completion" and not start:
        start = max((index for index, role in enumerate(roles) if role == "user"), default=0)
    chosen = [index for index in of_assistant if index >= start]
    if encoding.train_on == "last_assistant":
        chosen = chosen[-1:]
    chosen = [index for index in chosen if index not in row.skipped]
    if chosen and chosen[0] == 0:
        raise DataError(
            f"{row.place}: the first message is the assistant's, so there is no prompt to answer.",
            "Begin the conversation with a user or system message, or mark the first message with "
            '"train": false.',
        )
    return chosen


def _is_blank(reply: Message) -> bool:
    """Return whether a reply says nothing and calls no tool."""
    return not reply["content"].strip() and not reply.get("tool_calls")


def _whole(chat: Chat, ends: Ends, row: Dialogue, chosen: Sequence[int]) -> Rendered:
    """Return a chat of which every token is supervised."""
    text = chat.write(row.messages)
    if not chosen or chosen[-1] != len(row.messages) - 1:
        return Rendered(text, ((0, len(text)),), False, (), ())
    (last,) = turns.pieces(chat, ends, row.messages, chosen[-1:], {})
    closed, reply, added = _with_end(chat, ends, row, last, chosen[-1])
    if last.text == text:
        text = closed
    ends_with = (reply.end.token,) if reply.end else ()
    return Rendered(text, ((0, len(text)),), False, ends_with, added)


def _render_piece(
    chat: Chat, ends: Ends, row: Dialogue, piece: ChatText, encoding: Encoding
) -> Rendered:
    """Return the spans of the replies in a piece, the last of which gets an end if it has none."""
    last = max(piece.replies)
    text, reply, added = _with_end(chat, ends, row, piece, last)
    replies = {**piece.replies, last: reply}
    spans: list[tuple[int, int]] = []
    for each in replies.values():
        start = each.start if encoding.train_on_reasoning else each.answer
        spans += _marked(start, each, piece.marks)
    tokens = dict.fromkeys(each.end.token for each in replies.values() if each.end)
    return Rendered(text, tuple(spans), False, tuple(tokens), (*piece.notes, *added))


def _with_end(
    chat: Chat, ends: Ends, row: Dialogue, piece: ChatText, index: int
) -> tuple[str, Reply, tuple[str, ...]]:
    """Return a text whose last reply has an end, and that reply.

    Raises:
        DataError: The template writes none, and the tokenizer has none to add.
    """
    reply = piece.replies[index]
    if reply.end is not None:
        return piece.text, reply, ()
    following = turns.before_next_question(chat, row.messages, index)
    token = ends.to_add(following) or _eos_token(row, chat.tokenizer)
    text = piece.text[: reply.stop] + token
    return text, reply._replace(end=ends.at_once(token)), ("end_added",)


def _marked(start: int, reply: Reply, marks: Spans | None) -> Spans:
    """Return the supervised part of a reply: all of it, or the part that the template marks.

    Marks that reach the end of its words take the token with them that ends it; without it a model
    could not learn to stop.
    """
    if marks is None:
        return ((start, reply.last),)
    parts = [
        (max(begin, start), min(stop, reply.last))
        for begin, stop in marks
        if min(stop, reply.last) > max(begin, start)
    ]
    if parts and parts[-1][1] >= reply.stop:
        parts[-1] = (parts[-1][0], reply.last)
    return tuple(parts)
