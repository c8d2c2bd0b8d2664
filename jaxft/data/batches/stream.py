"""Batches of rows that are read during the run, from sources without a known length.

`make_stream(sources, encodings, ...)` counts no epochs. The sequences of all blocks form one
endless stream, in which the sources begin again after their end. Global batch `n` has the sequences
from number `n * global_batch` on. The last sequences of a block share a batch with the first ones
of the next block, so no row is lost and no sequence is only padding. Memory holds two blocks,
whatever the number of rows.

`batch(step)` does not depend on earlier calls. If steps are requested in order, each row is encoded
once. For a step farther on, reading begins at the block that the journal names, or without a
journal at the first block.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Integer

from jaxft.data.batches import batch as batches_
from jaxft.data.batches.batch import Batches, Packed
from jaxft.data.batches.blocks import Blocks, EncodedSource, StreamBlock
from jaxft.data.batches.journal import Journal
from jaxft.data.chats.encoding import Encoding
from jaxft.data.examples.report import Report
from jaxft.data.examples.tally import Tally
from jaxft.data.sources.source import RowSource


class Reader:
    """The sequences of a stream by number. The next block is always being encoded in a thread."""

    def __init__(self, blocks: Blocks, journal: Journal) -> None:
        """Keep the arguments; nothing is read yet.

        Args:
            blocks: The blocks of the stream.
            journal: Knows where blocks begin, and is told the mark of each block that is read.
        """
        self._blocks = blocks
        self._journal = journal
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="jaxft-stream")
        self._held: list[Packed] = []
        self._first = 0  # the number of the first sequence held
        self._ahead: Iterator[StreamBlock] = iter(())
        self._next: Future[StreamBlock] | None = None
        self._counted = -1  # the last block that was counted
        self.tally = Tally()

    def sequences(self, start: int, count: int) -> list[Packed]:
        """Return `count` sequences, from number `start` on.

        Raises:
            DataError: See `Blocks.read`.
        """
        with self._lock:
            if self._next is None or not self._is_near(start):
                self._begin(start)
            while self._first + len(self._held) < start + count:
                self._let_go(start)
                self._read_block()
            self._let_go(start)
            return self._held[:count]

    def _is_near(self, start: int) -> bool:
        """Return whether reading on is the fastest way to a sequence."""
        end = self._first + len(self._held)
        return self._first <= start and (start <= end or self._journal.find(start).sequences <= end)

    def _begin(self, start: int) -> None:
        """Begin reading at the last known block before a sequence."""
        mark = self._journal.find(start)
        self._held, self._first = [], mark.sequences
        self._ahead = self._blocks.read(mark)
        self._next = self._pool.submit(next, self._ahead)

    def _read_block(self) -> None:
        """Take the next block, and start to encode the one after it."""
        assert self._next is not None
        taken, self._next = self._next, None  # so that after an error reading begins again
        block = taken.result()
        self._journal.note(block.mark)
        if block.mark.epoch == 0 and block.mark.block > self._counted:
            self.tally.add(block.tally)
            self._counted = block.mark.block
        self._held += block.sequences
        self._next = self._pool.submit(next, self._ahead)

    def _let_go(self, start: int) -> None:
        """Forget the sequences before a number."""
        passed = min(start - self._first, len(self._held))
        del self._held[:passed]
        self._first += passed


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class StreamBatches(Batches):
    """Batches of a stream.

    Attributes:
        reader: Reads the sequences of the stream.
    """

    # One thread requests steps in order. Steps out of order would be searched from the start.
    num_threads: ClassVar[int] = 1

    reader: Reader

    @property
    def fill(self) -> None:
        """None, because nothing was read yet."""

    @property
    def report(self) -> Report:
        """The report on the rows of the first epoch that were read so far."""
        return self.reader.tally.report(self.sequence_length)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end the supervised parts of these rows."""
        return tuple(sorted(self.reader.tally.end_ids))

    def _sequences(
        self, step: int, row_ids: Integer[np.ndarray, " r"]
    ) -> tuple[Sequence[Packed], int]:
        """Return sequences of a step's batch. Every process reads the whole stream."""
        whole = self.reader.sequences(step * self.global_batch, self.global_batch)
        return [whole[row] for row in row_ids], self.sequence_length


def make_stream(
    sources: Sequence[RowSource],
    encodings: Sequence[Encoding],
    *,
    max_length: int,
    packing: bool,
    shuffle: bool,
    shuffle_buffer: int,
    seed: int,
    global_batch: int,
    accumulation: int,
    shards: int,
    vocab_size: int,
    journal: Path | None,
) -> StreamBatches:
    """Return the batches of a stream, whose rows are read when they are needed.

    Every sequence has `max_length` tokens, padding included.

    Args:
        sources: The sources of rows. They are read one after the other, and then all again.
        encodings: The encoding of each source; no example is longer than `max_length`.
        max_length: The largest number of tokens in a sequence.
        packing: Whether several examples of a block share a sequence; otherwise each has its own.
        shuffle: Whether the sequences of a block are shuffled.
        shuffle_buffer: The number of rows in a block.
        seed: Decides the packing and the order of every block.
        global_batch: The number of sequences in one optimizer step.
        accumulation: The number of micro-batches in a global batch.
        shards: The number of parts into which the data axes of the mesh divide a micro-batch.
        vocab_size: The number of embeddings of the model.
        journal: A file that keeps the beginnings of blocks, so that a resumed run need not encode
            earlier blocks again. Each process has its own file. None keeps nothing.

    Raises:
        ConfigError: The global batch cannot be cut evenly.
        DataError: A source cannot be read.
    """
    rows_per_shard = batches_.rows_per_shard(global_batch, accumulation, shards)
    pairs = [EncodedSource(*pair) for pair in zip(sources, encodings, strict=True)]
    blocks = Blocks(
        sources=pairs,
        max_length=max_length,
        packing=packing,
        shuffle=shuffle,
        shuffle_buffer=shuffle_buffer,
        seed=seed,
        vocab_size=vocab_size,
    )
    fingerprint = _fingerprint(pairs, [max_length, packing, shuffle, shuffle_buffer, seed])
    return StreamBatches(
        sequence_length=max_length,
        global_batch=global_batch,
        accumulation=accumulation,
        target_capacity=rows_per_shard * max_length,
        steps_per_epoch=None,
        num_sequences=None,
        fingerprint=fingerprint,
        reader=Reader(blocks, Journal(journal, fingerprint)),
    )


def _fingerprint(sources: Sequence[EncodedSource], options: Sequence[object]) -> str:
    keys = [[source.rows.digest(), source.encoding.key()] for source in sources]
    return hashlib.sha256(json.dumps([keys, options], sort_keys=True).encode()).hexdigest()
