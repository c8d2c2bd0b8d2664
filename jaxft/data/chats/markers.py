"""Markers in place of the contents of messages, to find where a chat template writes them.

`marked({"role": "user", "content": "2 + 2?"}, 0)` has the content `JaxftContent00000Here`. The
template writes the content of message 0 at the place of this marker. In a message with a tool call
and a blank content, the marker replaces the name of the tool.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from jaxft.data.rows.row import Message

# Without white space, so that stripping keeps it whole; letters and digits only, so that escaping
# does too.
_MARKER = "JaxftContent{:05d}Here"
_MARKERS = re.compile(r"JaxftContent(\d{5})Here")


def of(index: int) -> str:
    """Return the marker of a message."""
    return _MARKER.format(index)


def marked(message: Message, index: int) -> Message:
    """Return a message with a marker in place of its words.

    A message without content and without a call is returned unchanged.
    """
    if message["content"].strip():
        return with_content(message, index)
    return with_call(message, index) if message.get("tool_calls") else message


def with_content(message: Message, index: int) -> Message:
    """Return a message with a marker in place of its content, blank or not."""
    return {**message, "content": of(index)}


def with_call(message: Message, index: int) -> Message:
    """Return a message with a marker in place of the name of its first call."""
    first, *others = message["tool_calls"]
    function = {**first["function"], "name": of(index)}
    return {**message, "tool_calls": [{**first, "function": function}, *others]}


def said(message: Message) -> str:
    """Return the words that the marker of a message replaces: its content, or a call's name."""
    if message["content"].strip() or not message.get("tool_calls"):
        return str(message["content"])
    return str(message["tool_calls"][0]["function"]["name"])


def all_marked(messages: Sequence[Message]) -> list[Message]:
    """Return messages with markers in place of their words."""
    return [marked(message, index) for index, message in enumerate(messages)]


def split(text: str) -> list[str]:
    """Return the texts before, between and after the markers."""
    return _MARKERS.split(text)[::2]


def order(text: str) -> tuple[int, ...]:
    """Return the indices of the messages whose markers stand in a text, in order."""
    return tuple(int(number) for number in _MARKERS.findall(text))
