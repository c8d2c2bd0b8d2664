"""Maps each tensor name in PEFT's file to its place in the tree of leaves.

`peft_format` reads and writes the file. A leaf may be wider than the rank of an adapter in it; the
zeros beyond the rank are not written.

Source: `peft/utils/save_and_load.py: get_peft_model_state_dict` (key names).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxft.adapters.tables import PREFIX
from jaxft.leaves.parts import OF_ADAPTER, PARTS, ROWS, Part
from jaxft.models.families.family import Family
from jaxft.models.network import Network
from jaxft.weights import layout, names


class Filed(NamedTuple):
    """The place in the tree of one tensor of PEFT's file.

    Attributes:
        slots: The parts of leaves that the tensor fills.
        rank: The rank of A or B, which have it as a dimension; `None` for all other tensors. The
            leaves may be wider, with zeros beyond the rank that are not in the file.
    """

    slots: tuple[names.Slot, ...]
    rank: int | None = None

    @property
    def _axis(self) -> int:
        return int(self.slots[0].transposed)  # A is [rank, in] in the file, and B [out, rank]

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Return the shape of the tensor in the file, given the shapes of the leaves."""
        shape = list(names.expected_shape(self.slots, shapes))
        if self.rank is not None:
            shape[self._axis] = self.rank
        return tuple(shape)

    def read(self, leaves: Mapping[str, Any]) -> np.ndarray:
        """Return the tensor as the file has it, float32."""
        tensor = layout.join(leaves, self.slots).astype(np.float32)
        return tensor if self.rank is None else tensor.take(range(self.rank), self._axis)

    def write(self, leaves: Mapping[str, np.ndarray], tensor: np.ndarray) -> None:
        """Write a tensor of the file into leaves that are zeros."""
        if self.rank is not None:
            shapes = {path: leaf.shape for path, leaf in leaves.items()}
            whole = np.zeros(names.expected_shape(self.slots, shapes), tensor.dtype)
            whole[tuple(map(slice, tensor.shape))] = tensor
            tensor = whole
        layout.fill(leaves, self.slots, tensor)


def places(family: Family, network: Network) -> dict[str, Filed]:
    """Return the place of each tensor that PEFT's file has for the trained parts of a network."""
    shapes = names.leaf_shapes(network)
    where = network.places()
    found: dict[str, Filed] = {}
    adapted = set()
    for module in names.adaptable_modules(family, network.spec):
        place = where[module.layer]
        adapter = place.adapters.get(module.path)
        rank = None if adapter is None else adapter.width
        for part in (*(() if adapter is None else OF_ADAPTER), ROWS):
            path = f"{place.prefix}{module.path}/{part.name}"
            name = part.filed_of_table if module.is_table else part.filed
            if name is not None and path in shapes:
                found[f"{PREFIX}{module.name}.{name}"] = Filed(
                    _slots(part, module, path, place.slice_index),
                    rank if "rank" in part.axes else None,
                )
        if f"{PREFIX}{module.name}.{PARTS['lora_a'].filed}" in found:
            adapted.add(module.name)
    trained, embed = network.trained_leaves(), names.embedding_name(family)
    head = f"{PREFIX}{family.head_name}."
    if network.ties_adapters:
        adapted.add(family.head_name)
        # The embedding's B is the head's A, and its A is the head's B.
        for part, path in ((PARTS["lora_a"], "embed/lora_b"), (PARTS["lora_b"], "embed/lora_a")):
            slot = names.Slot(path, (), part.is_filed_transposed, None, None)
            found[f"{head}{part.filed}"] = Filed((slot,))
    if "embed/kernel" in trained and not network.has_own_head:
        found[f"{head}weight"] = Filed(names.own_tensors(family, network)[embed])
    for name, slots in names.own_tensors(family, network).items():
        if slots[0].path in trained:
            stem, _, kind = name.rpartition(".")
            # PEFT wraps a module that it adapts, and calls the original module `base_layer`.
            wrapped = ".base_layer" if stem in adapted else ""
            found[f"{PREFIX}{stem}{wrapped}.{kind}"] = Filed(slots)
    return found


def _slots(
    part: Part, module: names.Module, path: str, index: names.Index
) -> tuple[names.Slot, ...]:
    """Return the slots of a part's tensor: several if Hugging Face has its module fused."""
    if part.axes[-1] == "out":
        return module.slots(path, index, transposed=part.is_filed_transposed)
    return (names.Slot(path, index, part.is_filed_transposed, None, None),)
