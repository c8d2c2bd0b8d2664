"""`jaxft data show`: one row of a recipe, as it was read and as its supervised tokens.

Only that row is encoded, so the command takes as long as reading the file up to the row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxft import console
from jaxft.config import RunConfig
from jaxft.data.chats.encoding import Encoding
from jaxft.data.chats.notes import NOTES
from jaxft.data.check import shown
from jaxft.data.examples import overlong, tokens
from jaxft.data.examples.tokens import Example
from jaxft.data.rows.row import Dialogue, Row, Text, TextCompletion, Tokenized
from jaxft.data.sources.source import RowSource
from jaxft.errors import ConfigError, DataError
from jaxft.training.prepare import reading
from jaxft.weights import base
from jaxft.weights.places import new_tokens, source

# Characters of a field that are shown; the examples below show the whole text.
_FIELD = 400
_WHOLE = 1 << 40

_LEFT_OUT = {
    "without_target": "nothing in it is learned",
    "too_long": "it is longer than data.max_length",
    "cut_off": "all that is learned in it is beyond data.max_length",
}


class _Found(NamedTuple):
    """A row, its number among all rows (from 1), and its encoding."""

    row: Row
    number: int
    encoding: Encoding


def show(config: RunConfig, wanted: str, *, is_eval: bool, has_ids: bool) -> None:
    """Print one row of a recipe.

    Args:
        config: The recipe.
        wanted: The number of the row, from 1, or its place, such as "rows.jsonl:12".
        is_eval: Whether it is a held-out row.
        has_ids: Whether to print the ids of its tokens too.

    Raises:
        JaxftError: There is no such row, or it cannot be read or encoded.
    """
    found = _find(wanted, *_open(config, is_eval))
    row = found.row
    console.facts(f"{row.place}, row {found.number:,}", _fields(row))
    encoded = tokens.encode_row(row, found.encoding)
    for note in encoded.notes:
        console.finding("note", f"{NOTES[note]}.", ())
    for number, example in enumerate(encoded.examples, start=1):
        title = f"Example {number} of {len(encoded.examples)}"
        _show_example(title, example, found, has_ids=has_ids)


def _open(config: RunConfig, is_eval: bool) -> tuple[Sequence[RowSource], Sequence[Encoding]]:
    """Return the sources of one side, and the encoding of each.

    Raises:
        ConfigError: The recipe has no held-out rows.
    """
    rows = reading.open_recipe(config.data)
    found = rows.eval if is_eval else rows.train
    if found is None:
        raise ConfigError(
            "--eval asks for held-out rows, and the recipe has neither data.eval nor "
            "data.hold_out.",
            "Leave out --eval, or set data.eval to a file of rows.",
        )
    model = source.resolve(config.model.path, config.model.revision, console.note)
    model = new_tokens.with_new_tokens(model, config.model.new_tokens, console.note)
    tokenizer = model.tokenizer()
    stop_ids = () if tokenizer is None else base.read_stop_ids(model, tokenizer)
    configs = (config.data.eval or config.data.train) if is_eval else config.data.train
    return found, reading.make_encodings(config.data, configs, tokenizer, stop_ids)


def _find(wanted: str, sources: Sequence[RowSource], encodings: Sequence[Encoding]) -> _Found:
    """Return the row with a number or a place.

    Raises:
        DataError: There is no such row.
    """
    number = 0
    for rows, encoding in zip(sources, encodings, strict=True):
        for row in rows:
            number += 1
            place = str(row.place)
            is_number = wanted.isdecimal() and number == int(wanted)
            if is_number or place == wanted or place.endswith(f"/{wanted}"):
                return _Found(row, number, encoding)
    raise DataError(
        f"--row {wanted}: there is no such row among the {number:,} there are.",
        "Give a number from 1 on, or a place as `jaxft data check` writes it.",
    )


def _fields(row: Row) -> Iterator[tuple[str, str]]:
    """Yield the label and the value of each field of a row, as it was read."""
    match row:
        case Dialogue():
            if row.tools:
                yield "tools", _short(json.dumps(list(row.tools), ensure_ascii=False))
            for name, value in row.template_kwargs.items():
                yield name, _short(json.dumps(value, ensure_ascii=False))
            for index, message in enumerate(row.messages):
                role = message["role"] + (" (not learned)" if index in row.skipped else "")
                yield role, _short(message["content"])
                for name, value in message.items():
                    if name not in ("role", "content"):
                        yield f"  {name}", _short(json.dumps(value, ensure_ascii=False))
        case TextCompletion():
            yield "prompt", _short(row.prompt)
            yield "completion", _short(row.completion)
        case Text():
            yield "text", _short(row.text)
        case Tokenized():
            yield "tokens", f"{len(row.input_ids):,}"
    if row.unused:
        yield "not used", ", ".join(row.unused)


def _show_example(title: str, example: Example, found: _Found, *, has_ids: bool) -> None:
    """Print each piece that is kept of an example."""
    encoding, place = found.encoding, found.row.place
    try:
        fitted = overlong.fit(example, encoding.max_length, encoding.overlong, place)
    except DataError as error:
        console.finding("stop", error.found, [f"-> {error.remedy}"])
        fitted = overlong.FittedExample((example,), "")
    if not fitted.examples:
        console.finding("warning", f"{title} is left out: {_LEFT_OUT[fitted.outcome]}.", ())
    length = len(example.input_ids)
    # An example that is left out is shown too, so that one sees what it is.
    for number, piece in enumerate(fitted.examples or (example,), start=1):
        told = shown.show(piece, str(place), encoding.tokenizer, _WHOLE)
        amount = f"{told.tokens:,} tokens"
        if fitted.outcome == "truncated":
            amount += f", cut from {length:,}"
        if fitted.outcome == "split":
            amount += f", piece {number} of the {len(fitted.examples)} kept of {length:,}"
        console.marked(f"{title}: {amount}; {told.targets:,} are learned,", told.pieces)
        if has_ids:
            console.marked("Its tokens as numbers,", _numbers(piece))


def _numbers(example: Example) -> list[tuple[str, bool]]:
    """Return the token ids as text, in pieces that are supervised and pieces that are not."""
    cuts = np.flatnonzero(np.diff(example.loss_mask)) + 1
    runs = np.split(np.arange(len(example.input_ids)), cuts)
    pieces: list[tuple[str, bool]] = []
    for run in runs:
        pieces += [(" ", False)] if pieces else []
        numbers = " ".join(map(str, example.input_ids[run].tolist()))
        pieces.append((numbers, bool(example.loss_mask[run[:1]].any())))
    return pieces


def _short(text: str) -> str:
    return "".join(part for part, _ in shown.shortened([(text, False)], _FIELD))
