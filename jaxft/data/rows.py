"""What a row is: the forms it may have, and the place it came from.

Separate from shapes, which finds out what form a value has. The invariant: a row remembers where
it stood, so that every later complaint can name it, and no later room asks how it was written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

Message = dict[str, Any]

# Lines are counted from 1, as editors do; rows from 0, as Python and data frames do.
Unit = Literal["line", "row"]


class Place(NamedTuple):
    """Where a row stands.

    Attributes:
        source: The name of the file, or of whatever else the rows came from.
        number: Its line there, from 1, or its row, from 0.
        unit: Which of the two.
    """

    source: str
    number: int
    unit: Unit = "line"

    def __str__(self) -> str:
        """Return `source:line`, as editors and terminals understand it, or `source row n`."""
        separator = ":" if self.unit == "line" else " row "
        return f"{self.source}{separator}{self.number}"


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One example and the place it was read from.

    Attributes:
        source: The name of the file, or of whatever else the rows came from.
        number: Its line there, from 1, or its row, from 0.
        unit: Which of the two.
    """

    source: str
    number: int
    unit: Unit = dataclasses.field(default="line", kw_only=True)

    @property
    def place(self) -> str:
        """Return what messages call the row."""
        return str(Place(self.source, self.number, self.unit))


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation(Row):
    """A whole chat, of which the assistant's turns are learned."""

    messages: Sequence[Message]


@dataclasses.dataclass(frozen=True, slots=True)
class ChatCompletion(Row):
    """A chat in two parts, of which everything after the prompt is learned."""

    prompt: Sequence[Message]
    completion: Sequence[Message]


@dataclasses.dataclass(frozen=True, slots=True)
class TextCompletion(Row):
    """Plain text in two parts, of which the completion is learned; no template touches it."""

    prompt: str
    completion: str


@dataclasses.dataclass(frozen=True, slots=True)
class Question(Row):
    """A question and its answer, of which the answer is learned; the model decides the wording."""

    question: str
    answer: str


@dataclasses.dataclass(frozen=True, slots=True)
class Text(Row):
    """Plain text, all of which is learned; no template touches it."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Tokenized(Row):
    """Tokens, made before jaxft saw them, padding removed.

    Attributes:
        input_ids: The tokens.
        loss_mask: 1 where the token is learned.
    """

    input_ids: Int32[np.ndarray, " t"]
    loss_mask: UInt8[np.ndarray, " t"]
