"""The parts of the check that look at every token and every text, with a cache on disk.

The cache's file is named by a digest of the data's fingerprints, of everything else that decides
the result, and of the code in this folder. So the second check of the same data takes no time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pydantic
from jaxtyping import Integer

from jaxft.data.chats.encoding import Encoding, Tokenizer
from jaxft.data.check import duplicates, sweep, texts
from jaxft.data.check.duplicates import Duplicates
from jaxft.data.check.pool import Pool
from jaxft.data.check.sweep import Advance, Sweep
from jaxft.data.check.texts import TextScan
from jaxft.data.examples import encode
from jaxft.data.examples.encode import Examples
from jaxft.data.sources.source import RowSource

_NUM_SHOWN = 5


@runtime_checkable
class EncodedSide(Protocol):
    """The training rows or the held-out rows, encoded, as in `training.prepare.reading.Side`."""

    @property
    def sources(self) -> Sequence[RowSource]:
        """The sources of the rows."""

    @property
    def encodings(self) -> Sequence[Encoding]:
        """The encoding of each source."""

    @property
    def examples(self) -> Sequence[Examples]:
        """The examples of each source."""


@dataclasses.dataclass(frozen=True)
class Marked:
    """The number of examples with some property, and the places of the first ones."""

    count: int
    first: list[str]


@dataclasses.dataclass(frozen=True)
class SideLook:
    """The results for one side.

    Attributes:
        unended: Examples whose last reply does not end with a token that stops generation.
        unknown: Examples with the tokenizer's unknown token.
        num_unknown: The number of unknown tokens.
        texts: The odd texts in the rows.
    """

    unended: Marked
    unknown: Marked
    num_unknown: int
    texts: TextScan


@dataclasses.dataclass(frozen=True)
class Looks:
    """The results for both sides."""

    train: SideLook
    held_out: SideLook | None
    copies: Duplicates


def look(
    train: EncodedSide, held_out: EncodedSide | None, *, near: bool, advance: Advance
) -> Looks:
    """Look at every token and every text.

    Args:
        train: The training rows.
        held_out: The held-out rows.
        near: Whether to look for examples that are almost equal.
        advance: Called with the amount of work done since the last call.
    """
    pool = Pool(train.examples)
    form = sweep.find_form(pool) if near else None
    swept = _swept(train, pool, form, advance)
    held_pool = held_sweep = held_look = None
    if held_out is not None:
        held_pool = Pool(held_out.examples)
        held_sweep = _swept(held_out, held_pool, form, advance)
        held_look = _side_look(held_out, held_pool, held_sweep, advance)
    return Looks(
        _side_look(train, pool, swept, advance),
        held_look,
        duplicates.find(pool, swept, held_pool, held_sweep, form),
    )


def work(train: EncodedSide, held_out: EncodedSide | None) -> int:
    """Return the total work of `look`, if it looks at all texts: the number of tokens and rows."""
    reports = [each.report for side in (train, held_out) if side for each in side.examples]
    return sum(report.tokens + report.rows for report in reports)


def cached(
    train: EncodedSide, held_out: EncodedSide | None, folder: Path, *, near: bool, advance: Advance
) -> Looks:
    """Return the result of `look`, read from a file in a folder if an earlier call wrote it there.

    If the folder cannot be written, the next call takes the full time again.
    """
    path = folder / f"{_key(train, held_out, near)}.check.json"
    reader = pydantic.TypeAdapter(Looks)
    try:
        return reader.validate_json(path.read_bytes())
    except (OSError, pydantic.ValidationError):
        found = look(train, held_out, near=near, advance=advance)
    unfinished = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(reader.dump_json(found))
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
    return found


def _swept(side: EncodedSide, pool: Pool, form: sweep.Form | None, advance: Advance) -> Sweep:
    return sweep.run(
        pool, form, _ends(side), _unknown_id(_tokenizer(side)), _max_length(side), advance
    )


def _side_look(side: EncodedSide, pool: Pool, swept: Sweep, advance: Advance) -> SideLook:
    rows = itertools.chain.from_iterable(side.sources)
    return SideLook(
        _marked(pool, swept.unended),
        _marked(pool, swept.unknown),
        swept.num_unknown,
        texts.scan(rows, *_special_tokens(_tokenizer(side)), advance),
    )


def _marked(pool: Pool, numbers: Integer[np.ndarray, " n"]) -> Marked:
    return Marked(len(numbers), [str(pool.place(index)) for index in numbers[:_NUM_SHOWN].tolist()])


def _tokenizer(side: EncodedSide) -> Tokenizer | None:
    """Return the tokenizer of a side. Those of its sources differ only in the chat template."""
    return next((each.tokenizer for each in side.encodings if each.tokenizer is not None), None)


def _max_length(side: EncodedSide) -> int:
    return max(each.max_length for each in side.encodings)


def _ends(side: EncodedSide) -> set[int]:
    return {end for each in side.encodings for end in each.stop_ids} | {
        end for each in side.examples for end in each.end_ids
    }


def _unknown_id(tokenizer: Tokenizer | None) -> int | None:
    """Return the unknown token of a tokenizer; None if it is also its start, end or pad token."""
    if tokenizer is None:
        return None
    used = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
    return None if tokenizer.unk_token_id in used else tokenizer.unk_token_id


def _special_tokens(tokenizer: Tokenizer | None) -> tuple[list[str], str, str]:
    """Return the special tokens as text, and the start and end tokens of a text, or ""."""
    if tokenizer is None:
        return [], "", ""
    special = sorted(
        str(token) for token in tokenizer.added_tokens_decoder.values() if token.special
    )
    return special, tokenizer.bos_token or "", tokenizer.eos_token or ""


def _key(train: EncodedSide, held_out: EncodedSide | None, near: bool) -> str:
    """Return a digest of everything that decides the result."""
    sides = [_side_key(side) for side in (train, held_out) if side is not None]
    return hashlib.sha256(
        json.dumps([encode.code_digest(Path(__file__).parent), near, sides]).encode()
    ).hexdigest()


def _side_key(side: EncodedSide) -> list[Any]:
    tokenizer = _tokenizer(side)
    return [
        [source.digest() for source in side.sources],
        [examples.fingerprint for examples in side.examples],
        # The places in the result have these names.
        [source.name for source in side.sources],
        sorted(_ends(side)),
        _unknown_id(tokenizer),
        _special_tokens(tokenizer),
        _max_length(side),
    ]
