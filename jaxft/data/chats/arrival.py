"""Whether what a row says arrives in the text that the chat template writes.

A template may have no place for the role `developer`, for tools or for their calls, and most
templates then leave them out without a word. What would be lost is refused with its place, or
noted.
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
    """Return a chat that writes the calls of tools among its messages.

    Some templates write them only where the content beside them is null (DeepSeek R1), others fail
    on null.

    Args:
        chat: What writes the messages.
        messages: The chat.
        layouts: What earlier calls with the same tokenizer found out; it is added to.

    Raises:
        DataError: The template writes a call in neither way.
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
    """Return a note if the chat has tools and the template does not write them."""
    if chat.tools and chat.write(messages) == chat._replace(tools=()).write(messages):
        return ("tools_left_out",)
    return ()


def lost_thoughts(text: str, replies: Iterable[Message]) -> tuple[str, ...]:
    """Return a note if replies have thoughts in a field of their own that a text has not."""
    fields = [thought for reply in replies if (thought := thoughts.of_message(reply))]
    if not fields:
        return ()
    here = "".join(text.split())
    is_lost = any("".join(thought.split()) not in here for thought in fields)
    return ("reasoning_left_out",) if is_lost else ()


def check(chat: Chat, messages: Sequence[Message], wanted: Sequence[int]) -> None:
    """Raise if what another than the assistant says is in no prompt of a wanted reply behind it.

    A prompt may lack what an earlier one has, since it is what generation is given: Mistral's
    template writes the system's words only where a question is last.

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
