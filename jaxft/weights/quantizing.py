"""A leaf of the tree that is quantized while tensors of a checkpoint are written into it.

The counterpart of `filling` for quantized weights: each slice is quantized on the device as soon
as it is read, so neither host nor device ever holds the whole leaf in its original dtype.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.leaves.address import Address
from jaxft.models.quantized import Quantized, quantize
from jaxft.weights import gptq
from jaxft.weights.formats import regions
from jaxft.weights.formats.regions import Region
from jaxft.weights.gptq import RoundingPlan

# Returns the plan for a slice of a stacked leaf, from the leaf's path and the slice's index.
Plans = Callable[[str, int], RoundingPlan]


def is_quantized(path: str) -> bool:
    """Return whether quantization applies to the leaf at `path` when it is frozen.

    Norms, biases, convolutions, embeddings and the head keep their dtype.
    """
    leaf = Address.parse(path)
    return bool(leaf.block) and leaf.part == "kernel" and leaf.module != "conv/taps"


class Quantizing:
    """A stack of quantized matrices."""

    def __init__(self, leaf: Quantized, plan_of: Callable[[int], RoundingPlan] | None) -> None:
        """Begin without slices.

        Args:
            leaf: The leaf without values, from `quantized.abstract`; every device has all of it.
            plan_of: Returns the plan for a slice; `None` rounds each weight to the nearest code.
        """
        self._leaf, self._plan_of = leaf, plan_of
        self._slices: dict[int, Quantized] = {}

    def needed(self, index: tuple[int, ...]) -> Region:
        """Return the region of a slice that `write` takes: all of it."""
        return regions.whole(self._leaf.shape[len(index) :])

    def write(self, part: np.ndarray, index: tuple[int, ...]) -> None:
        """Quantize one layer's slice."""
        (layer,) = index
        placed, kind = self._leaf.codes.sharding, self._leaf.kind
        weight = jax.device_put(np.asarray(part, np.float32), placed)
        if self._plan_of is None:
            made = quantize(weight, kind)
        else:
            plan = jax.device_put(self._plan_of(layer), placed)
            made = gptq.rounded(weight, plan, kind)
        self._slices[layer] = jax.block_until_ready(made)

    def finish(self) -> Quantized:
        """Return the stack of the slices."""
        ordered: list[Any] = [self._slices[index] for index in sorted(self._slices)]
        self._slices = {}
        return jax.tree.map(lambda *slices: jnp.stack(slices), *ordered)
