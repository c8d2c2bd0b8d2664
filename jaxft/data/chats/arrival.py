"""Checks that the text of a chat template contains everything that the row says.

A template may have no place for the role `developer`, for tools or for tool calls, and most
templates then leave them out silently. Such a row is refused, or a note is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from jaxft.data.chats import markers, thoughts
from jaxft.data.chats.chat import Chat
from jaxft.data.rows.row import Message
from jaxft.errors import DataError

_REMEDY = (
    "Say it in a message that the template writes, take it out of the row, or set "
    "data.chat_template to another template."
)


def with_calls(chat: Chat, messages: Sequence[Message], layouts: dict[Any, Any]) -> Chat:
    """Return a chat whose template writes all tool calls in its messages.

    Some templates write a call only if the content beside it is null (DeepSeek R1); others fail on
    a null content. So both are tried.

    Args:
        chat: Writes the messages.
        messages: The chat.
        layouts: A memory of results for the same tokenizer, which is added to.

    Raises:
        DataError: The template leaves out a call in both cases.
    """
    calling = [index for index, message in enumerate(messages) if message.get("tool_calls")]
    if not calling:
        return chat
    key = ("null beside calls", chat.template)
    probe = list(messages)
    for index in calling:
        probe[index] = markers.with_call(messages[index], index)
    for nulls in [layouts[key]] if key in layouts else [False, True]:
        changed = chat._replace(has_null_contents=nulls)
        try:
            missing = set(calling) - set(markers.order(changed.write(probe)))
        except DataError:
            if not nulls:
                raise
            break
        if not missing:
            layouts[key] = nulls
            return changed
    first = min(set(calling) - set(markers.order(chat.write(probe))), default=calling[0])
    raise DataError(
        f"{chat.place}: the chat template leaves out the call of a tool in message {first}.",
        _REMEDY,
    )


def lost_tools(chat: Chat, messages: Sequence[Message]) -> tuple[str, ...]:
    """Return the note `tools_left_out` if the template does not write the chat's tools."""
    if chat.tools and chat.write(messages) == chat._replace(tools=()).write(messages):
        return ("tools_left_out",)
    return ()


def lost_thoughts(text: str, replies: Iterable[Message]) -> tuple[str, ...]:
    """Return the note `reasoning_left_out` if a text lacks a thought from a field of a reply."""
    fields = [thought for reply in replies if (thought := thoughts.of_message(reply))]
    if not fields:
        return ()
    here = "".join(text.split())
    is_lost = any("".join(thought.split()) not in here for thought in fields)
    return ("reasoning_left_out",) if is_lost else ()


def check(chat: Chat, messages: Sequence[Message], wanted: Sequence[int]) -> None:
    """Raise if a message of a user, system or tool is in no prompt.

    Only messages before the last wanted reply count, and only the prompts of wanted replies. One
    prompt may lack a message that another one has: Mistral's template writes the system message
    only into the last question.

    Raises:
        DataError: The template leaves out a message.
    """
    marked = markers.all_marked(messages)
    written: set[int] = set()
    for index in wanted:
        written |= set(markers.order(chat.write(marked[:index], is_prompt=True)))
    for index, message in enumerate(messages[: max(wanted, default=0)]):
        is_said = message["role"] != "assistant" and message["content"].strip()
        if is_said and index not in written:
            raise DataError(
                f"{chat.place}: the chat template leaves out message {index}, of the role"
                f' "{message["role"]}".',
                _REMEDY,
            )
