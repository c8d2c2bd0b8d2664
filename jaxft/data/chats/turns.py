"""A chat as one text with all its replies, or as one text for each reply.

Most templates write a turn in the same way wherever it stands, so that one text serves all replies.
Others rewrite earlier turns (Qwen 3 drops their thoughts) or write no end after them; then each
reply gets a text of its own, which ends with this reply. Which of the two holds depends on the
outline of the chat (roles, blank contents, further fields) and not on its words. So it is found out
once for each outline, with markers as contents, and a chat with a known outline is rendered once.
But if a content contains a text that the template searches for, such as `</think>`, every reply is
rendered on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxft.data.chats import arrival, layouts, markers, replies
from jaxft.data.chats import chat as chats
from jaxft.data.chats.chat import Chat, Spans
from jaxft.data.chats.ends import Ends
from jaxft.data.chats.replies import Reply, Written
from jaxft.data.rows.row import Message
from jaxft.errors import DataError


class ChatText(NamedTuple):
    """The text of a chat or of its beginning, and the replies in it.

    Attributes:
        text: The text to be tokenized.
        replies: The positions of the replies, by the index of their message.
        marks: The spans that the template marks as generated; None if it has no marks.
        notes: Names from `notes.NOTES`.
    """

    text: str
    replies: dict[int, Reply]
    marks: Spans | None
    notes: tuple[str, ...]


def texts(
    chat: Chat, ends: Ends, messages: Sequence[Message], wanted: Sequence[int], found_out: dict
) -> list[ChatText]:
    """Return texts in which each wanted reply stands once, as it is generated.

    Args:
        chat: Writes the messages.
        ends: Finds the ends of replies.
        messages: The chat.
        wanted: Indices of the wanted replies, all of them messages of the assistant.
        found_out: A memory of results for the same tokenizer, which is added to.

    Raises:
        DataError: The template refuses the messages, leaves one of them out, or cannot be split.
    """
    chat = arrival.with_calls(chat, messages, found_out)
    lost = arrival.lost_tools(chat, messages)
    known = _known_ends(chat, ends, found_out)
    outline = layouts.outline(chat, messages, wanted)
    if outline not in found_out:
        found_out[outline] = layouts.find(chat, ends, messages, wanted, known)
    layout = found_out[outline]
    text, marks = chat.write_with_marks(messages)
    if layout is not None and _is_plain(chat, messages):
        shared = layouts.place(layout, text, messages)
        if shared is not None:
            thoughts = arrival.lost_thoughts(text, [messages[i] for i in wanted])
            return [ChatText(text, shared, marks, (*lost, *thoughts))]
    arrival.check(chat, messages, wanted)
    alone = {i: replies.write_reply(chat, ends, messages, i, known) for i in wanted}
    merged = _merged(ends, text, alone)
    notes = (*lost, *dict.fromkeys(note for each in alone.values() for note in each.notes))
    if merged is not None:
        return [ChatText(text, merged, marks, notes)]
    if len(alone) > 1:
        notes = ("cut_into_replies", *notes)
    first, *rest = [ChatText(one.text, {i: one.reply}, one.marks, ()) for i, one in alone.items()]
    return [first._replace(notes=notes), *rest]


def _is_plain(chat: Chat, messages: Sequence[Message]) -> bool:
    """Return whether no content has a text that the template searches for."""
    sought, compared = chats.tested_texts(chat.template)
    return not any(
        message["content"] in compared or any(text in message["content"] for text in sought)
        for message in messages
    )


def _merged(ends: Ends, text: str, alone: dict[int, Written]) -> dict[int, Reply] | None:
    """Return the replies in the text of the whole chat; None if one is not as it is generated."""
    found = {}
    last = max(alone, default=0)
    stops = [one.reply.stop for one in alone.values()]
    limits = [*(one.reply.start for one in list(alone.values())[1:]), len(text)]
    for (index, one), stop, limit in zip(alone.items(), stops, limits, strict=True):
        if not text.startswith(one.text[:stop]):
            return None
        end = ends.after(text[stop:limit], one.own)
        if end is None and one.reply.end is not None:
            end = one.reply.end if text.startswith(one.text[: one.reply.last]) else None
        if end is None and (index != last or one.reply.end is not None):
            return None
        found[index] = one.reply._replace(end=end)
    return found


def _known_ends(chat: Chat, ends: Ends, found_out: dict) -> tuple[str, ...]:
    """Return the tokens that end plain replies of this template, if they can be found."""
    key = ("known ends", chat.template)
    if key not in found_out:
        plain = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            written = replies.write_reply(chat._replace(tools=()), ends, plain, 1, ())
        except DataError:
            written = None
        end = written.reply.end if written is not None else None
        found_out[key] = (end.token,) if end is not None else ()
    known: tuple[str, ...] = found_out[key]
    return known


def before_next_question(chat: Chat, messages: Sequence[Message], index: int) -> str:
    """Return the text that the template writes between a reply and a user's next content.

    It is "" if the template refuses such a message or writes it elsewhere.
    """
    ask = {"role": "user", "content": "a"}
    probes = [*messages[: index + 1], ask]
    probed = [*probes[:index], *(markers.with_content(probes[i], i) for i in (index, index + 1))]
    try:
        _, *after = markers.split(chat.write(probed))
    except DataError:
        return ""
    return after[0] if len(after) == 2 else ""
