"""Cut a tensor of a checkpoint into the leaves that it fills, and join them again.

Pure functions of numpy arrays; `names` says which tensor fills which leaves.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.weights.formats.regions import Region
from jaxft.weights.names import Index, Slot


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


def sources(slot: Slot, shape: Sequence[int], region: Region) -> list[Region]:
    """Return the regions of a tensor that make up a region of a slot.

    Rows 0 to 2 of a kernel [in, out] are columns 0 to 2 of a tensor [out, in]. If the outputs of a
    fused tensor are in groups, there is one region for each group.

    Args:
        slot: The slot.
        shape: The shape of the tensor.
        region: The region of the leaf, or of the slot's slice of a stacked leaf, in the leaf's
            layout. Its columns are columns of the slot.

    Returns:
        Regions in the tensor's layout, to be joined along its outputs.
    """
    if slot.outputs is None:
        return [_turned(_from_columns(slot, region), slot)]
    *others, wanted = _from_columns(slot, region)
    start, stop, groups = slot.outputs
    width, period = stop - start, shape[0 if slot.transposed else -1] // groups
    outputs = []
    for group in range(wanted.start // width, -(-wanted.stop // width)):
        first, shift = group * width, group * (period - width) + start
        outputs.append(
            slice(max(wanted.start, first) + shift, min(wanted.stop, first + width) + shift)
        )
    return [_turned((*others, each), slot) for each in outputs]


def read(
    read_region: Callable[[Region], np.ndarray], slot: Slot, shape: Sequence[int], region: Region
) -> np.ndarray:
    """Read a region of a slot from the tensor, and return it in the leaf's layout.

    Args:
        read_region: Reads a region of the tensor.
        slot: The slot.
        shape: The shape of the tensor.
        region: The region of the leaf; `sources` explains it.
    """
    parts = [read_region(each) for each in sources(slot, shape, region)]
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts, 0 if slot.transposed else -1)
    return oriented(joined, slot)


def _from_columns(slot: Slot, region: Region) -> Region:
    """Return a region of a leaf with its columns counted from the first one of the slot."""
    if slot.columns is None:
        return region
    (*others, columns), (first, _) = region, slot.columns
    return (*others, slice(columns.start - first, columns.stop - first))


def _turned(region: Region, slot: Slot) -> Region:
    """Return a region in the checkpoint's layout from one in the leaf's layout."""
    return region[::-1] if slot.transposed else region


def oriented(part: np.ndarray, slot: Slot) -> np.ndarray:
    """Return a part of a tensor in the leaf's layout, or a part of a leaf in the tensor's."""
    return part.T if slot.transposed else part


def slice_of(leaf: Any, index: Index) -> Any:
    """Return a slice of a stacked leaf; for a NumPy array, it is a view."""
    return leaf[(*index, ...)]


def fill(leaves: Mapping[str, np.ndarray], slots: tuple[Slot, ...], tensor: np.ndarray) -> None:
    """Write a tensor into its slots; `leaves` are by path."""
    for slot in slots:
        target = slice_of(leaves[slot.path], slot.index)
        target[..., slice(*(slot.columns or (None,)))] = oriented(cut(tensor, slot), slot)


def join(leaves: Mapping[str, Any], slots: tuple[Slot, ...]) -> np.ndarray:
    """Return the tensor that fills `slots` from leaves by path, the inverse of `fill`."""
    parts = []
    for slot in slots:
        part = np.asarray(slice_of(leaves[slot.path], slot.index))
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
