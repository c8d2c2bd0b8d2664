"""The layout of chats with one outline: the fixed texts around contents, and where replies stand.

The outline of a chat is everything but its words: roles, blank contents, further fields. For each
outline the template writes the chat once with markers as contents, and once more up to a reply for
each kind of surroundings, so that the cost does not grow with the square of the turns. Each further
chat of the outline needs one rendering, in which the replies are found by the texts around them.
There is a layout only if one text contains all replies as they are generated.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jaxft.data.chats import markers, thoughts
from jaxft.data.chats.chat import Chat
from jaxft.data.chats.ends import End, Ends
from jaxft.data.chats.replies import Reply
from jaxft.data.rows.row import Message


class ReplyLayout(NamedTuple):
    """The parts of a reply around the words that its marker stands for.

    Attributes:
        gap: Characters that are generated before these words.
        tail: Characters of the reply behind them; not 0 only if they are the name of a call.
        end: The token that ends the reply; None if the template writes none.
    """

    gap: int
    tail: int
    end: End | None


class Layout(NamedTuple):
    """The layout of chats with one outline.

    Attributes:
        segments: The fixed texts before, between and after the words of messages.
        order: The indices of the messages whose words stand between the segments.
        replies: The wanted replies by index; only the last one may have no end.
    """

    segments: tuple[str, ...]
    order: tuple[int, ...]
    replies: dict[int, ReplyLayout]


def outline(chat: Chat, messages: Sequence[Message], wanted: Sequence[int]) -> Any:
    """Return the key of a chat's layout: everything that decides it besides the template."""
    further = [
        {name: value for name, value in message.items() if name != "content"}
        | {"is_blank": not message["content"].strip()}
        for message in messages
    ]
    given = [further, list(chat.tools), dict(chat.template_kwargs)]
    return json.dumps(given, sort_keys=True, default=str), tuple(wanted)


def find(
    chat: Chat, ends: Ends, messages: Sequence[Message], wanted: Sequence[int], known: Sequence[str]
) -> Layout | None:
    """Find the layout of chats with the outline of a chat; None if it has none.

    Args:
        chat: Writes the messages.
        ends: Finds the ends of replies.
        messages: A chat of the outline.
        wanted: Indices of the wanted replies.
        known: Tokens that end replies in this template.
    """
    marked = markers.all_marked(messages)
    for index in wanted:
        if not markers.order(str(marked[index])):  # a blank reply gets a marker like the others
            marked[index] = markers.with_content(messages[index], index)
        if messages[index].get("tool_calls") and messages[index]["content"].strip():
            return None
    text = chat.write(marked)
    segments, order = markers.split(text), markers.order(text)
    said = {i for i, message in enumerate(marked) if markers.order(str(message))}
    if not said <= set(order):
        return None
    layout = Layout(tuple(segments), order, {})
    looks: dict[Any, tuple[str, str] | None] = {}
    for index in wanted:
        if order.count(index) != 1:
            return None
        at, look = order.index(index), _surroundings(messages, index)
        if look not in looks:
            looks[look] = _gap_and_own(chat, marked, index, text)
        found = looks[look]
        if found is None or not segments[at].endswith(found[0]):
            return None
        reply = _reply(ends, messages[index], len(found[0]), segments[at + 1], found[1], known)
        is_last = index == len(messages) - 1 and at == len(order) - 1
        if reply is None or (reply.end is None and not is_last):
            return None
        layout.replies[index] = reply
    return layout


def place(layout: Layout, text: str, messages: Sequence[Message]) -> dict[int, Reply] | None:
    """Return the positions of the replies in a text; None if the text does not have the layout."""
    if not text.startswith(layout.segments[0]):
        return None
    found = {}
    at = len(layout.segments[0])
    for index, following in zip(layout.order, layout.segments[1:], strict=True):
        length = next(
            (
                len(variant)
                for variant in _as_written(markers.said(messages[index]))
                if text.startswith(variant, at) and text.startswith(following, at + len(variant))
            ),
            None,
        )
        if length is None:
            return None
        if reply := layout.replies.get(index):
            start, stop = at - reply.gap, at + length + reply.tail
            # Text that is generated before a content is thought; before a call it need not be.
            begin = start if messages[index].get("tool_calls") else at
            answer = begin + thoughts.length(text[begin:stop], messages[index])
            found[index] = Reply(start, answer, stop, reply.end)
        at += length + len(following)
    return found if at == len(text) else None


def _as_written(said: str) -> Iterator[str]:
    """Yield the forms in which templates write a content: unchanged, or stripped at either end."""
    yield said
    yield said.strip()
    yield said.lstrip()
    yield said.rstrip()


def _surroundings(messages: Sequence[Message], index: int) -> Any:
    """Return the features of a message and its neighbours that decide how it is written."""
    near = [
        (message["role"], not message["content"].strip(), sorted(message))
        for message in messages[max(index - 1, 0) : index + 2]
    ]
    return json.dumps([near, index == 1, index < 3, index + 2 < len(messages)])


def _gap_and_own(
    chat: Chat, marked: Sequence[Message], index: int, text: str
) -> tuple[str, str] | None:
    """Return the text generated before a reply's marker, and the text after it if it is last.

    None if the reply does not stand in the text of the whole chat as it is generated.
    """
    prompt = chat.write(marked[:index], is_prompt=True)
    alone = chat.write(marked[: index + 1])
    before, marker, own = alone.rpartition(markers.of(index))
    if not marker or not before.startswith(prompt) or not text.startswith(before + marker):
        return None
    return before[len(prompt) :], own


def _reply(
    ends: Ends, message: Message, gap: int, following: str, own: str, known: Sequence[str]
) -> ReplyLayout | None:
    """Return the layout of a reply; None if it is a call whose end cannot be found."""
    if not message.get("tool_calls"):
        return ReplyLayout(gap, 0, ends.after(following, own))
    stop = ends.first_stop(following, known)
    return None if stop is None else ReplyLayout(gap, stop[0], stop[1])
