r"""The thoughts of a reply, which stand before its answer.

`<think>\nTwo and two.\n</think>\n\n4` has the thought `Two and two.` and the answer `4`. The
opening tag may be missing, because with some models it is part of the generation prompt.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxft.data.rows.row import Message

# The names of tags around thoughts, and of the message fields in which trainers and servers keep
# thoughts.
_TAGS = ("think", "thinking", "thought", "reasoning")
_FIELDS = ("reasoning_content", "reasoning", "thinking")


class Thought(NamedTuple):
    """A text that is cut at the end of its thought.

    Attributes:
        text: The thought, without tags.
        tag: The name of the tag; "" if the text has no thought.
        answer: The text after the thought.
    """

    text: str
    tag: str
    answer: str


def split(text: str) -> Thought:
    """Cut a reply at the end of the thought that it begins with, if it begins with one."""
    for tag in _TAGS:
        before, closing, answer = text.partition(f"</{tag}>")
        opening = f"<{tag}>"
        if closing and (before.lstrip().startswith(opening) or opening not in before):
            return Thought(before.lstrip().removeprefix(opening), tag, answer)
    return Thought("", "", text)


def of_message(message: Message) -> str:
    """Return the thought that a message has in a separate field, or ""."""
    return next((message[name] for name in _FIELDS if message.get(name)), "")


def length(words: str, message: Message) -> int:
    """Return the number of characters of a generated reply that stand before its answer.

    Args:
        words: The reply, from the end of the generation prompt.
        message: The message of the reply.
    """
    found = split(words)
    if found.tag:
        return len(words) - len(found.answer.lstrip())
    answer = message["content"].strip()
    if of_message(message) and answer:
        return max(words.rfind(answer), 0)
    return 0
