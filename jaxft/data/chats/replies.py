r"""One reply of a chat as it is generated: the prompt of the model, and the text that follows.

For `user: 2 + 2?`, `assistant: 4` in ChatML the prompt ends with `<|im_start|>assistant\n` and the
reply is `4<|im_end|>`. Nothing is assumed about the template: the prompt is the template's own
generation prompt, and the reply is found by comparing the prompt with the text of the chat up to
the reply.
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

# The end of a generation prompt that opens a thought, or that opens and closes an empty one.
_OPENED = re.compile(r"<(\w+)>\s*(</\1>\s*)?\Z")


class Reply(NamedTuple):
    """The character positions of a reply in a text.

    Attributes:
        start: Where generation begins.
        answer: Where the thoughts end and the answer begins.
        stop: Where the words of the reply end.
        end: The token that ends the reply; None if the template writes none.
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
    """The text of a chat up to a reply.

    Attributes:
        text: The text to be tokenized.
        reply: The reply in it.
        own: The text that follows the words of the reply.
        marks: The spans that the template marks as generated; None if it has no marks.
        notes: Names from `notes.NOTES`.
    """

    text: str
    reply: Reply
    own: str
    marks: Spans | None
    notes: tuple[str, ...]


def write_reply(
    chat: Chat, ends: Ends, messages: Sequence[Message], index: int, known_ends: Sequence[str]
) -> Written:
    """Return the text of a chat up to a reply, with the reply as it is generated.

    Args:
        chat: Writes the messages.
        ends: Finds the end of the reply.
        messages: The whole chat.
        index: The index of the reply, a message of the assistant that is not the first message.
        known_ends: Tokens that end replies in this template.

    Raises:
        DataError: The template refuses the messages, or the text of the chat does not begin with
            the prompt.
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
        marks = None  # they are positions in the template's own text
    start = len(prompt)
    answer = start + thoughts.length(words, message)
    reply = Reply(start, answer, start + len(words), end)
    return Written(prompt + words + own, reply, own, marks, notes)


def _rest_after_question(chat: Chat, messages: Sequence[Message], index: int) -> str:
    """Return the text after the prompt, for a chat whose text does not begin with its prompt.

    Mistral's template, for example, puts the system message into a question only while no answer
    follows it. In that case the text behind the question is compared instead: it must begin with
    the text that the prompt has there, and the rest of it is returned.

    Raises:
        DataError: The two texts differ behind the question.
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
    """Return the text that the template writes after the words of a last message.

    None if it cannot be found: the content is blank, or the message calls a tool.
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
        written: The text that the template writes for the reply: after the prompt, or after the
            thought's opening tag if the prompt has one that the text of the chat lacks.
        opened: The match of such an opening tag, and perhaps its closing tag, in the prompt.
    """
    content, reasoning = message["content"], thoughts.of_message(message)
    thought = thoughts.split(content)
    if opened is not None and not opened.group(2):
        tag = opened.group(1)
        if thought.tag:
            return content.lstrip().removeprefix(f"<{tag}>").removeprefix("\n").rstrip(), ()
        if reasoning:
            return f"{reasoning.strip()}\n</{tag}>\n\n{written.lstrip()}", ()
        # A template that searches for the tag may cut a content that only mentions the tag.
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
        # The template drops the thoughts of earlier turns. But here the reply is generated.
        return content.strip(), ()
    if _squeezed(thought.answer) not in here:
        return written, ("words_left_out",)
    if reasoning and _squeezed(reasoning) not in here:
        return written, ("reasoning_left_out",)
    return written, ()


def _squeezed(text: str) -> str:
    """Return a text without white space."""
    return "".join(text.split())
