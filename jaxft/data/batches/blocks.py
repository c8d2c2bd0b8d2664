"""Blocks of a stream: packing and shuffling happen within one block of rows.

A block is `shuffle_buffer` rows in the order of the source. At the end of the source it is shorter,
and the next block begins with the first row again. The examples of a block are packed into
sequences, or have one each, and the sequences are shuffled by (seed, number of the block). So the
sequences of a block depend only on its rows and its number, and reading can begin at any block.
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
    """A source of rows, and the encoding that makes examples of them."""

    rows: RowSource
    encoding: Encoding


class StreamBlock(NamedTuple):
    """A block of a stream.

    Attributes:
        mark: Where the block begins.
        sequences: Its sequences, in their order.
        tally: The counts of its rows and examples.
    """

    mark: Mark
    sequences: list[Packed]
    tally: Tally


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Blocks:
    """The blocks of a stream.

    Attributes:
        sources: The sources of rows, which are read one after the other.
        max_length: The largest number of tokens in a sequence.
        packing: Whether several examples share a sequence.
        shuffle: Whether the sequences of a block are shuffled.
        shuffle_buffer: The number of rows in a block.
        seed: Decides the packing and the order of every block.
        vocab_size: The number of embeddings of the model.
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
            mark: Where the first block begins.

        Raises:
            DataError: A row cannot be read or encoded, or has a token without an embedding; or no
                row has a supervised token.
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
        """Encode the rows of a block. Only their tokens are kept in memory."""
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
        """Pack the examples of a block into sequences, and return these in their order."""
        lengths = np.array([len(each.input_ids) for each in examples], np.int32)
        bins = (
            packing.pack(lengths, self.max_length, self.seed)
            if self.packing
            else packing.singles(len(examples))
        )
        order = (
            shuffled(len(bins), self.seed, block, BLOCKS) if self.shuffle else np.arange(len(bins))
        )
        return [[examples[number] for number in bins[int(index)]] for index in order]


def _examples(encoded: Chunk) -> Iterator[Example]:
    for start, length in zip(encoded.table["start"], encoded.table["length"], strict=True):
        part = slice(start, start + length)
        yield Example(encoded.input_ids[part], encoded.loss_mask[part])
