"""Rows of random tokens: padded on either side as users pad them, and as a step's batch.

The invariant: torch and jaxft are given the same tokens at the same positions, and what stands
in padding is random, so that whoever reads it is found out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxft.data.rows.tokenized import IGNORED

Side = Literal["left", "right"]

# Two chunks of queries and more, several windows, and lengths of no common factor. Where logits of
# a base model are compared, all texts have this shape: a model is compiled once for all tests.
PADDED = (53, 47, 31, 34)


class Text(NamedTuple):
    """A padded batch in transformers' form, int32 [b t] each."""

    input_ids: np.ndarray
    attention_mask: np.ndarray

    @property
    def positions(self) -> np.ndarray:
        """Count each row's own tokens from 0, as `generate` does for a padded batch."""
        counted = np.cumsum(self.attention_mask, axis=1) - 1
        return np.maximum(counted, 0).astype(np.int32)

    @property
    def is_token(self) -> np.ndarray:
        """Tell tokens from padding, bool [b t]."""
        return self.attention_mask.astype(bool)


def draw(lengths: Sequence[int], side: Side, vocab_size: int, seed: int) -> Text:
    """Draw rows of the given lengths and pad them on one side to the longest.

    Small ids are frequent and large ones rare, so that there is something to learn.
    """
    rng = np.random.default_rng(seed)
    width = max(lengths)
    ids = (vocab_size * rng.random((len(lengths), width)) ** 4).astype(np.int32)
    padding = rng.integers(0, vocab_size, ids.shape, dtype=np.int32)
    places = np.arange(width) if side == "right" else np.arange(width)[::-1]
    mask = (places[None, :] < np.asarray(lengths)[:, None]).astype(np.int32)
    return Text(np.where(mask == 1, ids, padding), mask)


def ragged_labels(text: Text, shares: Sequence[float], seed: int) -> np.ndarray:
    """Make a share of each row's tokens targets, at random; returns labels already shifted.

    ``labels[i]`` is token i + 1 where that is a target of the same row, else `IGNORED`.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.random(text.input_ids.shape) < np.asarray(shares)[:, None]
    predicted = chosen[:, 1:] & text.is_token[:, 1:] & text.is_token[:, :-1]
    labels = np.full(text.input_ids.shape, IGNORED, np.int32)
    labels[:, :-1] = np.where(predicted, text.input_ids[:, 1:], IGNORED)
    return labels


def batch_of(text: Text, labels: np.ndarray, accumulation: int) -> dict[str, np.ndarray]:
    """Return a step's batch [a b t]: the rows in order, `accumulation` micro-batches of them."""
    row_ids = np.arange(len(labels), dtype=np.int32)
    arrays = {
        "input_ids": text.input_ids,
        "segment_ids": text.attention_mask,
        "positions": text.positions,
        "labels": labels,
        "row_ids": row_ids,
    }
    return {
        name: array.reshape(accumulation, -1, *array.shape[1:]) for name, array in arrays.items()
    }
