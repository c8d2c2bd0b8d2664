"""The data section: where rows come from, what of them is learned, and how they fill sequences.

`train: rows.jsonl` is short for `train: [{path: rows.jsonl}]`, and is written so again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    WrapSerializer,
    model_serializer,
    model_validator,
)

from jaxft.config import known
from jaxft.config.section import PositiveInt, Section, conflict

# The chat templates that need no file. What they write stands in jaxft/data/builtin.py.
BUILT_IN_TEMPLATES = ("chatml", "alpaca", "alpaca-ko", "qa-ko")

_Name = Annotated[str, Field(min_length=1)]


class SourceConfig(Section):
    """One source of rows. A bare string in a recipe is its `path`."""

    path: _Name
    """A file, a folder, a pattern such as `data/*.jsonl`, or a data set's name on the Hub."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """Share of the training sequences that come from this source, relative to the weights of the
    others; null in all of them takes each row once an epoch."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Other names of fields: `{question: 질문, answer: 답변}` reads the question from 질문."""
    chat_template: str | None = None
    """Chat template of this source alone; null is `data.chat_template`."""
    config: str | None = None
    """Of a data set on the Hub: which of its configurations."""
    split: str | None = None
    """Of a data set on the Hub: which of its splits; null is `train`, or the only one."""
    revision: str | None = None
    """Of a data set on the Hub: branch, tag or commit."""

    @model_validator(mode="before")
    @classmethod
    def _a_string_is_the_path(cls, data: Any) -> Any:
        return {"path": os.fspath(data)} if isinstance(data, str | os.PathLike) else data

    @model_serializer(mode="wrap")
    def _a_bare_path_is_a_string(self, serialize: Callable[[Any], Any]) -> Any:
        values = {name: value for name, value in serialize(self).items() if value not in (None, {})}
        return self.path if set(values) == {"path"} else values


def _as_list(value: Any) -> Any:
    """Return one source as a list of one."""
    return value if value is None or isinstance(value, list) else [value]


def _as_written(sources: list[SourceConfig], serialize: Callable[[Any], Any]) -> Any:
    """Return a list of one source as that source."""
    values = serialize(sources)
    return values[0] if len(values) == 1 else values


Sources = Annotated[
    list[SourceConfig],
    BeforeValidator(_as_list),
    WrapSerializer(_as_written),
    Field(min_length=1),
]


class HoldOutConfig(Section):
    """Rows of `data.train` that are held out. A bare number in a recipe is its `fraction`."""

    fraction: Annotated[float, Field(gt=0, lt=1)]
    """Share of the rows that is held out, as nearly as whole groups allow."""
    by: str | None = None
    """Field whose value names a row's group; all rows of a group, in whichever source, are on one
    side. Null: the row's whole content, so that equal rows are on one side."""

    @model_validator(mode="before")
    @classmethod
    def _a_number_is_the_fraction(cls, data: Any) -> Any:
        is_number = isinstance(data, int | float) and not isinstance(data, bool)
        return {"fraction": data} if is_number else data


class DataConfig(Section):
    """The rows, and how they become batches."""

    known_elsewhere = known.DATA

    train: Sources
    """Rows to learn from: a file, a folder, a pattern, a data set on the Hub, or a list of such
    sources, each with options of its own."""
    eval: Sources | None = None
    """Held-out rows, on which loss is measured; written as `train` is."""
    hold_out: HoldOutConfig | None = None
    """Hold out a part of `train` instead: `0.1`, or `{fraction: 0.1, by: book}`."""

    train_on: Literal["assistant", "last_assistant", "completion", "all"] = "assistant"
    """What is learned. `assistant`: every reply of a chat, the completion of a prompt.
    `last_assistant`: the last reply. `completion`: what follows a chat's last user message, or its
    prompt. `all`: every token, questions too."""
    train_on_reasoning: bool = True
    """Whether the thoughts of a reply (`reasoning_content`, or between `<think>` tags) are learned
    with it."""
    chat_template: str | None = None
    """How chats are written: `chatml`, `alpaca`, `alpaca-ko`, `qa-ko`, or a Jinja file. Null: as
    the model's own template does, and `alpaca` for a model without one."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Variables for the chat template, such as `{enable_thinking: false}`."""
    eos_token: str | None = None
    """Token that ends a reply or a text; null is the tokenizer's own."""

    max_length: Annotated[int, Field(ge=2)] = 1024
    """Tokens in a sequence."""
    overlong: Literal["truncate", "drop", "split", "error"] = "truncate"
    """What becomes of a longer row: cut at its end, left out, cut into several, or refused."""
    packing: bool = False
    """Put several rows into one sequence. They do not see each other."""
    group_by_length: bool = False
    """Without packing: put rows of like length into one batch, which is then padded less."""
    shuffle: bool = True
    """Draw a new order each epoch. Off: the file's order."""

    streaming: bool = False
    """Read rows while training, for sources without an end or a length; see docs/data.md."""
    shuffle_buffer: PositiveInt = 1000
    """Under `streaming`: rows among which the order is drawn."""
    dataset_num_proc: PositiveInt | None = None
    """Processes that encode rows; null chooses by their number."""
    near_duplicates: bool = True
    """Look for rows that are almost alike, within the training rows and against held-out ones."""
    accept: list[str] = Field(default_factory=list)
    """Findings of `jaxft data check` that are meant so, such as `[duplicates, truncated]`: they
    neither warn nor stop the run."""

    @property
    def has_held_out_rows(self) -> bool:
        """Whether there are rows on which loss can be measured."""
        return self.eval is not None or self.hold_out is not None

    @model_validator(mode="after")
    def _options_go_together(self) -> DataConfig:
        if self.eval is not None and self.hold_out is not None:
            raise conflict(
                "hold_out",
                "data.eval and data.hold_out are both set",
                "Keep one: a source of held-out rows, or a part of the training rows.",
            )
        if self.packing and self.group_by_length:
            raise conflict(
                "group_by_length",
                "data.packing and data.group_by_length are both set",
                "Keep one: packed sequences are full, and have no padding to save.",
            )
        weights = [source.weight for source in self.train]
        if any(weights) and not all(weights):
            raise conflict(
                "train",
                "some sources in data.train have a weight, and some have none",
                "Give every source a weight, or none.",
            )
        if self.streaming and (self.hold_out or self.group_by_length or any(weights)):
            raise conflict(
                "streaming",
                "data.streaming is set beside hold_out, group_by_length or weights",
                "A stream is read in its own order: leave these out, or set streaming to false.",
            )
        return self
