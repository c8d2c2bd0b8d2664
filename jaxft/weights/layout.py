"""Between one tensor of a checkpoint and the leaves it fills: cut it, or join it again.

Pure functions of numpy arrays; which tensor and which leaves, `names` says.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.weights.names import Slot


def cut(tensor: np.ndarray, slot: Slot) -> np.ndarray:
    """Return the part of a tensor that belongs in a slot, still in the checkpoint's layout."""
    if slot.outputs is None:
        return tensor
    start, stop, groups = slot.outputs
    if slot.transposed:
        by_group = tensor.reshape(groups, -1, *tensor.shape[1:])
        return by_group[:, start:stop].reshape(-1, *tensor.shape[1:])
    by_group = tensor.reshape(*tensor.shape[:-1], groups, -1)
    return by_group[..., start:stop].reshape(*tensor.shape[:-1], -1)


def oriented(part: np.ndarray, slot: Slot) -> np.ndarray:
    """Return what `cut` returned in the layout of the leaf, or the other way about."""
    return part.T if slot.transposed else part


def fill(leaves: Mapping[str, np.ndarray], slots: tuple[Slot, ...], tensor: np.ndarray) -> None:
    """Write a tensor into its slots of leaves by path."""
    for slot in slots:
        leaf = leaves[slot.path]
        target = leaf if slot.index is None else leaf[slot.index]
        target[..., slice(*(slot.columns or (None,)))] = oriented(cut(tensor, slot), slot)


def join(leaves: Mapping[str, Any], slots: tuple[Slot, ...]) -> np.ndarray:
    """Return the tensor that fills `slots`, from leaves by path: the inverse of cutting it."""
    parts = []
    for slot in slots:
        leaf = leaves[slot.path]
        part = np.asarray(leaf if slot.index is None else leaf[slot.index])
        parts.append(part if slot.columns is None else part[..., slice(*slot.columns)])
    return fuse(parts, slots)


def fuse(parts: Sequence[np.ndarray], slots: tuple[Slot, ...]) -> np.ndarray:
    """Return the tensor made of `parts`, one for each slot, in the layout of the leaves."""
    if slots[0].outputs is None:
        return np.asarray(oriented(parts[0], slots[0]), order="C")  # a scalar stays one
    groups = slots[0].outputs.groups
    by_group = [part.reshape(*part.shape[:-1], groups, -1) for part in parts]
    whole = np.concatenate(by_group, axis=-1).reshape(*parts[0].shape[:-1], -1)
    return np.ascontiguousarray(oriented(whole, slots[0]))
