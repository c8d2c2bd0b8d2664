"""Batches of examples whose lengths are all known: a plan of sequences, and their order.

`make_batches([examples], packing=True, ...)` plans an epoch once, from the lengths; `batch(step)`
then reads the few examples that it needs. Without weights an epoch has each example exactly once.
Examples of different sources never share a sequence.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, Integer

from jaxft.data.batches import batch as batches_
from jaxft.data.batches import packing as packing_
from jaxft.data.batches.batch import Batches, Packed
from jaxft.data.batches.order import Epochs
from jaxft.data.batches.packing import Bins
from jaxft.data.examples.encode import Examples
from jaxft.data.examples.tokens import Example
from jaxft.errors import DataError

_LENGTH_MULTIPLE = 8
_CAPACITY_MULTIPLE = 128

# A program is compiled for each length of batches, so there are few.
_MOST_LENGTHS = 4


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PlannedBatches(Batches):
    """Batches whose sequences are all planned beforehand.

    Attributes:
        sources: The examples of each source.
        sequences: The examples of each sequence, by number. Examples are numbered source after
            source.
        tokens: The number of tokens in each sequence.
        lengths: The lengths that arrays may have, ascending; a batch gets the smallest that fits.
        epochs: The order of the sequences in each epoch.
    """

    steps_per_epoch: int
    num_sequences: int
    sources: Sequence[Examples]
    sequences: Bins
    tokens: Int64[np.ndarray, " m"]
    lengths: Sequence[int]
    epochs: Epochs

    @functools.cached_property
    def fill(self) -> float:
        """The share of the first epoch's tokens that are not padding."""
        tokens = self.tokens[self.epochs.order(0)]
        batches = [
            tokens[start : start + self.global_batch]
            for start in range(0, len(tokens), self.global_batch)
        ]
        return tokens.sum() / sum(len(batch) * self._length(batch) for batch in batches)

    def _sequences(
        self, step: int, row_ids: Integer[np.ndarray, " r"]
    ) -> tuple[Sequence[Packed], int]:
        """Return sequences of a batch; the last batch of an epoch may be filled with padding."""
        epoch, index = divmod(step, self.steps_per_epoch)
        chosen = self.epochs.order(epoch)[index * self.global_batch :][: self.global_batch]
        packed = [
            [self._example(number) for number in self.sequences[int(chosen[row])].tolist()]
            if row < len(chosen)
            else []
            for row in row_ids
        ]
        return packed, self._length(self.tokens[chosen])

    def _length(self, tokens: Int64[np.ndarray, " m"]) -> int:
        """Return the length of a batch's arrays.

        Args:
            tokens: The number of tokens in each sequence of the batch.
        """
        return next(length for length in self.lengths if length >= tokens.max())

    def _example(self, number: int) -> Example:
        source = int(np.searchsorted(self._firsts, number, side="right")) - 1
        return self.sources[source][int(number - self._firsts[source])]

    @functools.cached_property
    def _firsts(self) -> Int64[np.ndarray, " s"]:
        """The number of each source's first example."""
        return np.cumsum([0, *(len(source) for source in self.sources[:-1])])


def make_batches(
    sources: Sequence[Examples],
    *,
    weights: Sequence[float] | None,
    max_length: int,
    packing: bool,
    group_by_length: bool,
    shuffle: bool,
    seed: int,
    global_batch: int,
    accumulation: int,
    shards: int,
    drop_last: bool,
) -> PlannedBatches:
    """Plan the batches of one or several sources.

    Arrays are as long as the longest sequence, rounded up to a multiple of 8, at most `max_length`.

    Args:
        sources: The examples of each source, none longer than `max_length`.
        weights: The share of each source in an epoch, relative to the others. The number of
            sequences in an epoch does not depend on the weights. None takes each example once an
            epoch.
        max_length: The largest number of tokens in a sequence.
        packing: Whether several examples of a source share a sequence; otherwise each has its own,
            in the order of the file.
        group_by_length: Whether a batch has sequences of similar length, and is padded only to the
            next of a few lengths.
        shuffle: Whether each epoch has its own order.
        seed: Decides the packing and the order of every epoch.
        global_batch: The number of sequences in one optimizer step.
        accumulation: The number of micro-batches in a global batch.
        shards: The number of parts into which the data axes of the mesh divide a micro-batch.
        drop_last: Whether the last sequences of an epoch are left out if they do not fill a batch;
            otherwise the rest of that batch is padding.

    Raises:
        ConfigError: The global batch cannot be cut evenly, or a source would give no sequence.
        DataError: With `drop_last`, an epoch would have no batch at all.
    """
    rows_per_shard = batches_.rows_per_shard(global_batch, accumulation, shards)
    parts = [
        packing_.pack(source.lengths, max_length, seed)
        if packing
        else packing_.singles(len(source))
        for source in sources
    ]
    sequences = packing_.joined(parts)
    tokens = sequences.totals(np.concatenate([source.lengths for source in sources]))
    longest = min(max_length, _round_up(int(tokens.max()), _LENGTH_MULTIPLE))
    epochs = Epochs(
        counts=[len(part) for part in parts],
        weights=weights,
        seed=seed,
        shuffle=shuffle,
        lengths=tokens if group_by_length else None,
        global_batch=global_batch,
    )
    targets = [part.totals(source.targets) for part, source in zip(parts, sources, strict=True)]
    options = [weights, max_length, packing, group_by_length, shuffle, seed, drop_last]
    return PlannedBatches(
        sequence_length=longest,
        global_batch=global_batch,
        accumulation=accumulation,
        target_capacity=_target_capacity(targets, epochs.quotas, rows_per_shard, longest),
        steps_per_epoch=_steps_per_epoch(len(epochs), global_batch, drop_last=drop_last),
        num_sequences=len(epochs),
        fingerprint=_fingerprint([source.fingerprint for source in sources], options),
        sources=sources,
        sequences=sequences,
        tokens=tokens,
        lengths=packing_.padded_lengths(tokens, longest, _LENGTH_MULTIPLE, _MOST_LENGTHS)
        if group_by_length
        else [longest],
        epochs=epochs,
    )


def _steps_per_epoch(num_sequences: int, global_batch: int, *, drop_last: bool) -> int:
    full, rest = divmod(num_sequences, global_batch)
    steps = full if drop_last or not rest else full + 1
    if not steps:
        raise DataError(
            f"{num_sequences} sequences do not fill one global batch of {global_batch}, and"
            " dataloader_drop_last leaves out what does not.",
            "Use a smaller batch, more rows, or dataloader_drop_last: false.",
        )
    return steps


def _target_capacity(
    targets: Sequence[Int64[np.ndarray, " _"]],
    quotas: Sequence[int],
    rows: int,
    sequence_length: int,
) -> int:
    """Return the largest number of targets that `rows` sequences of an epoch can hold.

    Shuffling can bring the sequences with the most targets together in one shard, so these are
    counted. With weights a source may give its sequences more than once.

    Args:
        targets: The number of targets in each sequence, by source.
        quotas: The number of sequences that each source gives to an epoch.
        rows: The number of sequences in a shard.
        sequence_length: The number of tokens in a sequence.
    """
    richest: list[np.ndarray] = []
    for own, quota in zip(targets, quotas, strict=True):
        # The number of passes over the source that an epoch can touch.
        num_passes = 1 if quota == len(own) else (quota + len(own) - 2) // len(own) + 1
        richest.append(np.repeat(np.sort(own)[-rows:], num_passes))
    most = int(np.sort(np.concatenate(richest))[-rows:].sum())
    return min(_round_up(most, _CAPACITY_MULTIPLE), rows * sequence_length)


def _fingerprint(digests: Sequence[str], options: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps([digests, options]).encode()).hexdigest()


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
