"""A stream's rows as sequences, block by block: all that is random or packed happens in a block.

A block is `shuffle_buffer` rows in the order of the source; at the source's end it is shorter, and
the next block begins with the first row again. Its examples are packed, or stand alone, and its
sequences are shuffled by (seed, number of the block). So the sequences of a block depend on its
rows and its number, and reading can begin at any block.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxft.data.batches import packing
from jaxft.data.batches.batch import Packed
from jaxft.data.batches.journal import Mark
from jaxft.data.batches.order import BLOCKS, shuffled
from jaxft.data.chats.encoding import Encoding
from jaxft.data.examples import chunk, encode
from jaxft.data.examples.chunk import Chunk
from jaxft.data.examples.tally import Tally
from jaxft.data.examples.tokens import Example
from jaxft.data.rows.row import Row
from jaxft.data.sources.source import RowSource


class EncodedSource(NamedTuple):
    """Rows that can be read again and again, and how they become tokens."""

    rows: RowSource
    encoding: Encoding


class StreamBlock(NamedTuple):
    """The sequences of a block, where it begins, and what was counted in its rows."""

    mark: Mark
    sequences: list[Packed]
    tally: Tally


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Blocks:
    """How rows become blocks of sequences.

    Attributes:
        sources: The rows; one source is read after the other.
        max_length: The most tokens in a sequence.
        packing: Whether several examples share a sequence.
        shuffle: Whether the sequences of a block are shuffled.
        shuffle_buffer: Rows in a block.
        seed: Decides the packing and every block's order.
        vocab_size: How many embeddings the model has.
    """

    sources: Sequence[EncodedSource]
    max_length: int
    packing: bool
    shuffle: bool
    shuffle_buffer: int
    seed: int
    vocab_size: int

    def read(self, mark: Mark) -> Iterator[StreamBlock]:
        """Yield blocks without end.

        Args:
            mark: Where the first of them begins.

        Raises:
            DataError: A row cannot be read or encoded, or has a token that the model does not know,
                or there is nothing to learn in all rows.
        """
        total = Tally()
        rows: Iterator[tuple[int, Row]] = itertools.islice(self._rows(), mark.rows, None)
        while True:
            block = self._block(itertools.islice(rows, self.shuffle_buffer), mark)
            if block.tally.rows:
                yield block
                total.add(block.tally)
                mark = mark._replace(
                    block=mark.block + 1,
                    rows=mark.rows + block.tally.rows,
                    sequences=mark.sequences + len(block.sequences),
                )
            elif mark.sequences:
                mark = mark._replace(epoch=mark.epoch + 1, rows=0)
                rows = self._rows()
            else:
                names = ", ".join(source.rows.name for source in self.sources)
                raise encode.nothing_left(names, total.report(self.max_length))

    def _rows(self) -> Iterator[tuple[int, Row]]:
        """Yield all rows, each with the number of its source."""
        for number, source in enumerate(self.sources):
            yield from zip(itertools.repeat(number), source.rows)

    def _block(self, rows: Iterator[tuple[int, Row]], mark: Mark) -> StreamBlock:
        """Encode the rows of a block; they are held as tokens only."""
        tally = Tally()
        examples: list[Example] = []
        for number, some in itertools.groupby(rows, key=operator.itemgetter(0)):
            encoding = self.sources[number].encoding
            for batch in chunk.batches(row for _, row in some):
                encoded = chunk.encode_chunk(batch, encoding)
                chunk.check_ids(encoded.table, encoded.files, self.vocab_size)
                tally.add(encoded.tally)
                examples += _examples(encoded)
        return StreamBlock(mark, self._sequences(examples, mark.block), tally)

    def _sequences(self, examples: Sequence[Example], block: int) -> list[Packed]:
        """Return the sequences of a block in their order."""
        lengths = np.array([len(each.input_ids) for each in examples], np.int32)
        bins = (
            packing.pack(lengths, self.max_length, self.seed)
            if self.packing
            else packing.singles(len(examples))
        )
        order = (
            shuffled(len(bins), self.seed, block, BLOCKS) if self.shuffle else np.arange(len(bins))
        )
        return [[examples[row] for row in bins[int(index)]] for index in order]


def _examples(encoded: Chunk) -> Iterator[Example]:
    for start, length in zip(encoded.table["start"], encoded.table["length"], strict=True):
        part = slice(start, start + length)
        yield Example(encoded.input_ids[part], encoded.loss_mask[part])
