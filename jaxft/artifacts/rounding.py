"""What rounding the merged weights to the dtype of their file loses of the adapter's update.

An update is small beside its weight, so that a step of bfloat16, 2**-8 of the weight, may be more
than the update itself. With W the base's weight, M the merged one in float32 and R what is written,
lost is |R - M| / |M - W|, in Frobenius norms: 0 where all of the update is in the file, 1 where
what is missing is as large as the update. M - W is the update as float32 has it beside W.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxft.artifacts import verify


class Rounding:
    """What was lost so far, tensor by tensor."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._dtypes = set[str]()
        self._lost: dict[str, float] = {}  # squared norms by tensor, as the updates
        self._updates: dict[str, float] = {}

    def add(self, name: str, base: np.ndarray, merged: np.ndarray, written: np.ndarray) -> None:
        """Note a tensor that was written; one without an update is no matter of an adapter.

        Args:
            name: Its name.
            base: As it is in the base.
            merged: With the update, in float32.
            written: What is in the file.
        """
        update = _squared(merged, base)
        if update:
            self._lost[name], self._updates[name] = _squared(written, merged), update
            self._dtypes.add(written.dtype.name)

    @property
    def dtype(self) -> str:
        """To what tensors with an update were rounded, such as "bfloat16 and float32"."""
        return " and ".join(sorted(self._dtypes))

    @property
    def has_updates(self) -> bool:
        """Whether there was an update to lose."""
        return bool(self._updates)

    @property
    def lost(self) -> float:
        """The share lost of all updates together."""
        return float((sum(self._lost.values()) / sum(self._updates.values())) ** 0.5)

    def worst(self) -> tuple[str, float]:
        """Return the tensor that lost the largest share of its update, and the share."""
        shares = {name: (self._lost[name] / each) ** 0.5 for name, each in self._updates.items()}
        name = max(shares, key=lambda each: shares[each])
        return name, shares[name]

    def report(self) -> dict[str, Any]:
        """Return what `verification.json` says of it; nothing where there was no update."""
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
        """Return the same as a line for people."""
        name, share = self.worst()
        if not share:
            return f"Merged in {self.dtype}: nothing of the adapter's update is lost by rounding."
        return (
            f"Rounding to {self.dtype} lost {self.lost:.2%} of the adapter's update; most in "
            f"{name}, {share:.2%}."
        )


def _squared(one: np.ndarray, other: np.ndarray) -> float:
    """Return the squared Frobenius norm of a difference."""
    difference = np.asarray(one, jnp.float32) - np.asarray(other, jnp.float32)
    return float(np.sum(np.square(difference), dtype=np.float64))
