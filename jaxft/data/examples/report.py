"""What became of a source's rows, and one row of it, for people to look at.

A report counts: 1,000 rows, 52,300 tokens, 3 examples cut at 1,024 tokens, the first of them at
`train.jsonl:17`. It is kept with the encoded rows, so it holds names and numbers alone. Training on
the wrong tokens looks like training, so the supervised part is shown too, decoded from the arrays
that the step is given.
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
    """What encoding made of a source; a row gives one example or more.

    All fields are JSON values: `dataclasses.asdict` writes a report, `Report(**values)` reads it.

    Attributes:
        rows: Rows read.
        examples: Examples kept.
        tokens: Tokens in them.
        targets: Those of them that are supervised.
        longest: Tokens in the longest example with a target, before it was cut or left out.
        max_length: The most tokens of an example.
        truncated: Examples kept, but cut at that length.
        split: Examples cut into several.
        too_long: Examples left out for being longer.
        cut_off: Examples left out because all that is supervised in them was beyond that length.
        without_target: Examples left out because nothing in them is supervised at any length.
        dropped: Examples left out for any of these reasons.
        notes: How many rows each name of `notes.NOTES` is true of.
        unused: How many rows have a field that nothing was made of, by the field's name.
        first: Where the first of each stands: of the counts from `truncated` to `dropped`, of each
            note by its name, and of each unused field as `unused.NAME`.
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
    """A run of text that is supervised as a whole or not at all."""

    text: str
    is_target: bool


def describe(report: Report) -> str:
    """Return the report as one sentence, and a line below it for each thing worth a look."""
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
    """Return where what is counted begins, as `train.jsonl:17` or `the first: train.jsonl:17`."""
    place = report.first[name]
    return place if count == 1 else f"the first: {place}"


def split_pieces(example: Example, tokenizer: Tokenizer) -> list[Piece]:
    """Decode a row into runs of text that are supervised and runs that are not.

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
    """Return a row's text with each supervised run between two marks.

    Args:
        example: The row.
        tokenizer: The tokenizer it was encoded with.
        before: Put before each supervised run, such as an opening mark or a colour.
        after: Put after it.
    """
    return "".join(
        f"{before}{piece.text}{after}" if piece.is_target else piece.text
        for piece in split_pieces(example, tokenizer)
    )
