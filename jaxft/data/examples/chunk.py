"""A chunk: the examples of a few hundred rows, encoded together and then written to the cache.

Three texts of 5, 2 and 4 tokens become an array of 11 tokens, a mask of 11 numbers, a table of
three lines with their lengths and places, and a tally. A chunk may be computed in this process or
in a worker, and does not know about the cache's files.
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

# A batch of rows ends at this number of rows, or at this number of characters (or tokens).
_BATCH_ROWS = 256
_BATCH_SIZE = 1_000_000

# A line for each example: the start of its tokens in the array of all tokens, their number, their
# number before the example was cut, the number of supervised ones, the highest id, and the place of
# its row as an index into a list of files and a line or row number.
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
    """The examples of some rows.

    Attributes:
        input_ids: The tokens of all examples, one after the other.
        loss_mask: 1 where a token is supervised.
        table: A line of `TABLE` for each example.
        files: The files in which the rows stand.
        tally: The counts of rows, examples and tokens.
    """

    input_ids: Int32[np.ndarray, " t"]
    loss_mask: UInt8[np.ndarray, " t"]
    table: Shaped[np.ndarray, " n"]
    files: list[File]
    tally: Tally


def batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield rows in lists of limited size."""
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
    """Encode rows, fit the examples into the maximum length, and count.

    Raises:
        DataError: A row cannot be encoded, or is too long and `encoding.overlong` is "error".
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
    """Raise if an example has a token id that is not below `vocab_size`.

    Args:
        table: A line of `TABLE` for each example.
        files: The files of the table's places.
        vocab_size: The number of embeddings of the model.

    Raises:
        DataError: An example has a token without an embedding.
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
    """Return the approximate number of characters, or tokens, in a row."""
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
