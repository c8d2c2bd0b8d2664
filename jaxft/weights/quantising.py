"""A leaf of the tree that is quantised while the tensors of a checkpoint are written into it.

The counterpart of `filling` for weights in fewer bits: a slice is quantised as it comes, on the
device, so that neither host nor device ever holds the leaf in its original width.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxft.models.quantized import Quantized, quantize
from jaxft.weights import gptq
from jaxft.weights.gptq import RoundingPlan

# From the path of a leaf and the slice of its stack to how it is rounded.
Plans = Callable[[str, int], RoundingPlan]
# Norms, biases, convolutions, embeddings and the head keep their dtype.
_QUANTISED = re.compile(r"groups/\d+/\d+/(attn/\w+|conv/[bcxo]|mlp/\w+)/kernel")


def is_quantised(path: str) -> bool:
    """Return whether the leaf at `path`, if it is frozen, is one that is quantised."""
    return _QUANTISED.fullmatch(path) is not None


class Quantising:
    """A stack of quantised matrices."""

    def __init__(
        self, sharding: NamedSharding, kind: str, plan_of: Callable[[int], RoundingPlan] | None
    ) -> None:
        """Begin with nothing.

        Args:
            sharding: That of the leaf; it may divide nothing.
            kind: As in `Quantized`.
            plan_of: How a slice is rounded; `None` rounds each weight to the nearest code.
        """
        self._mesh, self._kind, self._plan_of = sharding.mesh, kind, plan_of
        self._slices: dict[int, Quantized] = {}

    def write(self, part: np.ndarray, index: int | None) -> None:
        """Quantise one slice."""
        assert index is not None, "what is quantised lies in layers, and those are stacked"
        placed = NamedSharding(self._mesh, jax.sharding.PartitionSpec())
        weight = jax.device_put(np.asarray(part, np.float32), placed)
        if self._plan_of is None:
            made = quantize(weight, self._kind)
        else:
            plan = jax.device_put(self._plan_of(index), placed)
            made = gptq.rounded(weight, plan, self._kind)
        self._slices[index] = jax.block_until_ready(made)

    def finish(self) -> Quantized:
        """Stack the slices."""
        ordered: list[Any] = [self._slices[index] for index in sorted(self._slices)]
        self._slices = {}
        return jax.tree.map(lambda *slices: jnp.stack(slices), *ordered)
