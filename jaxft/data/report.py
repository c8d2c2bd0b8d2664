"""What became of a data set, and one row of it, for people to look at.

Separate from encode because it only describes. Training on the wrong tokens looks like training,
so what is learned is shown before anything is. The invariant: a shown row is decoded from the
very arrays that the step is given.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from jaxft.data.templates import Tokenizer
from jaxft.data.tokens import Example


@dataclasses.dataclass(frozen=True)
class Report:
    """What encoding kept of a file.

    Attributes:
        rows: Rows read.
        tokens: Tokens in the rows that were kept, after truncation.
        targets: Those of them that are learned.
        truncated: Rows kept, but cut at the maximum length.
        dropped: Rows left out, since no target was left in them.
        first_dropped: Where the first of these stands, or "".
        max_length: The length in tokens at which rows were cut.
    """

    rows: int
    tokens: int
    targets: int
    truncated: int
    dropped: int
    first_dropped: str
    max_length: int


class Piece(NamedTuple):
    """A run of text that is learned as a whole or not at all."""

    text: str
    is_target: bool


def describe(report: Report) -> str:
    """Return the report as one sentence."""
    parts = [
        _rows(report.rows),
        f"{report.tokens:,} tokens, {report.targets:,} of them learned",
    ]
    if report.truncated:
        parts.append(f"{_rows(report.truncated)} cut at {report.max_length:,} tokens")
    if report.dropped:
        parts.append(
            f"{_rows(report.dropped)} dropped for want of a target (the first: "
            f"{report.first_dropped})"
        )
    return "; ".join(parts)


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"


def split_pieces(example: Example, tokenizer: Tokenizer) -> list[Piece]:
    """Decode a row into runs of text that are learned and runs that are not.

    Each run is what it adds to the decoded text before it, because some tokenizers drop the space
    of a first word.
    """
    mask = example.loss_mask
    stops = [*(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(mask)]
    pieces = []
    shown = 0
    for stop in stops:
        text = tokenizer.decode(example.input_ids[:stop].tolist(), skip_special_tokens=False)
        pieces.append(Piece(text[shown:], bool(mask[stop - 1])))
        shown = len(text)
    return pieces


def mark_targets(example: Example, tokenizer: Tokenizer, *, before: str, after: str) -> str:
    """Return a row's text with each learned run between two marks.

    Args:
        example: The row.
        tokenizer: The tokenizer it was encoded with.
        before: Put before each learned run, such as an opening mark or a colour.
        after: Put after it.
    """
    return "".join(
        f"{before}{piece.text}{after}" if piece.is_target else piece.text
        for piece in split_pieces(example, tokenizer)
    )
