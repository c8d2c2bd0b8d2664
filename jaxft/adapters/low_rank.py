"""The update that an adapter makes to one module, and what can be said of it in low rank.

Separate from `algebra`, which knows whole adapters and their files. The invariant: the product
B A is never formed at the module's full size where its rank is smaller, and everything that is
summed up is summed up in float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Update:
    """What an adapter adds to one module: ``scaling * B A`` to its weight [out, in].

    Attributes:
        a: [r, in], float32.
        b: [out, r], float32.
        scaling: Of the product, and of the bias.
        bias: [out], float32, added to the module's output; `None` without one.
    """

    a: np.ndarray
    b: np.ndarray
    scaling: float = 1.0
    bias: np.ndarray | None = None

    @property
    def rank(self) -> int:
        """The rank that it may have."""
        return self.a.shape[0]

    @property
    def dims(self) -> tuple[int, int]:
        """(in, out) of the module."""
        return self.a.shape[1], self.b.shape[0]

    @property
    def num_parameters(self) -> int:
        """The numbers in it."""
        return self.a.size + self.b.size + (0 if self.bias is None else self.bias.size)


def times(update: Update, factor: float) -> Update:
    """Return `factor` times an update, with the scaling that it has."""
    bias = None if update.bias is None else _times(update.bias, factor)
    return dataclasses.replace(update, b=_times(update.b, factor), bias=bias)


def total(terms: Sequence[tuple[Update, float]]) -> Update:
    """Return the sum of updates of one module, each times a weight, with a scaling of 1.

    It is exact: As and Bs are laid side by side, so ranks add up. Where they would be more than
    the module's smaller side, one of the factors is the unit matrix instead.
    """
    num_in, num_out = terms[0][0].dims
    b = np.concatenate([_times(each.b, weight * each.scaling) for each, weight in terms], axis=1)
    a = np.concatenate([each.a for each, _ in terms])
    if len(a) > min(num_in, num_out):
        product = (b.astype(np.float64) @ a).astype(np.float32)
        unit = np.eye(min(num_in, num_out), dtype=np.float32)
        a, b = (unit, product) if num_in <= num_out else (product, unit)
    biases = [
        _times(each.bias, weight * each.scaling) for each, weight in terms if each.bias is not None
    ]
    return Update(a, b, 1.0, np.stack(biases).sum(axis=0) if biases else None)


def padded(update: Update, rank: int) -> Update:
    """Return the same update at a larger rank, filled up with zeros, with a scaling of 1."""
    folded = dataclasses.replace(times(update, update.scaling), scaling=1.0)
    missing = rank - folded.rank
    a, b = np.pad(folded.a, ((0, missing), (0, 0))), np.pad(folded.b, ((0, 0), (0, missing)))
    return dataclasses.replace(folded, a=a, b=b)


def singular_values(update: Update) -> np.ndarray:
    """Return the singular values of ``scaling * B A``, the largest first; as many as its rank."""
    # B = Q R and A^T = P S with orthonormal columns in Q and P, so those of B A are R S^T's.
    r, s = (np.linalg.qr(each.astype(np.float64)).R for each in (update.b, update.a.T))
    return abs(update.scaling) * np.linalg.svd(r @ s.T, compute_uv=False)


def norm(update: Update) -> float:
    """Return the Frobenius norm of ``scaling * B A``."""
    return float(np.linalg.norm(singular_values(update)))


def inner(first: Update, second: Update) -> float:
    """Return the inner product of two updates of one module, as if they were vectors."""
    between_b = first.b.T.astype(np.float64) @ second.b
    between_a = first.a.astype(np.float64) @ second.a.T
    return float(first.scaling * second.scaling * np.sum(between_b * between_a))


def distance(first: Update, second: Update) -> float:
    """Return the Frobenius norm of the difference of two updates of one module."""
    return norm(total([(first, 1.0), (second, -1.0)]))


def effective_rank(values: np.ndarray) -> float:
    """Return how many directions an update with these singular values uses, from 1 to its rank.

    It is exp of the entropy of the values' shares, and 0 for an update of nothing.

    Source: Roy and Vetterli, "The effective rank: a measure of effective dimensionality", 2007.
    """
    if not values.any():
        return 0.0
    shares = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def _times(values: np.ndarray, factor: float) -> np.ndarray:
    """Return a product of float32 values, rounded once."""
    if factor == 1:
        return values
    return (values.astype(np.float64) * factor).astype(np.float32)
