"""Chats from the fields of a row: from messages, questions with answers, or instructions.

`{"system": "Be brief.", "question": "2 + 2?", "answer": "4"}` becomes three messages, of the
system, the user and the assistant. `shapes` decides beforehand that the row is a chat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxft.data.rows import fields, flags, messages, tools
from jaxft.data.rows.fields import Given
from jaxft.data.rows.flags import MarkedMessage
from jaxft.data.rows.row import Dialogue
from jaxft.data.rows.wording import kind, names, quoted
from jaxft.errors import DataError

# Fields that any chat may have beside its messages. `flags.VERDICTS` are further ones.
BESIDE = ("system", "tools", "functions", "chat_template_kwargs", "train_turns")
# Fields that a question or an instruction may have beside it.
BESIDE_QUESTIONS = (*BESIDE, "context", "history")

# Arguments of a chat template that are set by jaxft or transformers, and not by a row.
_RESERVED_KWARGS = (
    "messages",
    "conversation",
    "conversations",
    "tools",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "return_assistant_tokens_mask",
    "tokenize",
)


def from_messages(given: Given, name: str) -> Dialogue:
    """Return the chat whose messages are in the field `name`."""
    turns, unused = messages.read(given.values[name], given.label(name), given.place)
    return _dialogue(given, turns, 0, unused)


def from_prompt(given: Given) -> Dialogue:
    """Return the chat of a prompt and a completion that are both lists of messages."""
    prompt, completion = (
        messages.read(given.values[name], given.label(name), given.place)
        for name in ("prompt", "completion")
    )
    unused = tuple(dict.fromkeys((*prompt.unused, *completion.unused)))
    return _dialogue(given, [*prompt.turns, *completion.turns], len(prompt.turns), unused)


def from_question(given: Given) -> Dialogue:
    """Return the chat of a question and its answer."""
    return _asked(given, given.text("question"), given.text("answer"))


def from_instruction(given: Given) -> Dialogue:
    """Return the chat of an instruction, whose input, if any, follows in the same message."""
    about = given.text("input")
    instruction = given.text("instruction")
    asked = f"{instruction}\n\n{about}" if about.strip() else instruction
    return _asked(given, asked, given.text("output"))


def _asked(given: Given, question: str, answer: str) -> Dialogue:
    """Return the chat of a question and its answer.

    A context stands before the question in the same message; earlier questions and answers are
    messages of their own.
    """
    context = given.text("context")
    asked = f"{context}\n\n{question}" if context.strip() else question
    earlier = _history(given)
    turns = [
        MarkedMessage("", {"role": "user" if index % 2 == 0 else "assistant", "content": said}, {})
        for index, said in enumerate([*earlier, asked, answer])
    ]
    return _dialogue(given, turns, 0, ())


def _history(given: Given) -> list[str]:
    """Return the earlier questions and answers as one list, in turn."""
    name = given.label("history")
    if given.is_empty("history"):
        return []
    pairs = fields.from_text(given.values["history"], name, given.place)
    expected = 'Expected a list of questions with answers, such as [["2 + 2?", "4"]].'
    if not isinstance(pairs, list):
        raise DataError(f'{given.place}: "{name}" is {kind(pairs)}.', expected)
    said = []
    for index, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f'{given.place}: "{name}[{index}]" is not a pair.', expected)
        said += [
            fields.text(each, f"{name}[{index}][{part}]", given.place)
            for part, each in enumerate(pair)
        ]
    return said


def _dialogue(
    given: Given, turns: Sequence[MarkedMessage], num_prompt: int, unused: tuple[str, ...]
) -> Dialogue:
    """Return the chat of messages, with the system message, tools and variables of the row.

    Args:
        given: The row.
        turns: Its messages.
        num_prompt: How many messages at the beginning are a prompt.
        unused: Names of the messages' fields that were not used.
    """
    skipped = flags.skipped(turns, num_prompt, given)
    said = [turn.message for turn in turns]
    system = given.text("system")
    has_own = said[0]["role"] == "system"
    if system.strip() and has_own and said[0]["content"].strip() != system.strip():
        raise DataError(
            f"{given.place}: {quoted(given.label('system'))} is not what the first message, of the"
            " system, says.",
            "Keep one of the two.",
        )
    if system.strip() and not has_own:
        said = [{"role": "system", "content": system}, *said]
        skipped = frozenset(index + 1 for index in skipped)
        num_prompt += bool(num_prompt)
    return Dialogue(
        given.place,
        said,
        num_prompt,
        skipped,
        _tools(given),
        _template_kwargs(given),
        unused=unused,
    )


def _tools(given: Given) -> tuple[Mapping[str, Any], ...]:
    """Return the tools of a row, from the field `tools` or its older name `functions`."""
    fields_given = [name for name in ("tools", "functions") if not given.is_empty(name)]
    if len(fields_given) > 1:
        raise DataError(
            f"{given.place}: the row has {names(fields_given)}.",
            "Keep one of them, with all tools.",
        )
    if not fields_given:
        return ()
    name = fields_given[0]
    return tools.schemas(given.values[name], given.label(name), given.place)


def _template_kwargs(given: Given) -> dict[str, Any]:
    """Return the variables for the chat template."""
    label = given.label("chat_template_kwargs")
    if given.is_empty("chat_template_kwargs"):
        return {}
    found = fields.from_text(given.values["chat_template_kwargs"], label, given.place)
    if not isinstance(found, dict):
        raise DataError(
            f'{given.place}: "{label}" is {kind(found)}.',
            'Expected an object such as {"enable_thinking": false}, or its JSON text.',
        )
    reserved = [name for name in found if name in _RESERVED_KWARGS]
    if reserved:
        raise DataError(
            f'{given.place}: "{label}" has {names(reserved)}.',
            "These are given to the template from elsewhere; remove them.",
        )
    return found
