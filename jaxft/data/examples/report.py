"""The report on the encoding of a source, and the decoding of one example for people to read.

A report counts: 1,000 rows, 52,300 tokens, 3 examples cut at 1,024 tokens, the first of them at
`train.jsonl:17`. It is kept on disk beside the examples, so it holds only names and numbers. A run
on the wrong tokens looks like any other run, so an example is also shown with its supervised
parts marked, decoded from the arrays of the training step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxft.data.chats.encoding import Tokenizer
from jaxft.data.chats.notes import NOTES, TEMPLATED
from jaxft.data.examples.tokens import Example


@dataclasses.dataclass(frozen=True)
class Report:
    """Counts of the rows of a source and of their examples; a row gives one example or more.

    All fields are JSON values: `dataclasses.asdict` writes a report, `Report(**values)` reads it.

    Attributes:
        rows: The number of rows read.
        examples: The number of examples kept.
        tokens: The number of tokens in the kept examples.
        targets: The number of supervised tokens in them.
        longest: The number of tokens in the longest example with a supervised token, before it was
            cut or left out.
        max_length: The largest number of tokens in an example.
        truncated: Examples that were cut at `max_length` and kept.
        split: Examples that were cut into several.
        too_long: Examples left out because they are longer than `max_length`.
        cut_off: Examples left out because all their supervised tokens are beyond `max_length`.
        without_target: Examples left out because they have no supervised token at all.
        dropped: Examples left out for any of these reasons.
        notes: The number of rows with each note of `notes.NOTES`, by its name.
        unused: The number of rows with an unused field, by the field's name.
        first: The place of the first row of each count: for the counts from `truncated` to
            `dropped`, for each note by its name, and for each unused field as `unused.NAME`.
    """

    rows: int
    examples: int
    tokens: int
    targets: int
    longest: int
    max_length: int
    truncated: int = 0
    split: int = 0
    too_long: int = 0
    cut_off: int = 0
    without_target: int = 0
    dropped: int = 0
    notes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    unused: Mapping[str, int] = dataclasses.field(default_factory=dict)
    first: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Piece(NamedTuple):
    """A part of an example's text that is supervised as a whole or not at all."""

    text: str
    is_target: bool


def describe(report: Report) -> str:
    """Return the report as one sentence, and below it a line for each unusual count."""
    amount = _amount(report.rows, "row")
    if report.examples + report.dropped > report.rows:
        amount += f" as {_amount(report.examples, 'example')}"
    parts = [amount, f"{report.tokens:,} tokens, {report.targets:,} of them learned"]
    if report.longest > report.max_length:
        parts.append(f"the longest has {report.longest:,}")
    lines = ["; ".join(parts)]
    limit = f"{report.max_length:,} tokens"
    for name, what in (
        ("truncated", f"cut at {limit}"),
        ("split", f"split at {limit}"),
        ("too_long", f"left out for being longer than {limit}"),
        ("cut_off", f"left out because nothing learned is within {limit}"),
        ("without_target", "left out because nothing in it is learned"),
    ):
        if count := getattr(report, name):
            lines.append(f"{_amount(count, 'example')} {what} ({_first(report, count, name)})")
    for name, count in report.notes.items():
        if name != TEMPLATED:
            lines.append(f"{_amount(count, 'row')}: {NOTES[name]} ({_first(report, count, name)})")
    if report.unused:
        fields = (f"{name} ({_amount(rows, 'row')})" for name, rows in report.unused.items())
        lines.append(f"fields not used: {', '.join(fields)}")
    return "\n  ".join(lines)


def _amount(count: int, name: str) -> str:
    return f"{count:,} {name}" if count == 1 else f"{count:,} {name}s"


def _first(report: Report, count: int, name: str) -> str:
    """Return the first place of a count, as `train.jsonl:17` or `the first: train.jsonl:17`."""
    place = report.first[name]
    return place if count == 1 else f"the first: {place}"


def split_pieces(example: Example, tokenizer: Tokenizer) -> list[Piece]:
    """Decode an example into pieces of text that are supervised and pieces that are not.

    The whole text up to a piece's end is decoded each time, and the piece is what this adds to the
    text. A piece that is decoded on its own would lose its first space with some tokenizers.
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
    """Return the text of an example with each supervised piece between two marks.

    Args:
        example: The example.
        tokenizer: The tokenizer that it was encoded with.
        before: The text before each supervised piece, such as `[[` or a colour.
        after: The text after it.
    """
    return "".join(
        f"{before}{piece.text}{after}" if piece.is_target else piece.text
        for piece in split_pieces(example, tokenizer)
    )
