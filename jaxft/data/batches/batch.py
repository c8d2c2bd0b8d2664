"""Batches by their step number: the interface through which a run asks for its data.

`batches.batch(7)` is the global batch of step 7, as arrays; `batches.iterate(7, 3)` prepares the
batches of steps 7, 8 and 9 ahead in threads. The content of a batch is a pure function of the plan
and the step: earlier calls, the number of micro-batches and the number of processes do not change
it. So a run resumes by the number of its step, and no iterator is saved.

A sequence is one row of the arrays: it holds one example, or several packed ones. Two other files
decide the sequences of a step: `loader` plans them from the lengths of all examples, and `stream`
makes them while it reads rows without a known end.
"""

from __future__ import annotations

import abc
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Integer

from jaxft.data.examples.tokens import Example
from jaxft.data.rows.tokenized import IGNORED
from jaxft.errors import ConfigError

Batch = dict[str, np.ndarray]
"""One global batch: `a` micro-batches of `b` sequences of `t` tokens, all int32.

    input_ids     [a b t]  0 in padding
    segment_ids   [a b t]  1, 2, ... for each example packed in a sequence, 0 in padding
    positions     [a b t]  from 0 in each segment, 0 in padding
    labels        [a b t]  the next token where it is a target of the same segment, else IGNORED
    row_ids       [a b]    the number of the sequence within the global batch
"""

Packed = Sequence[Example]
"""The examples of one sequence, in order. A sequence of padding has none."""

_BATCHES_AHEAD = 4


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Batches(abc.ABC):
    """A plan of batches, read by step.

    Attributes:
        sequence_length: The largest length of a sequence, padding included; `t` is never more.
        global_batch: The number of sequences in one optimizer step: `a * b`.
        accumulation: The number of micro-batches in a global batch: `a`.
        target_capacity: The largest number of targets (supervised tokens) that one data shard of
            one micro-batch can hold.
        steps_per_epoch: The number of global batches in an epoch; None if the rows have no known
            end.
        num_sequences: The number of sequences in an epoch; None if the rows have no known end.
        fingerprint: A digest of the tokens and of every option that decides the sequences and their
            order. The size of the batch does not change it.
    """

    # The number of threads that prepare batches ahead.
    num_threads: ClassVar[int] = 2

    sequence_length: int
    global_batch: int
    accumulation: int
    target_capacity: int
    steps_per_epoch: int | None
    num_sequences: int | None
    fingerprint: str

    @property
    @abc.abstractmethod
    def fill(self) -> float | None:
        """The share of tokens that are not padding; None if it is not known beforehand."""

    @abc.abstractmethod
    def _sequences(
        self, step: int, row_ids: Integer[np.ndarray, " r"]
    ) -> tuple[Sequence[Packed], int]:
        """Return sequences of a step's global batch, and the length `t` of its arrays.

        Args:
            step: The step.
            row_ids: The numbers of the wanted sequences within the global batch. The length does
                not depend on them.
        """

    def batch(self, step: int, process: int = 0, num_processes: int = 1) -> Batch:
        """Return the global batch of a step, or one process's part of it.

        Args:
            step: The step, counted from 0 over all epochs.
            process: The number of the part.
            num_processes: The number of parts into which the sequences of each micro-batch are
                divided, in order.

        Raises:
            ConfigError: The micro-batches cannot be divided evenly.
        """
        row_ids = np.arange(self.global_batch, dtype=np.int32).reshape(self.accumulation, -1)
        num_own, rest = divmod(row_ids.shape[1], num_processes)
        if rest:
            raise ConfigError(
                f"A micro-batch of {row_ids.shape[1]} sequences cannot be divided evenly over"
                f" {num_processes} processes.",
                "Make train.per_device_train_batch_size times the devices a multiple of that.",
            )
        own = row_ids[:, process * num_own : (process + 1) * num_own]
        packed, length = self._sequences(step, own.ravel())
        arrays = assemble(packed, length)
        return {
            **{name: array.reshape(*own.shape, length) for name, array in arrays.items()},
            "row_ids": np.ascontiguousarray(own),
        }

    def iterate(
        self, start_step: int, num_steps: int, process: int = 0, num_processes: int = 1
    ) -> Feed:
        """Yield steps and their batches, prepared ahead in threads.

        Args:
            start_step: The first step; a resumed run gives a later one.
            num_steps: The number of steps to yield.
            process: See `batch`.
            num_processes: See `batch`.
        """
        import grain

        def numbered(step: int) -> tuple[int, Batch]:
            return step, self.batch(step, process, num_processes)

        steps = grain.MapDataset.range(start_step, start_step + num_steps)
        options = grain.ReadOptions(
            num_threads=self.num_threads, prefetch_buffer_size=_BATCHES_AHEAD
        )
        return Feed(iter(steps.map(numbered).to_iter_dataset(options)))


class Feed(Iterator[tuple[int, Batch]]):
    """An iterator over steps and their batches, which measures the time spent waiting for them.

    Attributes:
        waited_s: Seconds spent waiting for batches so far.
    """

    def __init__(self, pairs: Iterator[Any]) -> None:
        """Wrap an iterator; the clock starts when the first batch is requested."""
        self._pairs = pairs
        self._began: float | None = None
        self.waited_s = 0.0

    @property
    def total_s(self) -> float:
        """Seconds since the first batch was requested."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    def __next__(self) -> tuple[int, Batch]:
        """Return the next step and its batch."""
        asked = time.monotonic()
        self._began = asked if self._began is None else self._began
        try:
            step, batch = next(self._pairs)
        finally:
            self.waited_s += time.monotonic() - asked
        return step, batch


def assemble(packed: Sequence[Packed], length: int) -> Batch:
    """Return sequences as arrays [sequences, length]; the examples of each stand end to end."""
    shape = (len(packed), length)
    batch = {
        "input_ids": np.zeros(shape, np.int32),
        "segment_ids": np.zeros(shape, np.int32),
        "positions": np.zeros(shape, np.int32),
        "labels": np.full(shape, IGNORED, np.int32),
    }
    for row, examples in enumerate(packed):
        start = 0
        for segment, (ids, mask) in enumerate(examples, start=1):
            stop = start + len(ids)
            batch["input_ids"][row, start:stop] = ids
            batch["segment_ids"][row, start:stop] = segment
            batch["positions"][row, start:stop] = np.arange(len(ids))
            batch["labels"][row, start : stop - 1] = np.where(mask[1:], ids[1:], IGNORED)
            start = stop
    return batch


def rows_per_shard(global_batch: int, accumulation: int, shards: int) -> int:
    """Return the number of sequences of a micro-batch in each data shard.

    Raises:
        ConfigError: The global batch cannot be cut evenly.
    """
    rows, rest = divmod(global_batch, accumulation * shards)
    if rest:
        raise ConfigError(
            f"A global batch of {global_batch} sequences cannot be cut evenly into {accumulation}"
            f" micro-batches over {shards} data shards.",
            f"Make it a multiple of {accumulation * shards}.",
        )
    return rows
