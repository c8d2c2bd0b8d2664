"""The data section: the sources of rows, the supervised tokens, and how sequences are filled.

`train: rows.jsonl` is short for `train: [{path: rows.jsonl}]`; `dump_config` writes the short form.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    WrapSerializer,
    model_serializer,
    model_validator,
)

from jaxft.config import known
from jaxft.config.section import PositiveInt, Section, conflict

# The built-in chat templates; jaxft/data/chats/builtin.py has their texts.
BUILT_IN_TEMPLATES = ("chatml", "alpaca", "alpaca-ko", "qa-ko")

_Name = Annotated[str, Field(min_length=1)]


class SourceConfig(Section):
    """One source of rows. `train: rows.jsonl` is short for `train: {path: rows.jsonl}`."""

    names_from_elsewhere = dict.fromkeys(("split", "revision"), "datasets load_dataset")

    path: _Name
    """A file, a folder, a pattern such as `data/*.jsonl`, or the name of a data set on the Hub such
    as `owner/name`."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """Share of the training sequences that comes from this source, relative to the weights of the
    other sources, such as 2. Null for all sources reads each row once an epoch."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Fields that have another name in this source: `{question: 질문, answer: 답변}` reads the
    question from 질문."""
    chat_template: str | None = None
    """The chat template for this source alone, such as `alpaca`; null is `data.chat_template`."""
    config: str | None = None
    """For a data set on the Hub: the name of one of its configurations."""
    split: str | None = None
    """For a data set on the Hub: one of its splits, such as `validation`; null is `train`, or the
    only split."""
    revision: str | None = None
    """For a data set on the Hub: a branch, tag or commit."""

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
    """Rows of `train` to hold out. `hold_out: 0.1` is short for `hold_out: {fraction: 0.1}`."""

    fraction: Annotated[float, Field(gt=0, lt=1)]
    """Share of the rows to hold out, such as 0.1, as nearly as whole groups allow."""
    by: str | None = None
    """The field that groups rows, such as `book`: all rows with the same value, in any source, are
    either held out or trained on. Null groups rows of equal content."""

    @model_validator(mode="before")
    @classmethod
    def _a_number_is_the_fraction(cls, data: Any) -> Any:
        is_number = isinstance(data, int | float) and not isinstance(data, bool)
        return {"fraction": data} if is_number else data


class DataConfig(Section):
    """The rows, the tokens of them that are supervised, and how they become sequences."""

    known_elsewhere = known.DATA
    names_from_elsewhere: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            ("eos_token", "max_length", "packing", "dataset_num_proc"), "TRL SFTConfig"
        ),
        "group_by_length": "transformers 4 TrainingArguments",
        "streaming": "datasets load_dataset",
    }

    train: Sources
    """The training rows: a file, a folder, a pattern such as `data/*.jsonl`, a data set on the Hub,
    or a list of such sources, each with options of its own."""
    eval: Sources | None = None
    """Held-out rows on which the loss is measured, written like `train`."""
    hold_out: HoldOutConfig | None = None
    """Hold out a part of `train` instead: `0.1`, or `{fraction: 0.1, by: book}`."""

    train_on: Literal["assistant", "last_assistant", "completion", "all"] = "assistant"
    """Which tokens are supervised. `assistant`: every reply of a chat, or the completion of a
    prompt. `last_assistant`: the last reply. `completion`: everything after the last user message
    of a chat, or after the prompt. `all`: every token, questions too."""
    train_on_reasoning: bool = True
    """Whether the reasoning in a reply (`reasoning_content`, or text between `<think>` tags) is
    supervised like the rest of the reply."""
    chat_template: str | None = None
    """How a chat is written as text: `chatml`, `alpaca`, `alpaca-ko`, `qa-ko`, or a Jinja file.
    Null takes the model's own template, or `alpaca` for a model without one."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Variables for the chat template, such as `{enable_thinking: false}`."""
    eos_token: str | None = None
    """The token that ends a reply or a text, such as `<|im_end|>`; null is the tokenizer's own."""

    max_length: Annotated[int, Field(ge=2)] = 1024
    """The number of tokens in a sequence."""
    overlong: Literal["truncate", "drop", "split", "error"] = "truncate"
    """How to treat an example that is longer than `max_length`: cut its end off, leave it out,
    split it into several, or stop with an error."""
    packing: bool = False
    """Put several examples into one sequence. They do not attend to each other."""
    group_by_length: bool = False
    """Without packing: put examples of similar length into one batch, which then needs less
    padding."""
    shuffle: bool = True
    """Draw a new order of the rows in each epoch; false keeps the order of the file."""

    streaming: bool = False
    """Read rows while training, for sources that are endless or of unknown length; see
    docs/data.md."""
    shuffle_buffer: PositiveInt = 1000
    """With `streaming`: the number of rows among which the next one is drawn."""
    dataset_num_proc: PositiveInt | None = None
    """Processes that encode rows; null chooses their number by the number of rows."""
    near_duplicates: bool = True
    """Look for rows that are almost equal, among the training rows and between these and the
    held-out rows."""
    accept: list[str] = Field(default_factory=list)
    """Findings of `jaxft data check` that are intended, such as `[duplicates, truncated]`: they no
    longer warn or stop the run."""

    @property
    def has_held_out_rows(self) -> bool:
        """Whether there are held-out rows, on which the loss can be measured."""
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
