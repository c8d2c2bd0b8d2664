"""What a row is: the forms it may have, and the place it came from.

Separate from shapes, which finds out what form a value has. The invariant: a row remembers where
it stood, so that every later complaint can name it, and no later room asks how it was written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

Message = dict[str, Any]

# Lines are counted from 1, as editors do; rows from 0, as Python and data frames do.
Unit = Literal["line", "row"]


class Place(NamedTuple):
    """Where a row stands, such as `train.jsonl:12` or `train_dataset row 3`.

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
        place: Where it was read.
        unused: Names of the fields that nothing was made of, such as `("id", "messages[].name")`.
    """

    place: Place
    unused: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Dialogue(Row):
    r"""A chat: messages that the model's chat template writes, of which replies are supervised.

    Questions with answers and alpaca rows are dialogues too. `{"instruction": "Add.", "input": "2
    and 2", "output": "4"}` has the messages `user: Add.\n\n2 and 2` and `assistant: 4`.

    Attributes:
        messages: Each has `role` and `content`, a string; others of its fields are passed to the
            template as they are (`reasoning_content`, `tool_calls`, `name`, ...).
        num_prompt: How many messages the row itself calls a prompt; 0 where it does not say.
        skipped: Indices of the assistant's messages that the row marks as not to be supervised.
        tools: The tools that the chat may call, as JSON schemas; empty for none.
        template_kwargs: Further variables of the template, such as `{"enable_thinking": False}`.
    """

    messages: Sequence[Message]
    num_prompt: int = 0
    skipped: frozenset[int] = frozenset()
    tools: Sequence[Mapping[str, Any]] = ()
    template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class TextCompletion(Row):
    """Plain text in two parts, of which the completion is supervised; no template touches it."""

    prompt: str
    completion: str


@dataclasses.dataclass(frozen=True, slots=True)
class Text(Row):
    """Plain text, all of which is supervised; no template touches it."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Tokenized(Row):
    """Tokens, made before jaxft saw them, padding removed.

    Attributes:
        input_ids: The tokens.
        loss_mask: 1 where the token is supervised.
    """

    input_ids: Int32[np.ndarray, " t"]
    loss_mask: UInt8[np.ndarray, " t"]
