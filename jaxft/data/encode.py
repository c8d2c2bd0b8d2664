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
from jaxft.data.rows import ChatCompletion, Conversation, Row, TextCompletion
from jaxft.data.templates import Tokenizer
from jaxft.data.tokens import Example
from jaxft.errors import DataError

# Given the number of rows done and of all rows, every so often.
Progress = Callable[[int, int], None]

# Part of the cache's name: raise it whenever rows would encode to other tokens than before.
_FORMAT = 1

_ROWS_BETWEEN_REPORTS = 200

# The columns of one number a row. The length is 0 for a row that is dropped; `full_` is before
# truncation.
_COUNTS = ("line", "length", "full_length", "targets", "full_targets")


class Examples:
    """Rows as tokens, memory-mapped and read by index; every one has a target.

    Attributes:
        lengths: Tokens in each example.
        targets: Targets in each example, at least 1.
        lines: The line that each example was read from.
        report: What became of all rows.
    """

    def __init__(self, dataset: Any, report: Report) -> None:
        line, lengths, _, targets, _ = _counts(dataset)
        self._table_rows = np.flatnonzero(lengths)
        self._dataset = dataset.select_columns(["input_ids", "loss_mask"]).with_format(
            "numpy", dtype=np.int32
        )
        self.lengths: Int32[np.ndarray, " n"] = lengths[self._table_rows]
        self.targets: Int32[np.ndarray, " n"] = targets[self._table_rows]
        self.lines: Int32[np.ndarray, " n"] = line[self._table_rows]
        self.report = report

    def __len__(self) -> int:
        return len(self._table_rows)

    def __getitem__(self, index: int) -> Example:
        row = self._dataset[int(self._table_rows[index])]
        return Example(row["input_ids"], row["loss_mask"].astype(np.uint8))

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
    tokenizer: Tokenizer,
    max_length: int,
    progress: Progress | None = None,
) -> Examples:
    """Encode rows, or load what an earlier call with the same arguments left on disk.

    Longer rows are cut at the end. Rows in which no target is left are dropped and counted. The
    cache lies in the folder `jaxft` of datasets' own (environment variable `HF_DATASETS_CACHE`).

    Args:
        rows: The rows, as `sources.read_rows` gives them.
        tokenizer: A transformers fast tokenizer.
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
    return Examples(dataset, _report(dataset, rows, max_length))


def _write(
    path: Path,
    rows: Sequence[Row],
    tokenizer: Tokenizer,
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


def _record(row: Row, tokenizer: Tokenizer, max_length: int) -> dict[str, Any]:
    """Return what the cache keeps of one row; one that is dropped has length 0."""
    full = tokens.encode_row(row, tokenizer)
    ids, mask = full.input_ids[:max_length], full.loss_mask[:max_length]
    if not mask.any():
        ids, mask = ids[:0], mask[:0]
    return {
        "line": row.line,
        "length": len(ids),
        "full_length": len(full.input_ids),
        "targets": int(mask.sum()),
        "full_targets": int(full.loss_mask.sum()),
        "input_ids": ids,
        "loss_mask": mask,
    }


def _report(dataset: Any, rows: Sequence[Row], max_length: int) -> Report:
    """Return what became of the rows.

    Raises:
        DataError: Nothing is left to learn.
    """
    _, length, full_length, targets, full_targets = _counts(dataset)
    if not full_targets.any():
        raise DataError(
            f"{rows[0].source}: none of its {len(rows):,} rows has a token to learn.",
            'Learned are turns of the role "assistant", or what follows a prompt: add some.',
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


def _cache_key(rows: Sequence[Row], tokenizer: Tokenizer, max_length: int) -> str:
    """Return a digest of everything that the encoded rows depend on."""
    import tokenizers
    import transformers

    # A call without padding and truncation clears what an earlier call left in the backend's
    # state, which would otherwise change the digest.
    tokenizer("")
    settings = {
        "format": _FORMAT,
        "versions": [tokenizers.__version__, transformers.__version__],
        "max_length": max_length,
        "chat_template": tokenizer.chat_template,
        "special_tokens": {
            name: str(token) for name, token in tokenizer.special_tokens_map.items()
        },
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    for row in rows:
        digest.update(json.dumps(_contents(row), sort_keys=True).encode())
    return digest.hexdigest()


def _contents(row: Row) -> list[Any]:
    """Return what a row says, without the name of its file, which may be moved."""
    match row:
        case Conversation():
            return [row.line, "messages", row.messages]
        case ChatCompletion() | TextCompletion():
            return [row.line, row.prompt, row.completion]
    raise TypeError(f"no such row: {type(row).__name__}")
