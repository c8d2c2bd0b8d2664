"""The examples of several sources as one list, and in blocks for numpy.

With two sources of 1,000 examples, example 1,204 is example 204 of the second source. A block is
about 65,000 tokens of whole examples, end to end, which fit into the cache of a processor core.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from jaxft.data.examples.encode import Examples
from jaxft.data.examples.tokens import Example
from jaxft.data.rows.row import RowPlace

_BLOCK_TOKENS = 65_536


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleBlock:
    """Consecutive examples, end to end.

    Attributes:
        start: The number of the first example.
        ids: The tokens of the examples.
        mask: 1 where a token is supervised.
        lengths: The number of tokens in each example.
    """

    start: int
    ids: Int32[np.ndarray, " t"]
    mask: UInt8[np.ndarray, " t"]
    lengths: Int64[np.ndarray, " r"]


class Pool:
    """The examples of several sources, numbered source after source."""

    def __init__(self, parts: Sequence[Examples]) -> None:
        """Keep the sources, in order."""
        self._parts = parts
        self._stops = list(itertools.accumulate(len(part) for part in parts))
        empty = [np.zeros(0, np.int32)]
        self.lengths = np.concatenate([*empty, *(part.lengths for part in parts)])
        self.targets = np.concatenate([*empty, *(part.targets for part in parts)])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:
        part, own = self.locate(index)
        return self._parts[part][own]

    def place(self, index: int) -> RowPlace:
        """Return the place of the row that an example was made of."""
        part, own = self.locate(index)
        return self._parts[part].place(own)

    def locate(self, index: int) -> tuple[int, int]:
        """Return the number of an example's source, and the example's number in that source."""
        part = bisect.bisect_right(self._stops, index)
        return part, index - self._stops[part] + len(self._parts[part])

    def blocks(self) -> Iterator[ExampleBlock]:
        """Yield all examples in order, in blocks."""
        start, held, num_tokens = 0, list[Example](), 0
        for index in range(len(self)):
            held.append(self[index])
            num_tokens += len(held[-1].input_ids)
            if num_tokens >= _BLOCK_TOKENS or index == len(self) - 1:
                yield _block(start, held)
                start, held, num_tokens = index + 1, [], 0


def _block(start: int, held: Sequence[Example]) -> ExampleBlock:
    return ExampleBlock(
        start,
        np.concatenate([each.input_ids for each in held]),
        np.concatenate([each.loss_mask for each in held]),
        np.array([len(each.input_ids) for each in held], np.int64),
    )
