r"""One reply of a chat as it is generated: what the model is given, and what it then writes.

For `user: 2 + 2?`, `assistant: 4` in ChatML the prompt ends with `<|im_start|>assistant\n` and the
reply is `4<|im_end|>`. Nothing is assumed of the template: the prompt is its own generation prompt,
and the reply is found by comparing it with the chat that ends there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from jaxft.data.chats import markers, thoughts
from jaxft.data.chats.chat import Chat, Spans
from jaxft.data.chats.ends import End, Ends
from jaxft.data.rows.row import Message
from jaxft.errors import DataError

# How a generation prompt opens a thought, or opens and closes an empty one.
_OPENED = re.compile(r"<(\w+)>\s*(</\1>\s*)?\Z")


class Reply(NamedTuple):
    """A reply in a text, by character positions.

    Attributes:
        start: Where generation begins.
        answer: Where thoughts end and the answer begins.
        stop: Where its words end.
        end: The token that ends it, None if the template writes none.
    """

    start: int
    answer: int
    stop: int
    end: End | None

    @property
    def last(self) -> int:
        """Where the supervised part ends: after the end token."""
        return self.stop + (self.end.length if self.end else 0)


class Written(NamedTuple):
    """A chat up to a reply, as text.

    Attributes:
        text: What is tokenized.
        reply: The reply in it.
        own: What follows the reply's words.
        marks: What the template marks as generated, None if it has no marks.
        notes: What is worth counting.
    """

    text: str
    reply: Reply
    own: str
    marks: Spans | None
    notes: tuple[str, ...]


def write_reply(
    chat: Chat, ends: Ends, messages: Sequence[Message], index: int, known_ends: Sequence[str]
) -> Written:
    """Return the chat up to the reply at `index` as it is when that reply is generated.

    Args:
        chat: What writes it.
        ends: Finds the end.
        messages: The whole chat.
        index: Which message; one of the assistant, and not the first.
        known_ends: Tokens that end replies in this template.

    Raises:
        DataError: The template refuses the messages, or what it writes of the chat does not begin
            with what it writes as the prompt.
    """
    message = messages[index]
    prompt = chat.write(messages[:index], is_prompt=True)
    written, marks = chat.write_with_marks(messages[: index + 1])
    opened = None if written.startswith(prompt) else _OPENED.search(prompt)
    if opened is not None and not written.startswith(prompt[: opened.start()]):
        opened = None
    if opened is not None:
        rest = written[opened.start() :]
    elif written.startswith(prompt):
        rest = written[len(prompt) :]
    else:
        rest, marks = _rest_after_question(chat, messages, index), None
    own = _after_content(chat, messages, index, written)
    if own is None:
        found = ends.first_stop(rest, known_ends)
        stop, end = found if found else (len(rest.rstrip()), None)
        own = rest[stop:]
    else:
        stop = len(rest) - len(own)
        end = ends.after(own, own)
    words, notes = _words(message, rest[:stop], opened)
    if words != rest[:stop] or opened is not None:
        marks = None  # they are positions in what the template wrote
    start = len(prompt)
    answer = start + thoughts.length(words, message)
    reply = Reply(start, answer, start + len(words), end)
    return Written(prompt + words + own, reply, own, marks, notes)


def _rest_after_question(chat: Chat, messages: Sequence[Message], index: int) -> str:
    """Return what follows the prompt, where the template writes the prompt itself differently.

    Mistral's template puts the system's words into a question only while no answer follows it. The
    prompt is then what generation is given, and the reply is what stands behind the question, after
    all that the prompt has there.

    Raises:
        DataError: The two do not agree behind the question.
    """
    question = markers.with_content(messages[index - 1], index - 1)
    before = [*messages[: index - 1], question]
    _, *in_prompt = markers.split(chat.write(before, is_prompt=True))
    _, *in_chat = markers.split(chat.write([*before, messages[index]]))
    if len(in_prompt) == len(in_chat) == 1 and in_chat[0].startswith(in_prompt[0]):
        return in_chat[0][len(in_prompt[0]) :]
    raise DataError(
        f"{chat.place}: the chat template cannot be split exactly: what it gives generation"
        f" before message {index} is not how the chat with the message begins.",
        "Set data.chat_template to another one, or use rows of prompt and completion strings.",
    )


def _after_content(chat: Chat, messages: Sequence[Message], index: int, written: str) -> str | None:
    """Return what the template writes after the words of a last message.

    None if that cannot be told: the content is blank, or is left out beside a call of a tool.
    """
    message = messages[index]
    if not message["content"].strip() or message.get("tool_calls"):
        return None
    probed = chat.write([*messages[:index], markers.with_content(message, index)])
    _, *after = markers.split(probed)
    return after[0] if len(after) == 1 and written.endswith(after[0]) else None


def _words(
    message: Message, written: str, opened: re.Match[str] | None
) -> tuple[str, tuple[str, ...]]:
    """Return the words of a reply, thoughts included, as they are generated after the prompt.

    Args:
        message: The reply.
        written: What the template writes of it after the prompt, or after where the prompt opens a
            thought that the template does not write.
        opened: What the prompt opens (and perhaps closes) there.
    """
    content, reasoning = message["content"], thoughts.of_message(message)
    thought = thoughts.split(content)
    if opened is not None and not opened.group(2):
        tag = opened.group(1)
        if thought.tag:
            return content.lstrip().removeprefix(f"<{tag}>").removeprefix("\n").rstrip(), ()
        if reasoning:
            return f"{reasoning.strip()}\n</{tag}>\n\n{written.lstrip()}", ()
        # A template that looks for the tag may cut a content that only speaks of it.
        is_whole = _squeezed(content) in _squeezed(written)
        answer = written.lstrip() if is_whole else content
        return f"\n</{tag}>\n\n{answer}", ("thought_closed",)
    if opened is not None:
        own = thoughts.split(written)
        lost = bool(own.text.strip() or reasoning)
        answer = own.answer.lstrip() if own.tag else written
        return answer, ("reasoning_left_out",) if lost else ()
    here = _squeezed(written)
    if thought.tag and _squeezed(thought.answer) in here and _squeezed(thought.text) not in here:
        # A template that leaves out thoughts does so for earlier turns; this one is generated.
        return content.strip(), ()
    if _squeezed(thought.answer) not in here:
        return written, ("words_left_out",)
    if reasoning and _squeezed(reasoning) not in here:
        return written, ("reasoning_left_out",)
    return written, ()


def _squeezed(text: str) -> str:
    """Return a text without white space."""
    return "".join(text.split())
