"""Reads and encodes the rows of a recipe for a model, before batches are planned.

`jaxft train` calls `read_data` before it plans batches; `jaxft data check` and `jaxft data show`
need nothing else of a run. Nothing here reads weights.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxft import console
from jaxft.config import DataConfig, SourceConfig
from jaxft.data.chats import builtin
from jaxft.data.chats.encoding import Encoding
from jaxft.data.chats.notes import TEMPLATED
from jaxft.data.examples import encode, tokens
from jaxft.data.examples.encode import Examples
from jaxft.data.sources.source import RowSource, open_rows
from jaxft.errors import DataError
from jaxft.weights.places.chat_format import ChatFormat

_SILENT_S = 2.0  # shorter encoding is not mentioned; with the cache it takes no time
_STREAM_ROWS = 64  # the first rows of a stream, which show how its chats are written


class OpenRows(NamedTuple):
    """Sources that are open but not read yet: the training rows and the held-out ones, if any."""

    train: Sequence[RowSource]
    eval: Sequence[RowSource] | None


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """The training rows, or the held-out ones, source by source.

    Attributes:
        sources: The sources of the rows.
        encodings: How the rows of each source are encoded.
        examples: The encoded examples of each source; empty for a stream.
    """

    sources: Sequence[RowSource]
    encodings: Sequence[Encoding]
    examples: Sequence[Examples]

    @property
    def num_examples(self) -> int:
        """The number of examples of all sources together."""
        return sum(map(len, self.examples))

    @property
    def fingerprint(self) -> list[str]:
        """For each source, a digest of all its tokens and labels."""
        return [examples.fingerprint for examples in self.examples]

    def check_ids(self, vocab_size: int) -> None:
        """Raise a DataError unless a model with `vocab_size` embeddings has one for every token."""
        for examples in self.examples:
            examples.check_ids(vocab_size)

    @property
    def name(self) -> str:
        """The name of the sources in messages, such as "train.jsonl and 2 others"."""
        first, *others = (source.name for source in self.sources)
        return f"{first} and {len(others)} others" if others else first


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """The data of a run.

    Attributes:
        train: The training rows.
        eval: The held-out rows; `None` without them.
        tokenizer: The tokenizer of the model, with the chat template used in training; `None` if
            all rows are tokens.
        chat_format: The chat template of the tuned model, and the tokens at which it stops.
        stop_ids: The tokens at which the base model stops.
    """

    train: Side
    eval: Side | None
    tokenizer: Any
    chat_format: ChatFormat
    stop_ids: tuple[int, ...]

    @property
    def all_stop_ids(self) -> tuple[int, ...]:
        """The tokens at which the base model stops, and those at which the tuned model does."""
        return tuple(sorted({*self.stop_ids, *self.chat_format.stop_ids}))

    @property
    def sides(self) -> list[Side]:
        """The training rows and, if there are any, the held-out rows."""
        return [self.train] if self.eval is None else [self.train, self.eval]


def warn_of_untrained_positions(sides: Sequence[Side], num_positions: int | None) -> None:
    """Warn if rows are longer than those that the model was trained on.

    Args:
        sides: The rows.
        num_positions: `max_position_embeddings` of the model's config.json, if it is there.
    """
    lengths = [int(some.lengths.max()) for side in sides for some in side.examples]
    longest = max(lengths, default=0)
    if num_positions is not None and longest > num_positions:
        console.warning(
            f"the longest example has {longest:,} tokens, and the model was trained on"
            f" {num_positions:,} positions (max_position_embeddings). Set data.max_length to"
            " that, unless the model is known to go further."
        )


def open_recipe(data: DataConfig) -> OpenRows:
    """Open the sources of a recipe.

    Raises:
        DataError: A source does not exist, or is of an unknown kind.
    """
    train = open_rows(data.train, data.hold_out, "train")
    if data.hold_out is not None:
        return OpenRows(train, open_rows(data.train, data.hold_out, "eval"))
    return OpenRows(train, open_rows(data.eval, None, "eval") if data.eval else None)


def read_data(data: DataConfig, rows: OpenRows, tokenizer: Any, stop_ids: Sequence[int]) -> Data:
    """Encode rows, or take their tokens from the cache.

    Args:
        data: The `data` section of the recipe.
        rows: The sources, as many as the section has.
        tokenizer: The tokenizer of the model; `None` if all rows are tokens.
        stop_ids: The tokens at which the model stops.

    Raises:
        DataError: A row cannot be read or encoded, or no supervised token is left.
    """
    encodings = make_encodings(data, data.train, tokenizer, stop_ids)
    if data.streaming:
        train = Side(rows.train, encodings, [])
        seen = [_begun(*pair) for pair in zip(rows.train, encodings, strict=True)]
    else:
        train = encode_side("Training rows", rows.train, encodings, data)
        seen = [
            _Seen(frozenset(some.end_ids), TEMPLATED in some.report.notes)
            for some in train.examples
        ]
    held_out = None
    if rows.eval is not None:
        held_out = read_held_out(data, rows.eval, tokenizer, stop_ids)
    return Data(
        train=train,
        eval=held_out,
        tokenizer=encodings[0].tokenizer,
        chat_format=_learned_format(encodings, seen, tokenizer),
        stop_ids=tuple(stop_ids),
    )


def read_held_out(
    data: DataConfig, rows: Sequence[RowSource], tokenizer: Any, stop_ids: Sequence[int]
) -> Side:
    """Encode held-out rows, or take their tokens from the cache.

    Args:
        data: The `data` section of the recipe.
        rows: The first sources of the section, perhaps not all.
        tokenizer: The tokenizer of the model; `None` if all rows are tokens.
        stop_ids: The tokens at which the model stops.

    Raises:
        DataError: A row cannot be read or encoded, or no supervised token is left.
    """
    encodings = make_encodings(data, data.eval or data.train, tokenizer, stop_ids)
    return encode_side("Held-out rows", rows, encodings[: len(rows)], data)


def make_encodings(
    data: DataConfig, configs: Sequence[SourceConfig], tokenizer: Any, stop_ids: Sequence[int]
) -> list[Encoding]:
    """Return how the rows of each source are encoded.

    Args:
        data: The `data` section of the recipe.
        configs: The sources in that section.
        tokenizer: The tokenizer of the model; `None` if all rows are tokens.
        stop_ids: The tokens at which the model stops.

    Raises:
        DataError: A chat template cannot be read, or the end token is not one of the tokenizer's.
    """
    own = None if tokenizer is None else _with_eos_token(copy.deepcopy(tokenizer), data.eos_token)
    return [
        Encoding(
            tokenizer=_with_template(own, config.chat_template or data.chat_template),
            stop_ids=_with_eos_id(stop_ids, own),
            train_on=data.train_on,
            train_on_reasoning=data.train_on_reasoning,
            template_kwargs=data.chat_template_kwargs,
            max_length=data.max_length,
            overlong=data.overlong,
        )
        for config in configs
    ]


def held_out_examples(data: DataConfig, tokenizer: Any, stop_ids: Sequence[int]) -> Examples | None:
    """Return the encoded examples of a recipe's first held-out source; `None` if it has none.

    Args:
        data: The `data` section of the recipe.
        tokenizer: The tokenizer of the model, with the chat template used in training.
        stop_ids: The tokens at which the model stops.

    Raises:
        DataError: A row cannot be read or encoded, or no supervised token is left.
    """
    rows = open_recipe(data).eval
    if rows is None:
        return None
    return read_held_out(data, rows[:1], tokenizer, stop_ids).examples[0]


def encode_side(
    label: str, found: Sequence[RowSource], encodings: Sequence[Encoding], data: DataConfig
) -> Side:
    """Encode the rows of sources, or take their tokens from the cache, and show progress.

    Args:
        label: What the rows are, such as "Training rows".
        found: The sources.
        encodings: How the rows of each source are encoded.
        data: The `data` section of the recipe.

    Raises:
        DataError: A row cannot be read or encoded, or no supervised token is left.
    """
    examples = [
        _encoded(label, source, encoding, data.dataset_num_proc)
        for source, encoding in zip(found, encodings, strict=True)
    ]
    return Side(found, encodings, examples)


class _Seen(NamedTuple):
    """What the rows of a source show about the format of chats.

    Attributes:
        end_ids: The tokens that end supervised text.
        has_chats: Whether any of the rows was written with the chat template.
    """

    end_ids: frozenset[int]
    has_chats: bool


def _begun(source: RowSource, encoding: Encoding) -> _Seen:
    """Return what the first rows of a stream show about the format of chats."""
    encoded = tokens.encode_rows(list(itertools.islice(source, _STREAM_ROWS)), encoding)
    end_ids = frozenset(end for each in encoded for end in each.end_ids)
    return _Seen(end_ids, any(TEMPLATED in each.notes for each in encoded))


def _learned_format(
    encodings: Sequence[Encoding], seen: Sequence[_Seen], tokenizer: Any
) -> ChatFormat:
    """Return the chat format of a model that is trained on some rows.

    The format has a template if chats were written with another template than the base model's own,
    or with variables of the recipe, which become the template's defaults. The template is that of
    the first source with chats.

    Args:
        encodings: How the rows of each source are encoded.
        seen: What the rows of each source show about the format of chats.
        tokenizer: The tokenizer in the base model's folder; `None` if all rows are tokens.
    """
    ends = sorted({end for each in seen for end in each.end_ids})
    pairs = zip(encodings, seen, strict=True)
    first = next((encoding for encoding, each in pairs if each.has_chats), None)
    if first is None or tokenizer is None or first.tokenizer is None:
        return ChatFormat(None, tuple(ends))
    template = builtin.with_defaults(first.tokenizer.chat_template, first.template_kwargs)
    is_own = template == tokenizer.chat_template
    return ChatFormat(None if is_own else template, tuple(ends))


def _encoded(
    label: str, source: RowSource, encoding: Encoding, num_workers: int | None
) -> Examples:
    num_counted = 0
    with console.loading(f"{label}: encoding", None, silent_s=_SILENT_S) as count:

        def progress(done: int, total: int | None) -> None:
            nonlocal num_counted
            count(done - num_counted)
            num_counted = done

        return encode.encode_source(source, encoding, progress, num_workers)


def _with_eos_token(tokenizer: Any, token: str | None) -> Any:
    """Set the end token of a tokenizer; `None` changes nothing.

    Raises:
        DataError: The tokenizer does not have that token.
    """
    if token is None:
        return tokenizer
    if token not in tokenizer.get_vocab():
        raise DataError(
            f"data.eos_token is {token!r}, which is not a token of the model's tokenizer.",
            "Name one of its special tokens, such as "
            f"{', '.join(map(str, tokenizer.all_special_tokens[:5])) or '(it has none)'}.",
        )
    tokenizer.eos_token = token
    return tokenizer


def _with_template(tokenizer: Any, name: str | None) -> Any:
    """Return a tokenizer with the chat template of that name, or with its own.

    A tokenizer without a template gets the built-in default, unless it has no end token either.
    """
    if tokenizer is None or (name is None and tokenizer.chat_template):
        return tokenizer
    if name is None and tokenizer.eos_token is None:
        return tokenizer
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = builtin.resolve(name or builtin.DEFAULT, tokenizer)
    return changed


def _with_eos_id(stop_ids: Sequence[int], tokenizer: Any) -> tuple[int, ...]:
    eos_id = None if tokenizer is None else tokenizer.eos_token_id
    return tuple(sorted({*stop_ids, *([] if eos_id is None else [eos_id])}))
