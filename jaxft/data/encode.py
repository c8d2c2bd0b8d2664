"""A data set as tokens on disk, encoded once and found again.

Separate from templates, which encodes one row and knows no files. The cache's name is a digest of
everything the tokens depend on: rows, tokenizer, chat template, maximum length and the versions
of the libraries at work. The invariant: what is loaded from the cache is what encoding anew would
give, and no example is without a target.
"""

from __future__ import annotations

import functools
import hashlib
import json
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from jaxft.data import tokens
from jaxft.data.report import Report
from jaxft.data.rows import (
    ChatCompletion,
    Conversation,
    Place,
    Question,
    Row,
    Text,
    TextCompletion,
    Tokenized,
)
from jaxft.data.templates import Tokenizer
from jaxft.data.tokens import Example
from jaxft.errors import DataError

# Given the number of rows done and of all rows, every so often.
Progress = Callable[[int, int], None]

# Part of the cache's name: raise it whenever rows would encode to other tokens than before.
_FORMAT = 2

_ROWS_BETWEEN_REPORTS = 200

# The columns of one number a row. The length is 0 for a row that is dropped; `full_` is before
# truncation. The highest token is -1 for a row without any.
_COUNTS = ("number", "length", "full_length", "targets", "full_targets", "highest_id")


class Examples:
    """Rows as tokens, memory-mapped and read by index; every one has a target.

    Attributes:
        lengths: Tokens in each example.
        targets: Targets in each example, at least 1.
        numbers: The line, or row, that each example was read from.
        report: What became of all rows.
    """

    def __init__(self, dataset: Any, report: Report, origin: Place) -> None:
        """Read the table of a data set whose rows all have the source and unit of `origin`."""
        numbers, lengths, _, targets, _, highest_ids = _counts(dataset)
        self._table_rows = np.flatnonzero(lengths)
        self._dataset = dataset.select_columns(["input_ids", "loss_mask"]).with_format(
            "numpy", dtype=np.int32
        )
        self.lengths: Int32[np.ndarray, " n"] = lengths[self._table_rows]
        self.targets: Int32[np.ndarray, " n"] = targets[self._table_rows]
        self.numbers: Int32[np.ndarray, " n"] = numbers[self._table_rows]
        self._highest_ids = highest_ids[self._table_rows]
        self._origin = origin
        self.report = report

    def __len__(self) -> int:
        return len(self._table_rows)

    def __getitem__(self, index: int) -> Example:
        row = self._dataset[int(self._table_rows[index])]
        return Example(row["input_ids"], row["loss_mask"].astype(np.uint8))

    def check_ids(self, vocab_size: int) -> None:
        """Raise unless a model with `vocab_size` embeddings has one for every token.

        JAX reads the nearest embedding where there is none, and training would look like training.

        Raises:
            DataError: A row has a higher token.
        """
        wrong = np.flatnonzero(self._highest_ids >= vocab_size)
        if len(wrong):
            place = self._origin._replace(number=int(self.numbers[wrong[0]]))
            raise DataError(
                f"{place}: the row has the token {self._highest_ids[wrong[0]]}, and the model's"
                f" vocabulary ends at {vocab_size - 1}.",
                "Tokenize with the model's own tokenizer, without tokens added to it.",
            )

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of all tokens and targets, by which a resumed run knows its data."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            example = self[index]
            digest.update(len(example.input_ids).to_bytes(8, "little"))
            digest.update(example.input_ids.astype("<i4").tobytes())
            digest.update(example.loss_mask.tobytes())
        return digest.hexdigest()


def encode_rows(
    rows: Sequence[Row],
    tokenizer: Tokenizer | None,
    max_length: int,
    progress: Progress | None = None,
) -> Examples:
    """Encode rows, or load what an earlier call with the same arguments left on disk.

    Longer rows are cut at the end. Rows in which no target is left are dropped and counted. The
    cache lies in the folder `jaxft` of datasets' own (environment variable `HF_DATASETS_CACHE`).

    Args:
        rows: The rows, as `sources.read_rows` or `sources.rows_of` gives them.
        tokenizer: A transformers fast tokenizer, or None where all rows are tokens already.
        max_length: The most tokens of a row that are kept.
        progress: Told now and then how far encoding is; never called when the cache serves.

    Raises:
        DataError: A row cannot be encoded, no row has a target, or the cache cannot be written.
    """
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE) / "jaxft"
    path = folder / f"{_cache_key(rows, tokenizer, max_length)}.arrow"
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(path, rows, tokenizer, max_length, progress)
        except OSError as error:
            raise DataError(
                f"The cache of encoded rows, {folder}, cannot be written: {error.strerror}.",
                "Set HF_DATASETS_CACHE to a folder with room that this user may write to.",
            ) from error
    dataset = datasets.Dataset.from_file(str(path))
    origin = Place(rows[0].source, rows[0].number, rows[0].unit)
    return Examples(dataset, _report(dataset, rows, max_length), origin)


def _write(
    path: Path,
    rows: Sequence[Row],
    tokenizer: Tokenizer | None,
    max_length: int,
    progress: Progress | None,
) -> None:
    """Encode rows into a file that appears under its name only when it is whole."""
    import datasets
    from datasets.arrow_writer import ArrowWriter

    features = datasets.Features(
        {name: datasets.Value("int32") for name in _COUNTS}
        | {
            "input_ids": datasets.List(datasets.Value("int32")),
            "loss_mask": datasets.List(datasets.Value("uint8")),
        }
    )
    unfinished = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
    try:
        with ArrowWriter(path=str(unfinished), features=features) as writer:
            for done, row in enumerate(rows):
                if progress is not None and done % _ROWS_BETWEEN_REPORTS == 0:
                    progress(done, len(rows))
                writer.write(_record(row, tokenizer, max_length))
            writer.finalize()
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    if progress is not None:
        progress(len(rows), len(rows))


def _record(row: Row, tokenizer: Tokenizer | None, max_length: int) -> dict[str, Any]:
    """Return what the cache keeps of one row; one that is dropped has length 0."""
    full = tokens.encode_row(row, tokenizer)
    ids, mask = full.input_ids[:max_length], full.loss_mask[:max_length]
    if not mask.any():
        ids, mask = ids[:0], mask[:0]
    return {
        "number": row.number,
        "length": len(ids),
        "full_length": len(full.input_ids),
        "targets": int(mask.sum()),
        "full_targets": int(full.loss_mask.sum()),
        "highest_id": int(ids.max(initial=-1)),
        "input_ids": ids,
        "loss_mask": mask,
    }


def _report(dataset: Any, rows: Sequence[Row], max_length: int) -> Report:
    """Return what became of the rows.

    Raises:
        DataError: Nothing is left to learn.
    """
    _, length, full_length, targets, full_targets, _ = _counts(dataset)
    if not full_targets.any():
        raise DataError(
            f"{rows[0].source}: none of its {len(rows):,} rows has a token to learn.",
            'Learned are turns of the role "assistant", answers, texts, and tokens whose label is'
            " not -100: add some.",
        )
    if not targets.any():
        raise DataError(
            f"{rows[0].source}: cut at {max_length:,} tokens, none of its {len(rows):,} rows has"
            " a token left to learn.",
            f"Raise data.max_length; the longest row has {full_length.max():,} tokens.",
        )
    dropped = np.flatnonzero(length == 0)
    return Report(
        rows=len(rows),
        tokens=int(length.sum(dtype=np.int64)),
        targets=int(targets.sum(dtype=np.int64)),
        truncated=int(((length > 0) & (length < full_length)).sum()),
        dropped=len(dropped),
        first_dropped=rows[dropped[0]].place if len(dropped) else "",
        max_length=max_length,
    )


def _counts(dataset: Any) -> list[Int32[np.ndarray, " n"]]:
    """Return the columns of numbers, in the order of `_COUNTS`."""
    return [np.asarray(dataset.data.column(name), np.int32) for name in _COUNTS]


def _cache_key(rows: Sequence[Row], tokenizer: Tokenizer | None, max_length: int) -> str:
    """Return a digest of everything that the encoded rows depend on."""
    import tokenizers
    import transformers

    settings = {
        "format": _FORMAT,
        "versions": [tokenizers.__version__, transformers.__version__],
        "max_length": max_length,
        "tokenizer": None if tokenizer is None else _tokenizer_settings(tokenizer),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for row in rows:
        digest.update(json.dumps(_contents(row), sort_keys=True).encode())
    return digest.hexdigest()


def _tokenizer_settings(tokenizer: Tokenizer) -> list[Any]:
    """Return everything about a tokenizer that tokens depend on."""
    # A call without padding and truncation clears what an earlier call left in the backend's
    # state, which would otherwise be a difference.
    tokenizer("")
    special_tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return [tokenizer.chat_template, special_tokens, tokenizer.backend_tokenizer.to_str()]


def _contents(row: Row) -> list[Any]:
    """Return what a row says, without the name of its file, which may be moved."""
    match row:
        case Conversation():
            return [row.number, "messages", row.messages]
        case ChatCompletion() | TextCompletion():
            return [row.number, row.prompt, row.completion]
        case Question():
            return [row.number, "question", row.question, row.answer]
        case Text():
            return [row.number, "text", row.text]
        case Tokenized():
            return [row.number, "tokens", row.input_ids.tolist(), row.loss_mask.tolist()]
    raise TypeError(f"no such row: {type(row).__name__}")
