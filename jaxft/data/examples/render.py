"""A row as text, with the spans of the text that are supervised.

`{"prompt": "2 + 2 =", "completion": " 4"}` becomes `2 + 2 = 4</s>`, and ` 4</s>` is supervised.
This file decides which part is supervised; `turns` finds the position of that part in a chat, and
`tokens` finds its tokens.
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
    """The text of one example.

    Attributes:
        text: The text for the tokenizer.
        spans: The supervised spans, as pairs of character positions (start and stop).
        is_plain: Whether the tokenizer adds its own start and end tokens. It does not for a chat,
            because the template writes them.
        ends: The tokens that end supervised spans, as text.
        notes: Names from `notes.NOTES`.
    """

    text: str
    spans: Spans
    is_plain: bool
    ends: tuple[str, ...]
    notes: tuple[str, ...]


def render_row(row: Row, encoding: Encoding) -> list[Rendered]:
    """Return the text of each example of a row; several if a chat is cut into its replies.

    Args:
        row: A row that is not tokens.
        encoding: Names the supervised part and the tokenizer.

    Raises:
        DataError: The tokenizer has no template or no end token, or its template refuses the row.
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
            # The end token alone would teach the model to write nothing.
            return [rendered if row.text.strip() else rendered._replace(spans=(), ends=())]
    raise TypeError(f"no such row: {type(row).__name__}")


def _closed(prompt: str, completion: str, row: Row, tokenizer: Tokenizer) -> Rendered:
    """Join prompt and completion, and append the end token.

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
        found = turns.texts(chat, ends, row.messages, chosen, encoding.layouts)
        rendered = [_render_text(chat, ends, row, each, encoding) for each in found]
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
    """Return the text of a chat that is supervised as a whole."""
    text = chat.write(row.messages)
    if not chosen or chosen[-1] != len(row.messages) - 1:
        return Rendered(text, ((0, len(text)),), False, (), ())
    (last,) = turns.texts(chat, ends, row.messages, chosen[-1:], {})
    closed, reply, added = _with_end(chat, ends, row, last, chosen[-1])
    if last.text == text:
        text = closed
    ends_with = (reply.end.token,) if reply.end else ()
    return Rendered(text, ((0, len(text)),), False, ends_with, added)


def _render_text(
    chat: Chat, ends: Ends, row: Dialogue, found: ChatText, encoding: Encoding
) -> Rendered:
    """Return the text and the spans of its replies. A last reply without an end gets one."""
    last = max(found.replies)
    text, reply, added = _with_end(chat, ends, row, found, last)
    replies = {**found.replies, last: reply}
    spans: list[tuple[int, int]] = []
    for each in replies.values():
        start = each.start if encoding.train_on_reasoning else each.answer
        spans += _marked(start, each, found.marks)
    tokens = dict.fromkeys(each.end.token for each in replies.values() if each.end)
    return Rendered(text, tuple(spans), False, tuple(tokens), (*found.notes, *added))


def _with_end(
    chat: Chat, ends: Ends, row: Dialogue, found: ChatText, index: int
) -> tuple[str, Reply, tuple[str, ...]]:
    """Return the text with an end after its last reply, that reply, and the notes about it.

    Raises:
        DataError: The template writes no end, and the tokenizer has no end token to add.
    """
    reply = found.replies[index]
    if reply.end is not None:
        return found.text, reply, ()
    following = turns.before_next_question(chat, row.messages, index)
    token = ends.to_add(following) or _eos_token(row, chat.tokenizer)
    text = found.text[: reply.stop] + token
    return text, reply._replace(end=ends.at_once(token)), ("end_added",)


def _marked(start: int, reply: Reply, marks: Spans | None) -> Spans:
    """Return the supervised spans of a reply: all of it, or the parts that the template marks.

    If the marks reach the end of the reply's words, its end token is supervised too. Without that a
    model could not learn to stop.
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
