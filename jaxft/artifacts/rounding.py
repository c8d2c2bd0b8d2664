"""Measures how much of an adapter's update is lost when merged weights are rounded for a file.

An update is small compared with its weight, so that one step of bfloat16, 2**-8 of the weight, may
be larger than the update itself. Let W be the base's weight, M the merged weight in float32 and R
the written one. The lost share is |R - M| / |M - W| in Frobenius norms: 0 if the file has the whole
update, 1 if the error is as large as the update. M - W is the update after the sum was rounded to
float32.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxft.artifacts import verify


class Rounding:
    """The losses of the tensors that were written so far."""

    def __init__(self) -> None:
        """Begin without tensors."""
        self._dtypes = set[str]()
        self._lost: dict[str, float] = {}  # squared norms by tensor, like those of the updates
        self._updates: dict[str, float] = {}

    def add(self, name: str, base: np.ndarray, merged: np.ndarray, written: np.ndarray) -> None:
        """Measure a tensor that was written; one whose update is zero is ignored.

        Args:
            name: The name of the tensor.
            base: The tensor in the base model.
            merged: The tensor with the update, in float32.
            written: The tensor in the file.
        """
        update = _squared(merged, base)
        if update:
            self._lost[name], self._updates[name] = _squared(written, merged), update
            self._dtypes.add(written.dtype.name)

    @property
    def dtype(self) -> str:
        """The dtypes of the written tensors that have updates, such as "bfloat16 and float32"."""
        return " and ".join(sorted(self._dtypes))

    @property
    def has_updates(self) -> bool:
        """Whether any tensor has an update."""
        return bool(self._updates)

    @property
    def lost(self) -> float:
        """The lost share of all updates together, from 0."""
        return float((sum(self._lost.values()) / sum(self._updates.values())) ** 0.5)

    def worst(self) -> tuple[str, float]:
        """Return the tensor that lost the largest share of its update, by name, and the share."""
        shares = {name: (self._lost[name] / each) ** 0.5 for name, each in self._updates.items()}
        name = max(shares, key=lambda each: shares[each])
        return name, shares[name]

    def report(self) -> dict[str, Any]:
        """Return the entry for `verification.json`; empty if there was no update."""
        if not self.has_updates:
            return {}
        name, share = self.worst()
        return {
            "rounding": {
                "dtype": self.dtype,
                "lost_of_update": verify.rounded(self.lost),
                "worst_tensor": name,
                "worst_lost_of_update": verify.rounded(share),
            }
        }

    def in_words(self) -> str:
        """Return the result as one sentence."""
        name, share = self.worst()
        if not share:
            return f"Merged in {self.dtype}: nothing of the adapter's update is lost by rounding."
        return (
            f"Rounding to {self.dtype} lost {self.lost:.2%} of the adapter's update; most in "
            f"{name}, {share:.2%}."
        )


def _squared(one: np.ndarray, other: np.ndarray) -> float:
    """Return the squared Frobenius norm of the difference of two arrays."""
    difference = np.asarray(one, jnp.float32) - np.asarray(other, jnp.float32)
    return float(np.sum(np.square(difference), dtype=np.float64))
