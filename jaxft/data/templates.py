"""One row to text, and which spans of it are learned, found by comparing renderings.

Separate from tokens, which knows ids and no templates. Stock chat templates do not mark the
assistant's turns, so the turns are found by difference: the text before one is what generation
would be given, and the text after one is what stays the same when its content is replaced. The
invariant: a span is used only when these renderings fit the whole text exactly; a template for
which they do not is refused, never approximated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxft.data.rows import (
    ChatCompletion,
    Conversation,
    Message,
    Question,
    Row,
    Text,
    TextCompletion,
    Tokenized,
)
from jaxft.errors import DataError

# A transformers fast tokenizer; named, so that importing this file does not import transformers.
Tokenizer = Any

# Stands in for a turn's content. No white space, so that a template which strips keeps it.
_PROBE = "JaxftProbeOfTheTurn"

# How a model without a chat template is asked, and where its answer begins. Our own wording.
_HEADING, _ANSWER_HEADING = "### Instruction:\n", "\n\n### Response:\n"

# Of a text, this much is shown as a prompt to go on from.
_OPENING_CHARACTERS = 60


class Rendered(NamedTuple):
    """One row as text.

    Attributes:
        text: What the tokenizer is given.
        spans: Pairs of character positions, start and stop, of what is learned.
        is_plain: Whether the tokenizer adds its own start token; a chat template wrote it already.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    is_plain: bool


class Exchange(NamedTuple):
    """What a model is asked in a row, and what the row answers."""

    prompt: str | Sequence[Message]
    answer: str


def render_row(row: Row, tokenizer: Tokenizer) -> Rendered:
    """Return the text of a row and the spans of it that are learned.

    In a conversation these are the assistant's turns, from where generation would begin to the
    end of the turn's closing token, white space after it left out. In a prompt with a completion
    it is everything after the prompt. A question is a conversation of two messages where the
    tokenizer has a chat template, and a prompt with a completion where it has none. A text is
    learned whole.

    Args:
        row: The row, of any shape but tokens.
        tokenizer: A fast tokenizer.

    Raises:
        DataError: As `encode_row`.
    """
    match row:
        case Conversation():
            return _render_conversation(row, tokenizer)
        case ChatCompletion():
            return _render_chat_completion(row, tokenizer)
        case TextCompletion():
            return _render_text(row.prompt, row.completion, row.place, tokenizer)
        case Question():
            return _render_question(row, tokenizer)
        case Text():
            rendered = _render_text("", row.text, row.place, tokenizer)
            # Nothing but an end token would teach the model to say nothing.
            return rendered if row.text.strip() else rendered._replace(spans=())
    raise TypeError(f"no such row: {type(row).__name__}")


def ask(question: str, tokenizer: Tokenizer) -> str | tuple[Message, ...]:
    """Return how a model is asked a question: as its user, or in plain text if it does not chat."""
    if tokenizer.chat_template:
        return ({"role": "user", "content": question},)
    return f"{_HEADING}{question}{_ANSWER_HEADING}"


def chat_text(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    place: str,
    *,
    has_generation_prompt: bool = False,
) -> str:
    """Return the messages as the chat template writes them.

    Args:
        messages: The chat, or its beginning.
        tokenizer: A tokenizer with a chat template.
        place: What errors call the row.
        has_generation_prompt: Whether the text ends with the opening of the assistant's turn.

    Raises:
        DataError: The tokenizer has no chat template, or its template refuses the messages.
    """
    import jinja2

    if not tokenizer.chat_template:
        raise DataError(
            f"{place}: the row is a chat and the tokenizer has no chat template.",
            "Use an instruction-tuned model, or rows of prompt and completion strings.",
        )
    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=has_generation_prompt
        )
    except jinja2.TemplateError as error:
        raise DataError(
            f"{place}: the chat template refuses the messages: {' '.join(str(error).split())}.",
            "Change the row's roles or their order to what the model's template accepts.",
        ) from error
    return text


def first_exchange(row: Row, tokenizer: Tokenizer) -> Exchange:
    """Return the first question of a row and its answer, to show what a model makes of it.

    A text, or tokens that are all learned, are asked by how they begin.
    """
    match row:
        case Conversation():
            roles = [message["role"] for message in row.messages]
            index = roles.index("assistant") if "assistant" in roles else len(roles)
            answer = row.messages[index]["content"] if index < len(roles) else ""
            return Exchange(row.messages[:index], answer)
        case ChatCompletion():
            return Exchange(row.prompt, row.completion[0]["content"])
        case TextCompletion():
            return Exchange(row.prompt, row.completion)
        case Question():
            return Exchange(ask(row.question, tokenizer), row.answer)
        case Text():
            return _opening(row.text)
        case Tokenized():
            return _tokenized_exchange(row, tokenizer)
    raise TypeError(f"no such row: {type(row).__name__}")


def _tokenized_exchange(row: Tokenized, tokenizer: Tokenizer) -> Exchange:
    """Decode what stands before the first token that is learned, and what begins there."""
    learned = np.flatnonzero(row.loss_mask[1:]) + 1
    start = int(learned[0]) if len(learned) else len(row.input_ids)
    prompt, answer = (tokenizer.decode(ids.tolist()) for ids in np.split(row.input_ids, [start]))
    return Exchange(prompt, answer) if start > 1 else _opening(prompt + answer)


def _opening(text: str) -> Exchange:
    """Return how a text begins, up to a space where there is one, and how it goes on."""
    stop = min(_OPENING_CHARACTERS, (len(text) + 1) // 2)
    space = text.rfind(" ", 1, stop + 1)
    stop = space if space > 0 else stop
    return Exchange(text[:stop], text[stop:])


def _render_text(prompt: str, completion: str, place: str, tokenizer: Tokenizer) -> Rendered:
    """Join prompt and completion and close them with the end token.

    Source: TRL 1.16, `SFTTrainer`: the end token is appended to rows that are not conversational,
    unless they end with it; a chat template is not applied to them.
    """
    if tokenizer.eos_token is None:
        raise DataError(
            f"{place}: the tokenizer has no end token to close the text with.",
            "Set eos_token in tokenizer_config.json; without it a model cannot learn to stop.",
        )
    text = prompt + completion
    if not completion.endswith(tokenizer.eos_token):
        text += tokenizer.eos_token
    return Rendered(text, ((len(prompt), len(text)),), is_plain=True)


def _render_question(row: Question, tokenizer: Tokenizer) -> Rendered:
    """Put the question as the model is asked, and learn the answer."""
    prompt = ask(row.question, tokenizer)
    if isinstance(prompt, str):
        return _render_text(prompt, row.answer, row.place, tokenizer)
    messages = (*prompt, {"role": "assistant", "content": row.answer})
    chat = Conversation(row.source, row.number, messages, unit=row.unit)
    return _render_conversation(chat, tokenizer)


def _render_chat_completion(row: ChatCompletion, tokenizer: Tokenizer) -> Rendered:
    """Render the chat and learn what follows the rendered prompt.

    Source: TRL 1.16, `SFTTrainer` with `completion_only_loss`: the completion begins where the
    prompt with its generation prompt ends, and runs to the end of the text.
    """
    messages = [*row.prompt, *row.completion]
    text = chat_text(messages, tokenizer, row.place)
    start = _prompt_end(text, messages, len(row.prompt), tokenizer, row.place)
    return Rendered(text, ((start, len(text)),), is_plain=False)


def _render_conversation(row: Conversation, tokenizer: Tokenizer) -> Rendered:
    """Render the chat and find the assistant's turns in it."""
    text = chat_text(row.messages, tokenizer, row.place)
    spans = tuple(
        (
            _prompt_end(text, row.messages, index, tokenizer, row.place),
            _turn_end(text, row.messages, index, tokenizer, row.place),
        )
        for index, message in enumerate(row.messages)
        if message["role"] == "assistant"
    )
    return Rendered(text, spans, is_plain=False)


def _prompt_end(
    text: str, messages: Sequence[Message], index: int, tokenizer: Tokenizer, place: str
) -> int:
    """Return where the turn at `index` begins: after what generation would be given."""
    if index == 0:
        raise DataError(
            f"{place}: the first message is the assistant's, so there is no prompt to answer.",
            "Begin the conversation with a user or system message.",
        )
    prompt = chat_text(messages[:index], tokenizer, place, has_generation_prompt=True)
    if not text.startswith(prompt):
        raise _cannot_split(
            place, f"what generation is given before message {index} is not how the text begins"
        )
    return len(prompt)


def _turn_end(
    text: str, messages: Sequence[Message], index: int, tokenizer: Tokenizer, place: str
) -> int:
    """Return where the turn at `index` ends: after its closing token, before white space.

    What follows the content is read off renderings with the content replaced, since templates
    strip it, or drop the reasoning of earlier turns, so that prefixes need not fit.
    """
    probed = [*messages[:index], {**messages[index], "content": _PROBE}]
    closing = _after_probe(chat_text(probed, tokenizer, place), place)
    rest = closing
    if index + 1 < len(messages):
        probed = [*probed, *messages[index + 1 :]]
        rest = _after_probe(chat_text(probed, tokenizer, place), place)
    if not text.endswith(rest):
        raise _cannot_split(place, f"what follows message {index} depends on its content")
    if not rest.startswith(closing):
        raise _cannot_split(place, f"the end of message {index} depends on what follows it")
    return len(text) - len(rest) + len(closing.rstrip())


def _after_probe(text: str, place: str) -> str:
    """Return the text that follows the probe, which must stand there once."""
    _, *after = text.split(_PROBE)
    if len(after) != 1:
        raise _cannot_split(place, f"it renders an assistant's content {len(after)} times")
    return after[0]


def _cannot_split(place: str, reason: str) -> DataError:
    return DataError(
        f"{place}: the chat template cannot be split exactly into turns: {reason}.",
        "Use another chat template, or rows of prompt and completion strings.",
    )
