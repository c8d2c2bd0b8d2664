"""The order of the sequences in an epoch: a pure function of the seed and the epoch.

For two sources with 3 and 2 sequences, epoch 0 is an array such as `[4, 1, 3, 0, 2]`; global
batches are cut from it in order. Without weights an epoch is a permutation of all sequences. With
weights it has the same number of sequences, and each source gives its share of them. A source is
read pass after shuffled pass, and in the next epoch from where the last one ended. So none of its
sequences is used again before all of them were used.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Integer

from jaxft.errors import ConfigError

Order = Integer[np.ndarray, " n"]

# The uses of permutations, for `shuffled`. The passes over source k have the use 1 + k.
EPOCHS = 0
BLOCKS = -1
GROUPS = -2

# Sequences are sorted by length within this many global batches. They are enough for batches of
# nearly equal lengths, and few enough that each epoch makes other batches.
_BATCHES_SORTED = 64


def shuffled(count: int, seed: int, stream: int, use: int = EPOCHS) -> Order:
    """Return a permutation that is a pure function of its arguments, on every platform.

    The definition of the Philox counter generator fixes its raw numbers, and numpy keeps to it;
    the methods that draw from them (`Generator.permutation`) may change between versions.

    Args:
        count: The number of things to permute.
        seed: The run's seed.
        stream: Distinguishes permutations of one seed and use, such as the epoch.
        use: The use of the permutation, such as `EPOCHS`.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    key = np.array([seed % 2**64, stream % 2**64], np.uint64)
    # The generator counts up from here, and never reaches the last of the four words.
    counter = np.array([0, 0, 0, use % 2**64], np.uint64)
    raw = np.random.Philox(counter=counter, key=key).random_raw(count)
    return np.argsort(raw, kind="stable")


def quotas(total: int, weights: Sequence[float]) -> list[int]:
    """Divide a number into whole parts in proportion to weights.

    Each part is rounded down. The rest goes, one by one, to the parts with the largest remainders.
    """
    exact = [Fraction(weight) for weight in weights]
    shares = [total * weight / sum(exact) for weight in exact]
    parts = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(parts)), key=lambda k: parts[k] - shares[k])
    for k in by_remainder[: total - sum(parts)]:
        parts[k] += 1
    return parts


def passes(count: int, start: int, number: int, seed: int, use: int, *, shuffle: bool) -> Order:
    """Return a part of an endless stream that consists of passes over `count` things.

    Args:
        count: The number of things.
        start: Where the part begins in the stream.
        number: The length of the part.
        seed: The run's seed.
        use: See `shuffled`.
        shuffle: Whether each pass has its own order.
    """
    first, last = start // count, (start + number - 1) // count
    whole = [
        shuffled(count, seed, each, use) if shuffle else np.arange(count)
        for each in range(first, last + 1)
    ]
    return np.concatenate([np.empty(0, np.int64), *whole])[start - first * count :][:number]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Epochs:
    """The order of the sequences in each epoch.

    Attributes:
        counts: The number of sequences of each source. They are numbered source after source.
        weights: The weights of the sources; None takes each sequence once an epoch.
        seed: Decides the order of every epoch.
        shuffle: Whether epochs are shuffled; otherwise the sequences stay in order, and weighted
            sources take turns.
        lengths: The number of tokens in each sequence, to make batches of similar lengths; None
            does not group.
        global_batch: The number of sequences in a batch.
    """

    counts: Sequence[int]
    weights: Sequence[float] | None
    seed: int
    shuffle: bool
    lengths: Order | None
    global_batch: int

    def __post_init__(self) -> None:
        """Raise if a source has too small a weight for a single sequence."""
        for number, (quota, weight) in enumerate(
            zip(self.quotas, self.weights or self.counts, strict=True), start=1
        ):
            if quota == 0:
                raise ConfigError(
                    f"Source {number} of data.train has the weight {weight:g}, too little for even"
                    f" one of the {len(self):,} sequences of an epoch.",
                    "Raise its weight, or leave the source out.",
                )

    def __len__(self) -> int:
        return sum(self.counts)

    @functools.cached_property
    def quotas(self) -> list[int]:
        """The number of sequences that each source gives to an epoch."""
        return list(self.counts) if self.weights is None else quotas(len(self), self.weights)

    def order(self, epoch: int) -> Order:
        """Return the sequences of an epoch, in order."""
        return self._kept(epoch)

    @functools.cached_property
    def _kept(self) -> Callable[[int], Order]:
        """A cache of the last two orders, because many steps need the same one."""
        return functools.lru_cache(maxsize=2)(self._order)

    def _order(self, epoch: int) -> Order:
        order = np.arange(len(self)) if self.weights is None else self._mixed(epoch)
        if self.shuffle:
            order = order[shuffled(len(self), self.seed, stream=epoch)]
        return order if self.lengths is None else self._grouped(order, self.lengths, epoch)

    def _mixed(self, epoch: int) -> Order:
        """Return the sequences that weighted sources give to an epoch, in even turns."""
        first = np.cumsum([0, *self.counts])
        own = [
            first[k]
            + passes(count, epoch * quota, quota, self.seed, use=1 + k, shuffle=self.shuffle)
            for k, (count, quota) in enumerate(zip(self.counts, self.quotas, strict=True))
        ]
        turns = np.concatenate([(np.arange(quota) + 0.5) / quota for quota in self.quotas])
        return np.concatenate(own)[np.argsort(turns, kind="stable")]

    def _grouped(self, order: Order, lengths: Order, epoch: int) -> Order:
        """Bring sequences of similar length together into batches, and shuffle the batches.

        Sequences that do not fill a batch stay at the end, so that these are not always the
        shortest ones.
        """
        num_full = len(order) // self.global_batch * self.global_batch
        size = _BATCHES_SORTED * self.global_batch
        windows = [order[:num_full][start : start + size] for start in range(0, num_full, size)]
        by_length = [part[np.argsort(-lengths[part], kind="stable")] for part in windows]
        batches = np.concatenate([np.empty(0, np.int64), *by_length]).reshape(-1, self.global_batch)
        if self.shuffle:
            batches = batches[shuffled(len(batches), self.seed, epoch, GROUPS)]
        return np.concatenate([batches.ravel(), order[num_full:]])
