"""Markers in place of what messages say, to see where a chat template writes it.

`marked({"role": "user", "content": "2 + 2?"}, 0)` has the content `JaxftContent00000Here`; where
that stands in the text, the content of message 0 does. A message that says nothing and calls a tool
has its marker in place of the tool's name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from jaxft.data.rows.row import Message

# It has no white space, so that a template which strips keeps it, and letters and digits alone, so
# that one which escapes does too.
_MARKER = "JaxftContent{:05d}Here"
_MARKERS = re.compile(r"JaxftContent(\d{5})Here")


def of(index: int) -> str:
    """Return the marker of a message."""
    return _MARKER.format(index)


def marked(message: Message, index: int) -> Message:
    """Return a message with a marker in place of what it says; one that says nothing as it is."""
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
    """Return what the marker of a message stands for: its content, or the name of a call."""
    if message["content"].strip() or not message.get("tool_calls"):
        return str(message["content"])
    return str(message["tool_calls"][0]["function"]["name"])


def all_marked(messages: Sequence[Message]) -> list[Message]:
    """Return messages with markers in place of what they say."""
    return [marked(message, index) for index, message in enumerate(messages)]


def split(text: str) -> list[str]:
    """Return the texts before, between and after the markers."""
    return _MARKERS.split(text)[::2]


def order(text: str) -> tuple[int, ...]:
    """Return the indices of the messages whose markers stand in a text, in order."""
    return tuple(int(number) for number in _MARKERS.findall(text))
