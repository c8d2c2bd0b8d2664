"""A row: one record of a data set, in one of four forms, with the place it was read from.

`shapes` finds out the form of a value. Every later error can name the place of its row, and no
later room needs to know how the row was spelled.
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


class RowPlace(NamedTuple):
    """The place of a row in its source, such as `train.jsonl:12` or `train_dataset row 3`.

    Attributes:
        source: The name of the file or data set.
        number: The line in the file, from 1, or the row in the data set, from 0.
        unit: Whether `number` is a line or a row.
    """

    source: str
    number: int
    unit: Unit = "line"

    def __str__(self) -> str:
        """Return `source:line`, which editors and terminals understand, or `source row n`."""
        separator = ":" if self.unit == "line" else " row "
        return f"{self.source}{separator}{self.number}"


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One record of a data set; encoding makes one or more examples of it.

    Attributes:
        place: Where it was read.
        unused: Names of the fields that were not used, such as `("id", "messages[].name")`.
    """

    place: RowPlace
    unused: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Dialogue(Row):
    r"""A chat: the model's chat template writes its messages, and its replies are supervised.

    Questions with answers and alpaca rows are dialogues too. `{"instruction": "Add.", "input": "2
    and 2", "output": "4"}` has the messages `user: Add.\n\n2 and 2` and `assistant: 4`.

    Attributes:
        messages: Each has `role` and `content`, a string. Further fields (`reasoning_content`,
            `tool_calls`, `name`, ...) are passed to the template unchanged.
        num_prompt: How many messages the row itself calls a prompt; 0 if it does not say.
        skipped: Indices of the assistant's messages that the row marks as not supervised.
        tools: The tools that the chat may call, as JSON schemas.
        template_kwargs: Further variables of the template, such as `{"enable_thinking": False}`.
    """

    messages: Sequence[Message]
    num_prompt: int = 0
    skipped: frozenset[int] = frozenset()
    tools: Sequence[Mapping[str, Any]] = ()
    template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class TextCompletion(Row):
    """A prompt and a completion as plain text, without a template; the completion is supervised."""

    prompt: str
    completion: str


@dataclasses.dataclass(frozen=True, slots=True)
class Text(Row):
    """Plain text without a template; all of it is supervised."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Tokenized(Row):
    """Tokens that were made outside of jaxft, without their padding.

    Attributes:
        input_ids: The tokens.
        loss_mask: 1 where the token is supervised.
    """

    input_ids: Int32[np.ndarray, " t"]
    loss_mask: UInt8[np.ndarray, " t"]
