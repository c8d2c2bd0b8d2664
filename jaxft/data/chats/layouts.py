"""How chats of one outline are written, if one text has all their replies as they are generated.

The outline is everything but the words said: roles, blank contents, further fields. It is written
once with markers, and again up to some replies, one for each kind of surroundings, so that the cost
does not grow with the square of the turns. A chat of that outline is then one rendering, in which
every reply is found by the texts around it.
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
    """A reply around what its marker stands for.

    Attributes:
        gap: Characters that are generated before it.
        tail: Characters of the reply behind it, where it is the name of a call.
        end: The token that ends the reply, None if the template writes none.
    """

    gap: int
    tail: int
    end: End | None


class Layout(NamedTuple):
    """How a chat of one outline is written.

    Attributes:
        segments: The texts before, between and after the words said.
        order: Which messages say what is between them.
        turns: The replies by their index; the last one may have no end.
    """

    segments: tuple[str, ...]
    order: tuple[int, ...]
    turns: dict[int, ReplyLayout]


def outline(chat: Chat, messages: Sequence[Message], wanted: Sequence[int]) -> Any:
    """Return what the layout of a chat depends on, to look it up by."""
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
    """Find out how chats of this outline are written; None if not as one text.

    Args:
        chat: What writes the messages.
        ends: Finds the ends of replies.
        messages: A chat of the outline.
        wanted: Indices of the replies that are looked for.
        known: Tokens that end replies in this template.
    """
    marked = markers.all_marked(messages)
    for index in wanted:
        if not markers.order(str(marked[index])):  # a blank reply: its place is found as another's
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
        turn = _turn(ends, messages[index], len(found[0]), segments[at + 1], found[1], known)
        is_last = index == len(messages) - 1 and at == len(order) - 1
        if turn is None or (turn.end is None and not is_last):
            return None
        layout.turns[index] = turn
    return layout


def place(layout: Layout, text: str, messages: Sequence[Message]) -> dict[int, Reply] | None:
    """Return where the replies are in a text that has the layout; None if it has another."""
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
        if turn := layout.turns.get(index):
            start, stop = at - turn.gap, at + length + turn.tail
            # Before a content all that is generated is thought; before a call it need not be.
            begin = start if messages[index].get("tool_calls") else at
            answer = begin + thoughts.length(text[begin:stop], messages[index])
            found[index] = Reply(start, answer, stop, turn.end)
        at += length + len(following)
    return found if at == len(text) else None


def _as_written(said: str) -> Iterator[str]:
    """Yield a content in the ways that templates write it: as it is, or without outer spaces."""
    yield said
    yield said.strip()
    yield said.lstrip()
    yield said.rstrip()


def _surroundings(messages: Sequence[Message], index: int) -> Any:
    """Return the features of a turn and its neighbours that its writing can depend on."""
    near = [
        (message["role"], not message["content"].strip(), sorted(message))
        for message in messages[max(index - 1, 0) : index + 2]
    ]
    return json.dumps([near, index == 1, index < 3, index + 2 < len(messages)])


def _gap_and_own(
    chat: Chat, marked: Sequence[Message], index: int, text: str
) -> tuple[str, str] | None:
    """Return what is generated before a reply's marker, and what follows it when it is last.

    None if the text of the whole chat does not have the reply as it is generated.
    """
    prompt = chat.write(marked[:index], is_prompt=True)
    alone = chat.write(marked[: index + 1])
    before, marker, own = alone.rpartition(markers.of(index))
    if not marker or not before.startswith(prompt) or not text.startswith(before + marker):
        return None
    return before[len(prompt) :], own


def _turn(
    ends: Ends, message: Message, gap: int, following: str, own: str, known: Sequence[str]
) -> ReplyLayout | None:
    """Return a reply; None if it is a call whose end cannot be told."""
    if not message.get("tool_calls"):
        return ReplyLayout(gap, 0, ends.after(following, own))
    stop = ends.first_stop(following, known)
    return None if stop is None else ReplyLayout(gap, stop[0], stop[1])
