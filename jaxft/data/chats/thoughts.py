r"""The thoughts of a reply, which come before its answer.

`<think>\nTwo and two.\n</think>\n\n4` has the thought `Two and two.` and the answer `4`. Models
differ in who writes the opening tag (the model, or the generation prompt), so it may be missing.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxft.data.rows.row import Message

# Tags that models think between, and the fields that trainers and servers keep thoughts in.
_TAGS = ("think", "thinking", "thought", "reasoning")
_FIELDS = ("reasoning_content", "reasoning", "thinking")


class Thought(NamedTuple):
    """A text cut at the end of its thought.

    Attributes:
        text: The thought, without tags.
        tag: The name of its tag, "" if the text has no thought.
        answer: What follows.
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
    """Return the thought that a message has in a field of its own, or ""."""
    return next((message[name] for name in _FIELDS if message.get(name)), "")


def length(words: str, message: Message) -> int:
    """Return how many characters of a reply, as it is generated, come before its answer.

    Args:
        words: The reply, from the end of the generation prompt.
        message: The message that it is made of.
    """
    found = split(words)
    if found.tag:
        return len(words) - len(found.answer.lstrip())
    answer = message["content"].strip()
    if of_message(message) and answer:
        return max(words.rfind(answer), 0)
    return 0
