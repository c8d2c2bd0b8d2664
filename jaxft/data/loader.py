"""Batches by their step number.

Separate from packing, which decides what shares a sequence, and from the step, which only sees
arrays. The order of the data is a pure function of (seed, step): an epoch is a permutation of the
sequences, cut into global batches, so resuming is a number and nothing is kept. The invariant: an
epoch has each row exactly once, and how a global batch is cut into micro-batches changes nothing
in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from jaxft.data import packing as packing_
from jaxft.data.encode import Examples
from jaxft.data.tokenized import IGNORED
from jaxft.errors import ConfigError, DataError

Batch = dict[str, np.ndarray]
"""One global batch: `a` micro-batches of `b` sequences of `t` tokens, all int32.

    input_ids     [a b t]  0 in padding
    segment_ids   [a b t]  1, 2, ... for each row packed in a sequence, 0 in padding
    positions     [a b t]  from 0 in each segment, 0 in padding
    labels        [a b t]  the next token where it is a target of the same segment, else IGNORED
    rows          [a b]    the sequence's number within the global batch
"""

_LENGTH_MULTIPLE = 8
_CAPACITY_MULTIPLE = 128


@dataclasses.dataclass(frozen=True, eq=False)
class Batches:
    """A plan of batches, read by step.

    Attributes:
        examples: The rows as tokens.
        sequences: For each sequence, the examples in it.
        sequence_length: Tokens in a sequence, padding included; `t`.
        global_batch: Sequences that one optimizer step sees; `a * b`.
        accumulation: Micro-batches in a global batch; `a`.
        target_capacity: The most targets that one data shard of one micro-batch can hold.
        steps_per_epoch: Global batches in an epoch.
        seed: Decides the order of every epoch.
        shuffle: Whether epochs are shuffled; otherwise all have the sequences' own order.
    """

    examples: Examples
    sequences: Sequence[tuple[int, ...]]
    sequence_length: int
    global_batch: int
    accumulation: int
    target_capacity: int
    steps_per_epoch: int
    seed: int
    shuffle: bool

    @property
    def fill(self) -> float:
        """The share of the planned tokens that are not padding."""
        tokens = int(self.examples.lengths.sum(dtype=np.int64))
        return tokens / (len(self.sequences) * self.sequence_length)

    def batch(self, step: int) -> Batch:
        """Return the global batch of a step, counted from 0 over all epochs.

        The last batch of an epoch is filled up with sequences of nothing but padding.
        """
        epoch, index = divmod(step, self.steps_per_epoch)
        chosen = self._order(epoch)[index * self.global_batch :][: self.global_batch]
        shape = (self.global_batch, self.sequence_length)
        batch = {
            "input_ids": np.zeros(shape, np.int32),
            "segment_ids": np.zeros(shape, np.int32),
            "positions": np.zeros(shape, np.int32),
            "labels": np.full(shape, IGNORED, np.int32),
            "rows": np.arange(self.global_batch, dtype=np.int32),
        }
        for row, sequence in enumerate(chosen):
            self._fill_row({name: array[row] for name, array in batch.items()}, int(sequence))
        return {
            name: array.reshape(self.accumulation, -1, *array.shape[1:])
            for name, array in batch.items()
        }

    def iterate(self, start_step: int, num_steps: int) -> Iterator[tuple[int, Batch]]:
        """Yield steps and their batches, prepared ahead in threads.

        Args:
            start_step: The first step; to resume is to start at another one.
            num_steps: How many steps to yield.
        """
        import grain

        steps = grain.MapDataset.range(start_step, start_step + num_steps)
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        yield from steps.map(self._numbered).to_iter_dataset(options)

    def _numbered(self, step: int) -> tuple[int, Batch]:
        return step, self.batch(step)

    def _order(self, epoch: int) -> np.ndarray:
        """Return the order of the sequences in an epoch."""
        if not self.shuffle:
            return np.arange(len(self.sequences))
        return packing_.shuffled(len(self.sequences), self.seed, stream=epoch)

    def _fill_row(self, row: Batch, sequence: int) -> None:
        """Write one sequence's examples, end to end, into one row of the batch's arrays."""
        start = 0
        for segment, index in enumerate(self.sequences[sequence], start=1):
            ids, mask = self.examples[index]
            stop = start + len(ids)
            row["input_ids"][start:stop] = ids
            row["segment_ids"][start:stop] = segment
            row["positions"][start:stop] = np.arange(len(ids))
            row["labels"][start : stop - 1] = np.where(mask[1:], ids[1:], IGNORED)
            start = stop


def make_batches(
    examples: Examples,
    *,
    max_length: int,
    packing: bool,
    shuffle: bool,
    seed: int,
    global_batch: int,
    accumulation: int,
    shards: int,
    drop_last: bool,
) -> Batches:
    """Plan the batches of a data set.

    A sequence is as long as the longest one, rounded up to a multiple of 8, at most `max_length`.

    Args:
        examples: The rows as tokens, none longer than `max_length`.
        max_length: The most tokens in a sequence.
        packing: Whether several rows share a sequence; otherwise each has its own, in file order.
        shuffle: Whether each epoch has its own order.
        seed: Decides the packing and every epoch's order.
        global_batch: Sequences that one optimizer step sees.
        accumulation: Micro-batches that a global batch is cut into.
        shards: Parts that the data axes of the mesh cut a micro-batch into.
        drop_last: Whether an epoch ends before a batch that it cannot fill; otherwise the rest of
            that batch is padding.

    Raises:
        ConfigError: The global batch cannot be cut evenly.
        DataError: With `drop_last`, an epoch would have no batch at all.
    """
    if global_batch % (accumulation * shards):
        raise ConfigError(
            f"A global batch of {global_batch} sequences cannot be cut evenly into {accumulation}"
            f" micro-batches over {shards} data shards.",
            f"Make it a multiple of {accumulation * shards}.",
        )
    if packing:
        sequences = packing_.pack(examples.lengths, max_length, seed)
    else:
        sequences = [(index,) for index in range(len(examples))]
    full, rest = divmod(len(sequences), global_batch)
    steps_per_epoch = full if drop_last or not rest else full + 1
    if not steps_per_epoch:
        raise DataError(
            f"{len(sequences)} sequences do not fill one global batch of {global_batch}, and"
            " dataloader_drop_last leaves out what does not.",
            "Use a smaller batch, more rows, or dataloader_drop_last: false.",
        )
    sequence_length = min(
        max_length, _round_up(max(_totals(sequences, examples.lengths)), _LENGTH_MULTIPLE)
    )
    rows_per_shard = global_batch // (accumulation * shards)
    return Batches(
        examples=examples,
        sequences=sequences,
        sequence_length=sequence_length,
        global_batch=global_batch,
        accumulation=accumulation,
        target_capacity=_target_capacity(
            _totals(sequences, examples.targets), rows_per_shard, sequence_length
        ),
        steps_per_epoch=steps_per_epoch,
        seed=seed,
        shuffle=shuffle,
    )


def _totals(sequences: Sequence[tuple[int, ...]], counts: np.ndarray) -> list[int]:
    """Return the sum of the counts in each sequence."""
    return [sum(int(counts[index]) for index in rows) for rows in sequences]


def _target_capacity(targets: list[int], rows: int, sequence_length: int) -> int:
    """Return how many targets `rows` sequences can hold, whichever they are.

    Shuffling can bring the richest sequences together in one shard, so these are the bound.
    """
    richest = sum(sorted(targets)[-rows:])
    return min(_round_up(richest, _CAPACITY_MULTIPLE), rows * sequence_length)


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
