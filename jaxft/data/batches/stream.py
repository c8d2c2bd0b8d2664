"""Batches of rows that are read while the run goes on, from sources without a known length.

`make_stream(sources, encodings, ...)` counts no epochs: global batch `n` has the sequences from
`n * global_batch` on, of an endless row of them that begins anew where the sources end. What a
block of rows leaves over stands in the next batch, before the sequences of the next block, so no
row is lost and no batch has sequences of nothing but padding. Memory holds two blocks, however
many rows there are.

`batch(step)` is the same whatever was asked before. Asked in order, each row is encoded once. For
a step farther on, reading begins with the block that the journal names, and without a journal with
the first.
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
    """The sequences of a stream by their number, with the next block always being encoded."""

    def __init__(self, blocks: Blocks, journal: Journal) -> None:
        """Read nothing yet.

        Args:
            blocks: How rows become sequences.
            journal: Where blocks begin; what is found out is noted there.
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
        """Return sequences from a number on.

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
        """Return whether reading on is the shortest way to a sequence."""
        end = self._first + len(self._held)
        return self._first <= start and (start <= end or self._journal.find(start).sequences <= end)

    def _begin(self, start: int) -> None:
        """Begin with the last known block before a sequence."""
        mark = self._journal.find(start)
        self._held, self._first = [], mark.sequences
        self._ahead = self._blocks.read(mark)
        self._next = self._pool.submit(next, self._ahead)

    def _read_block(self) -> None:
        """Take the next block, and have the one after it encoded."""
        assert self._next is not None
        taken, self._next = self._next, None  # an error begins anew
        block = taken.result()
        self._journal.note(block.mark)
        if block.mark.epoch == 0 and block.mark.block > self._counted:
            self.tally.add(block.tally)
            self._counted = block.mark.block
        self._held += block.sequences
        self._next = self._pool.submit(next, self._ahead)

    def _let_go(self, start: int) -> None:
        """Forget the sequences before one that is wanted."""
        passed = min(start - self._first, len(self._held))
        del self._held[:passed]
        self._first += passed


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class StreamBatches(Batches):
    """Batches of a stream.

    Attributes:
        reader: Its sequences.
    """

    # Steps are asked for in order, or each would be looked for from the start.
    num_threads: ClassVar[int] = 1

    reader: Reader

    @property
    def fill(self) -> None:
        """Not known: nothing was read yet."""

    @property
    def report(self) -> Report:
        """What became of the rows of the first epoch that were read so far."""
        return self.reader.tally.report(self.sequence_length)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end the supervised part of these rows."""
        return tuple(sorted(self.reader.tally.end_ids))

    def _sequences(
        self, step: int, rows: Integer[np.ndarray, " r"]
    ) -> tuple[Sequence[Packed], int]:
        """Return rows of a step's batch; every process reads the whole stream."""
        whole = self.reader.sequences(step * self.global_batch, self.global_batch)
        return [whole[row] for row in rows], self.sequence_length


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
    """Return the batches of rows that are read while they are asked for.

    Every sequence has `max_length` tokens, padding included.

    Args:
        sources: The rows; one source is read after the other, and then all of them anew.
        encodings: How the rows of each source become tokens, none longer than `max_length`.
        max_length: The most tokens in a sequence.
        packing: Whether several rows of a block share a sequence; otherwise each has its own.
        shuffle: Whether the sequences of a block are shuffled.
        shuffle_buffer: Rows in a block.
        seed: Decides the packing and every block's order.
        global_batch: Sequences that one optimizer step sees.
        accumulation: Micro-batches that a global batch is cut into.
        shards: Parts that the data axes of the mesh cut a micro-batch into.
        vocab_size: How many embeddings the model has.
        journal: A file that remembers where blocks begin, so that a run that goes on need not
            encode what it has seen. Each process has its own. None keeps nothing.

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
