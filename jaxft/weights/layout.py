"""Between one tensor of a checkpoint and the leaves it fills: cut it, or join it again.

Pure functions of numpy arrays; which tensor and which leaves, `names` says.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxft.weights.names import Slot


def cut(tensor: np.ndarray, slot: Slot) -> np.ndarray:
    """Return the part of a tensor that belongs in a slot, still in the checkpoint's layout."""
    if slot.outputs is None:
        return tensor
    return tensor[slot.outputs] if slot.transposed else tensor[..., slot.outputs]


def oriented(part: np.ndarray, slot: Slot) -> np.ndarray:
    """Return what `cut` returned in the layout of the leaf, or the other way about."""
    return part.T if slot.transposed else part


def join(leaves: Mapping[str, Any], slots: tuple[Slot, ...]) -> np.ndarray:
    """Return the tensor that fills `slots`, from leaves by path: the inverse of cutting it."""
    parts = []
    for slot in slots:
        leaf = leaves[slot.path]
        part = np.asarray(leaf if slot.index is None else leaf[slot.index])
        parts.append(oriented(part, slot))
    if len(parts) == 1:
        return np.ascontiguousarray(parts[0])
    return np.concatenate(parts, axis=0 if slots[0].transposed else -1)
