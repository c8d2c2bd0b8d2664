"""The low-rank update that an adapter makes to one module: its sums, its norm, its singular values.

`algebra` handles whole adapters and their files. The invariants: the product B A is never formed at
the module's full size if its rank is smaller, and all sums are computed in float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Update:
    """The update of one module: an adapter adds ``scaling * B A`` to its weight [out, in].

    Attributes:
        a: The matrix A [r, in], float32.
        b: The matrix B [out, r], float32.
        scaling: The factor of the product B A and of the bias.
        bias: The bias [out] that is added to the module's output, float32; `None` for no bias.
    """

    a: np.ndarray
    b: np.ndarray
    scaling: float = 1.0
    bias: np.ndarray | None = None

    @property
    def rank(self) -> int:
        """The number of rows of A, which is the largest rank that the update can have."""
        return self.a.shape[0]

    @property
    def dims(self) -> tuple[int, int]:
        """The size of the module, (in, out)."""
        return self.a.shape[1], self.b.shape[0]

    @property
    def num_parameters(self) -> int:
        """The number of values in A, B and the bias."""
        return self.a.size + self.b.size + (0 if self.bias is None else self.bias.size)


def times(update: Update, factor: float) -> Update:
    """Return `factor` times an update; the scaling stays, and B and the bias are multiplied."""
    bias = None if update.bias is None else _times(update.bias, factor)
    return dataclasses.replace(update, b=_times(update.b, factor), bias=bias)


def total(terms: Sequence[tuple[Update, float]]) -> Update:
    """Return the weighted sum of updates of one module, with a scaling of 1.

    The sum is exact: all As and all Bs are concatenated, so that the ranks add up. If that is more
    than the module's smaller side, one factor is an identity matrix and the other the product.
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
    """Return the same update with A and B padded with zeros to a rank, and a scaling of 1."""
    folded = dataclasses.replace(times(update, update.scaling), scaling=1.0)
    missing = rank - folded.rank
    a, b = np.pad(folded.a, ((0, missing), (0, 0))), np.pad(folded.b, ((0, 0), (0, missing)))
    return dataclasses.replace(folded, a=a, b=b)


def singular_values(update: Update) -> np.ndarray:
    """Return the singular values of ``scaling * B A``, one for each rank, in descending order."""
    # B = Q R and A^T = P S with orthonormal columns in Q and P, so B A and R S^T have the same
    # singular values.
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

    This is the exponential of the entropy of the values' shares; it is 0 for an update of zero.

    Source: Roy and Vetterli, "The effective rank: a measure of effective dimensionality", 2007.
    """
    if not values.any():
        return 0.0
    shares = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def _times(values: np.ndarray, factor: float) -> np.ndarray:
    """Return float32 values times a factor, rounded once to float32."""
    if factor == 1:
        return values
    return (values.astype(np.float64) * factor).astype(np.float32)
