"""Batches by their step number: the interface through which a run asks for its data.

`batches.batch(7)` is the global batch of step 7, as arrays; `batches.iterate(7, 3)` prepares those
of steps 7, 8 and 9 ahead in threads. What a batch holds is a pure function of the plan and the
step: neither what was asked before, nor how a batch is cut into micro-batches or divided over
processes, changes anything in it. So a run resumes by a number, and no iterator is saved.

Which sequences a step has is decided elsewhere: `loader` plans it from the lengths of all rows,
`stream` finds it while it reads rows without a known end.
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
    rows          [a b]    the sequence's number within the global batch
"""

Packed = Sequence[Example]
"""The examples that share a sequence, in order; none in a sequence of nothing but padding."""

_BATCHES_AHEAD = 4


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Batches(abc.ABC):
    """A plan of batches, read by step.

    Attributes:
        sequence_length: The most tokens in a sequence, padding included; `t` is never more.
        global_batch: Sequences that one optimizer step sees; `a * b`.
        accumulation: Micro-batches in a global batch; `a`.
        target_capacity: The most targets that one data shard of one micro-batch can hold.
        steps_per_epoch: Global batches in an epoch; None where the rows have no known end.
        num_sequences: Sequences in an epoch; None where the rows have no known end.
        fingerprint: A digest of the tokens and of every option that decides which of them are in
            which sequence, and in what order. The size of the batch is not part of it.
    """

    # Threads that prepare batches ahead.
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
        """The share of tokens that are not padding; None where that is not known beforehand."""

    @abc.abstractmethod
    def _sequences(
        self, step: int, rows: Integer[np.ndarray, " r"]
    ) -> tuple[Sequence[Packed], int]:
        """Return rows of a step's global batch, and how long its arrays are.

        Args:
            step: The step.
            rows: Which of the global batch's sequences are wanted. The length of the arrays is that
                of the whole global batch, whichever these are.
        """

    def batch(self, step: int, process: int = 0, num_processes: int = 1) -> Batch:
        """Return the global batch of a step, counted from 0 over all epochs, or a part of it.

        Args:
            step: The step.
            process: Which part.
            num_processes: Parts that each micro-batch is cut into, from its first row to its last.
        """
        rows = np.arange(self.global_batch, dtype=np.int32).reshape(self.accumulation, -1)
        num_own, rest = divmod(rows.shape[1], num_processes)
        if rest:
            raise ConfigError(
                f"A micro-batch of {rows.shape[1]} sequences cannot be divided evenly over"
                f" {num_processes} processes.",
                "Make train.per_device_train_batch_size times the devices a multiple of that.",
            )
        own = rows[:, process * num_own : (process + 1) * num_own]
        packed, length = self._sequences(step, own.ravel())
        arrays = assemble(packed, length)
        return {
            **{name: array.reshape(*own.shape, length) for name, array in arrays.items()},
            "rows": np.ascontiguousarray(own),
        }

    def iterate(
        self, start_step: int, num_steps: int, process: int = 0, num_processes: int = 1
    ) -> Feed:
        """Yield steps and their batches, prepared ahead in threads.

        Args:
            start_step: The first step; to resume is to start at another one.
            num_steps: How many steps to yield.
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
    """Steps and their batches, and how long whoever asked had to wait for them.

    Attributes:
        waited_s: Seconds spent waiting for batches so far.
    """

    def __init__(self, pairs: Iterator[Any]) -> None:
        """Yield what an iterator yields; the clock starts with the first that is asked for."""
        self._pairs = pairs
        self._began: float | None = None
        self.waited_s = 0.0

    @property
    def total_s(self) -> float:
        """Seconds since the first batch was asked for."""
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
    """Return sequences as arrays [sequences, length], each with its examples end to end."""
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
    """Return how many sequences of a micro-batch are in each data shard.

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
