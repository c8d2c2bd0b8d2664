"""A few hundred rows, encoded: what is computed of them at once and then written to the cache.

Three texts of 5, 2 and 4 tokens become one array of 11 tokens, one of 11 masks, a table of three
lines with their places and lengths, and a tally of what was counted. A chunk is computed in this
process or in another, and knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Shaped, UInt8

from jaxft.data.chats.encoding import Encoding
from jaxft.data.examples import overlong, tokens
from jaxft.data.examples.tally import Tally
from jaxft.data.examples.tokens import Example
from jaxft.data.rows.row import Dialogue, Row, RowPlace, Text, TextCompletion, Tokenized, Unit
from jaxft.errors import DataError

# A batch ends at either: so many rows, or so many characters (or tokens) in them.
_BATCH_ROWS = 256
_BATCH_SIZE = 1_000_000

# A line for each example: where its tokens begin in the array of all of them, how many there are,
# how many there were before it was cut, how many are supervised, the highest id, and its place:
# an index into a list of files, and a line or row.
TABLE = np.dtype(
    [
        ("start", "<i8"),
        ("length", "<i4"),
        ("full_length", "<i4"),
        ("targets", "<i4"),
        ("highest_id", "<i4"),
        ("file", "<i4"),
        ("number", "<i8"),
    ]
)

File = tuple[str, Unit]


class Chunk(NamedTuple):
    """Rows as tokens.

    Attributes:
        input_ids: The tokens of all examples, one after the other.
        loss_mask: 1 where they are supervised.
        table: A line of `TABLE` for each example.
        files: What the places of the rows are in.
        tally: What was counted.
    """

    input_ids: Int32[np.ndarray, " t"]
    loss_mask: UInt8[np.ndarray, " t"]
    table: Shaped[np.ndarray, " n"]
    files: list[File]
    tally: Tally


def batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield rows in lists of a bounded size."""
    held: list[Row] = []
    size = 0
    for row in rows:
        held.append(row)
        size += _size(row)
        if len(held) == _BATCH_ROWS or size >= _BATCH_SIZE:
            yield held
            held, size = [], 0
    if held:
        yield held


def encode_chunk(rows: Sequence[Row], encoding: Encoding) -> Chunk:
    """Encode rows, fit them into the maximum length, and count.

    Raises:
        DataError: A row cannot be encoded, or is too long where that is an error.
    """
    tally = Tally()
    files: dict[File, int] = {}
    kept: list[Example] = []
    origins: list[tuple[int, int, int]] = []
    for row, encoded in zip(rows, tokens.encode_rows(rows, encoding), strict=True):
        place = row.place
        tally.count_row(row, encoded.notes, encoded.end_ids)
        file = files.setdefault((place.source, place.unit), len(files))
        for full in encoded.examples:
            length = len(full.input_ids)
            fitted = overlong.fit(full, encoding.max_length, encoding.overlong, place)
            tally.count_example(length, len(fitted.examples), fitted.outcome, place)
            kept += fitted.examples
            origins += [(length, file, place.number)] * len(fitted.examples)
    if not kept:
        return Chunk(np.empty(0, np.int32), np.empty(0, np.uint8), np.empty(0, TABLE), [], tally)
    ids = np.concatenate([each.input_ids for each in kept])
    mask = np.concatenate([each.loss_mask for each in kept])
    table = np.empty(len(kept), TABLE)
    table["length"] = [len(each.input_ids) for each in kept]
    table["start"] = np.cumsum(table["length"]) - table["length"]
    table["targets"] = np.add.reduceat(mask, table["start"], dtype=np.int32)
    table["highest_id"] = np.maximum.reduceat(ids, table["start"])
    table["full_length"], table["file"], table["number"] = np.array(origins, np.int64).T
    tally.tokens = len(ids)
    tally.targets = int(mask.sum())
    return Chunk(ids, mask, table, list(files), tally)


def check_ids(table: Shaped[np.ndarray, " n"], files: Sequence[File], vocab_size: int) -> None:
    """Raise unless a model with `vocab_size` embeddings has one for every token of some examples.

    Args:
        table: A line of `TABLE` for each example.
        files: What the places in it are in.
        vocab_size: How many embeddings there are.

    Raises:
        DataError: An example has a higher token.
    """
    wrong = table[table["highest_id"] >= vocab_size]
    if len(wrong):
        source, unit = files[wrong[0]["file"]]
        raise DataError(
            f"{RowPlace(source, int(wrong[0]['number']), unit)}: the row has the token"
            f" {wrong[0]['highest_id']}, and the model's vocabulary ends at {vocab_size - 1}.",
            "Tokenize with the model's own tokenizer, without tokens added to it, or give them "
            "rows: by model.new_tokens in a recipe, by resize_token_embeddings in Python.",
        )


def _size(row: Row) -> int:
    """Return about how many characters, or tokens, a row has."""
    match row:
        case Dialogue():
            return sum(len(message["content"]) for message in row.messages)
        case TextCompletion():
            return len(row.prompt) + len(row.completion)
        case Text():
            return len(row.text)
        case Tokenized():
            return len(row.input_ids)
    raise TypeError(f"no such row: {type(row).__name__}")
