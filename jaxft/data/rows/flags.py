"""Marks in a row that say which messages are supervised, and whether an answer is a good one.

`{"role": "assistant", "content": "5", "weight": 0}` is a message that stays in the text and is not
supervised; `loss: false`, `train: false` and others mean the same. `train_turns` marks all messages
of a row in one list. `leftovers` refuses the marks that this file does not know.
"""

from __future__ import annotations

import decimal
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxft.data.rows import fields, plain
from jaxft.data.rows.fields import Given
from jaxft.data.rows.row import Message, RowPlace
from jaxft.data.rows.wording import kind, quoted
from jaxft.errors import DataError

# Fields of a message that say whether it is supervised, and the value that means "supervised".
# `weight` is OpenAI's and Mistral's, `loss` ms-swift's, `train` and `training` axolotl's.
MARKS: Mapping[str, bool] = {
    "weight": True,
    "loss": True,
    "train": True,
    "training": True,
    "trainable": True,
    "learn": True,
    "masked": False,
}

# Fields that say whether a completion is good: the names of TRL and LLaMA-Factory for rows that
# have one completion instead of a pair.
VERDICTS = ("label", "kto_tag")

_WORDS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


class MarkedMessage(NamedTuple):
    """A message and its marks.

    Attributes:
        name: Its name in errors, such as `messages[2]`.
        message: The message without its marks.
        marks: For each mark by name, whether it says that the message is supervised.
    """

    name: str
    message: Message
    marks: Mapping[str, bool]


def as_flag(value: object) -> bool | None:
    """Return a value as True or False; None if it is not clearly one of them.

    CSV files and data frames write true as True, 1 or 1.0, or as the texts "true", "1" and "1.0".
    """
    if plain.is_missing(value):
        return None
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | float | decimal.Decimal | np.integer | np.floating):
        return True if value == 1 else False if value == 0 else None
    return _WORDS.get(value.strip().lower()) if isinstance(value, str) else None


def mark(name: str, value: object, each: str, place: RowPlace) -> bool:
    """Return whether a mark says that its message is supervised.

    Args:
        name: The name of the mark, such as `weight`.
        value: Its value.
        each: The name of the message in errors, such as `messages[2]`.
        place: Where the row stands.

    Raises:
        DataError: It is neither true nor false.
    """
    flag = as_flag(value)
    if flag is not None:
        return flag == MARKS[name]
    number = isinstance(value, int | float | np.number)
    found = f"{value}" if number else quoted(value) if isinstance(value, str) else kind(value)
    raise DataError(
        f'{place}: "{each}.{name}" is {found[:60]}.',
        "Expected true or false, or 1 or 0; a turn is learned or not, with no weight between."
        if name == "weight" or number
        else "Expected true or false.",
    )


def skipped(turns: Sequence[MarkedMessage], num_prompt: int, given: Given) -> frozenset[int]:
    """Return the indices of the assistant's messages that are marked as not supervised.

    A mark that wants a message of another role supervised is refused, unless all messages of the
    row have this mark: then it distinguishes nothing.

    Args:
        turns: The messages of the row.
        num_prompt: How many messages at the beginning are a prompt, which is not supervised.
        given: The row, which may have `train_turns`.

    Raises:
        DataError: Marks contradict each other, or want a message supervised that is not a reply.
    """
    found = set()
    marked = [turn.marks for turn in turns if turn.marks]
    everywhere = {
        name
        for name in MARKS
        if len(marked) == len(turns) and all(marks.get(name) for marks in marked)
    }
    for index, (each, message, marks) in enumerate(turns):
        if len(set(marks.values())) > 1:
            raise DataError(
                f'{given.place}: "{each}" is marked as learned and as not learned, by'
                f" {' and '.join(map(quoted, marks))}.",
                "Keep one of the marks.",
            )
        is_reply = message["role"] == "assistant" and index >= num_prompt
        asked = [name for name, is_supervised in marks.items() if is_supervised]
        if not is_reply and set(asked) - everywhere:
            raise _not_a_reply(f'"{each}.{asked[0]}"', message, given.place)
        if message["role"] == "assistant" and not all(marks.values()):
            found.add(index)
    if "train_turns" in given.values:
        found |= _untrained(turns, num_prompt, given)
    return frozenset(found)


def _untrained(turns: Sequence[MarkedMessage], num_prompt: int, given: Given) -> set[int]:
    """Return the indices of the assistant's messages that `train_turns` leaves out."""
    label = given.label("train_turns")
    value = fields.from_text(given.values["train_turns"], label, given.place)
    if value is None:
        return set()
    replies = [i for i, turn in enumerate(turns) if turn.message["role"] == "assistant"]
    expected = (
        f"Expected true or false for each of the {len(turns)} messages, or for each of the"
        f" {len(replies)} of the assistant, or the numbers of those to learn, from 0, ascending."
    )
    name = quoted(label)
    if not isinstance(value, list):
        raise DataError(f"{given.place}: {name} is {kind(value)}.", expected)
    if value and all(isinstance(each, bool) for each in value):
        chosen = {len(turns): list(range(len(turns))), len(replies): replies}.get(len(value))
        if chosen is None:
            raise DataError(f"{given.place}: {name} has {len(value)} values.", expected)
        supervised = {index for index, each in zip(chosen, value, strict=True) if each}
    elif all(type(each) is int and 0 <= each < len(replies) for each in value) and value == sorted(
        set(value)
    ):
        supervised = {replies[each] for each in value}
    else:
        raise DataError(f"{given.place}: {name} has other values in it.", expected)
    # A list that marks all messages as supervised distinguishes nothing, and is not refused.
    others = supervised - {index for index in replies if index >= num_prompt}
    if others and len(supervised) < len(turns):
        raise _not_a_reply(name, turns[min(others)].message, given.place)
    return set(replies) - supervised


def verdicts(given: Given, *, is_pair: bool) -> tuple[str, ...]:
    """Return the names of the fields that call the answer of a row good.

    Args:
        given: The row.
        is_pair: Whether the row has a prompt and a completion, where a label can mean nothing else.
            In other rows only true and false are a verdict; other labels are ignored.

    Raises:
        DataError: A field calls the answer bad, or its value is unclear.
    """
    used = []
    for name in VERDICTS:
        value = given.values.get(name)
        is_clear = is_pair or isinstance(value, bool | np.bool_) or _is_word(value)
        flag = as_flag(value) if is_clear else None
        is_empty = plain.is_missing(value) or (isinstance(value, str) and not value)
        if is_empty or (flag is None and not is_pair):
            continue
        if flag is None:
            raise DataError(
                f"{given.place}: {quoted(given.label(name))} is neither true nor false.",
                "Beside a completion it says whether that is a good one; remove it if it means "
                "something else.",
            )
        if not flag:
            raise DataError(
                f"{given.place}: {quoted(given.label(name))} is false, which marks a bad answer.",
                "Every answer is learned, and training on preferences is not supported yet: remove "
                "the rows with bad answers, or the field if it means something else.",
            )
        used.append(name)
    return tuple(used)


def _is_word(value: object) -> bool:
    return isinstance(value, str) and value.strip().lower() in ("true", "false")


def _not_a_reply(name: str, message: Mapping[str, Any], place: RowPlace) -> DataError:
    return DataError(
        f"{place}: {name} asks for a message of the role {quoted(message['role'])} to be learned,"
        " which is not a reply.",
        "Only the assistant's messages behind a prompt can be chosen: mark those alone, or set "
        "data.train_on to all and remove the marks.",
    )
