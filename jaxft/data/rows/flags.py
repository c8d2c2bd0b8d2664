"""The parts that a row marks as not supervised: turns of a chat, and whole completions.

`{"role": "assistant", "content": "5", "weight": 0}` is a turn that stays in the text and is not
supervised; so are `loss: false`, `train: false` and their like. `train_turns` marks the turns of a
whole row. Separate from leftovers, which refuses the marks that this file does not know.
"""

from __future__ import annotations

import decimal
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxft.data.rows import fields, plain
from jaxft.data.rows.fields import Given
from jaxft.data.rows.row import Message, Place
from jaxft.data.rows.wording import kind, quoted
from jaxft.errors import DataError

# Fields of a message that say whether it is supervised, and the value that says so. `weight` is
# OpenAI's and Mistral's, `loss` ms-swift's, `train` and `training` axolotl's.
MARKS: Mapping[str, bool] = {
    "weight": True,
    "loss": True,
    "train": True,
    "training": True,
    "trainable": True,
    "learn": True,
    "masked": False,
}

# Whether a completion is a good one: TRL's and LLaMA-Factory's names in rows without pairs.
VERDICTS = ("label", "kto_tag")

_WORDS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


class Turn(NamedTuple):
    """A message, and what the row marks about it.

    Attributes:
        name: What errors call it, such as `messages[2]`.
        message: Without its marks.
        marks: By their names, whether they say that the message is supervised.
    """

    name: str
    message: Message
    marks: Mapping[str, bool]


def as_flag(value: object) -> bool | None:
    """Return a value as true or false, None if it is not clearly one of them.

    True, 1, 1.0 and the texts "true", "1" and "1.0" are true, as CSV files and data frames have
    them.
    """
    if plain.is_missing(value):
        return None
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | float | decimal.Decimal | np.integer | np.floating):
        return True if value == 1 else False if value == 0 else None
    return _WORDS.get(value.strip().lower()) if isinstance(value, str) else None


def mark(name: str, value: object, each: str, place: Place) -> bool:
    """Return whether a mark says that its message is supervised.

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


def skipped(turns: Sequence[Turn], num_prompt: int, given: Given) -> frozenset[int]:
    """Return the indices of the assistant's messages that are marked as not to be supervised.

    A mark that asks for a message of somebody else to be supervised is refused, unless all messages
    of the row have it: then it sets nothing apart.

    Args:
        turns: The chat, as the row has it.
        num_prompt: How many messages at its beginning are a prompt, which is not supervised.
        given: The row, for its `train_turns`.

    Raises:
        DataError: Marks contradict each other, or ask for something to be supervised that is not.
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


def _untrained(turns: Sequence[Turn], num_prompt: int, given: Given) -> set[int]:
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
    # Where all are supervised, nothing is set apart.
    others = supervised - {index for index in replies if index >= num_prompt}
    if others and len(supervised) < len(turns):
        raise _not_a_reply(name, turns[min(others)].message, given.place)
    return set(replies) - supervised


def verdicts(given: Given, *, is_pair: bool) -> tuple[str, ...]:
    """Return the names of fields that say whether the answer is good; it must be.

    Args:
        given: The row.
        is_pair: Whether it has a prompt and a completion, where a label can mean nothing else.
            Elsewhere only true and false are a verdict, and other labels are not looked at.

    Raises:
        DataError: The answer is a bad one, or that cannot be told.
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


def _not_a_reply(name: str, message: Mapping[str, Any], place: Place) -> DataError:
    return DataError(
        f"{place}: {name} asks for a message of the role {quoted(message['role'])} to be learned,"
        " which is not a reply.",
        "Only the assistant's messages behind a prompt can be chosen: mark those alone, or set "
        "data.train_on to all and remove the marks.",
    )
