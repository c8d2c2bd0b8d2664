"""Where the tensors of PEFT's file are in the tree, by the names that PEFT has for them.

Separate from `peft_format`, which reads and writes the file. A leaf may be wider than the rank of
an adapter in it: the zeros beyond the rank are in no file.

Source: `peft/utils/save_and_load.py: get_peft_model_state_dict` (key names).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxft.adapters.tables import PREFIX
from jaxft.models.families.family import Family
from jaxft.models.network import Network
from jaxft.weights import layout, names

ROWS = "token_adapter.trainable_tokens_delta"  # whole rows, whatever the name says


class Filed(NamedTuple):
    """Where a tensor of PEFT's file is in the tree.

    Attributes:
        slots: What it fills.
        rank: Of a tensor that has the rank as a dimension, A or B: the leaves may be wider, with
            zeros beyond it, which are in no file. `None` for all others.
    """

    slots: tuple[names.Slot, ...]
    rank: int | None = None

    @property
    def _axis(self) -> int:
        return int(self.slots[0].transposed)  # A is [rank, in] in the file, and B [out, rank]

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Return the shape of the tensor, from those of the leaves."""
        shape = list(names.expected_shape(self.slots, shapes))
        if self.rank is not None:
            shape[self._axis] = self.rank
        return tuple(shape)

    def read(self, leaves: Mapping[str, Any]) -> np.ndarray:
        """Return the tensor, float32."""
        tensor = layout.join(leaves, self.slots).astype(np.float32)
        return tensor if self.rank is None else tensor.take(range(self.rank), self._axis)

    def write(self, leaves: Mapping[str, np.ndarray], tensor: np.ndarray) -> None:
        """Write the tensor into leaves of zeros."""
        if self.rank is not None:
            shapes = {path: leaf.shape for path, leaf in leaves.items()}
            whole = np.zeros(names.expected_shape(self.slots, shapes), tensor.dtype)
            whole[tuple(map(slice, tensor.shape))] = tensor
            tensor = whole
        layout.fill(leaves, self.slots, tensor)


def places(family: Family, network: Network) -> dict[str, Filed]:
    """Return the place of every tensor that PEFT's file has for what the network trains."""
    shapes = names.leaf_shapes(network)
    where = network.places()
    found: dict[str, Filed] = {}
    adapted = set()
    for module in names.adaptable_modules(family, network.spec):
        place = where[module.layer]
        prefix, index, adapters = place.prefix, place.slice_index, place.adapters
        adapter = adapters.get(module.path)
        stem, leaf = f"{PREFIX}{module.name}", f"{prefix}{module.path}/lora_"
        if module.is_table:
            rank = None if adapter is None else adapter.width
            found |= _places_of_table(f"{stem}.", module.path, shapes, rank)
        elif adapter is not None and f"{leaf}a" in shapes:
            adapted.add(module.name)
            found[f"{stem}.lora_A.weight"] = _one(f"{leaf}a", index, adapter.width)
            found[f"{stem}.lora_B.weight"] = Filed(
                module.slots(f"{leaf}b", index, transposed=True), adapter.width
            )
            if adapter.bias:
                bias = module.slots(f"{leaf}bias", index, transposed=False)
                found[f"{stem}.lora_B.bias"] = Filed(bias)
            if adapter.is_dora:
                magnitude = module.slots(f"{leaf}magnitude", index, transposed=False)
                found[f"{stem}.lora_magnitude_vector"] = Filed(magnitude)
    trained, embed = network.trained_leaves(), names.embedding_name(family)
    head = f"{PREFIX}{family.head_name}."
    if network.ties_adapters:
        adapted.add(family.head_name)
        found |= {
            f"{head}lora_A.weight": _one("embed/lora_b", (), None),
            f"{head}lora_B.weight": _one("embed/lora_a", (), None, transposed=True),
        }
    if "head/rows" in shapes:
        found[f"{head}{ROWS}"] = _one("head/rows", (), None)
    if "embed/kernel" in trained and not network.has_own_head:
        found[f"{head}weight"] = Filed(names.own_tensors(family, network)[embed])
    for name, slots in names.own_tensors(family, network).items():
        if slots[0].path in trained:
            stem, _, kind = name.rpartition(".")
            # PEFT wraps a module that it adapts, and calls what was there its base layer.
            wrapped = ".base_layer" if stem in adapted else ""
            found[f"{PREFIX}{stem}{wrapped}.{kind}"] = Filed(slots)
    return found


def _one(path: str, index: names.Index, rank: int | None, *, transposed: bool = False) -> Filed:
    """Return the place of a tensor that is one slot."""
    return Filed((names.Slot(path, index, transposed, None, None),), rank)


def _places_of_table(
    stem: str, path: str, shapes: Mapping[str, tuple[int, ...]], rank: int | None
) -> dict[str, Filed]:
    """Return the places of what is trained of a table, whose parameters PEFT names otherwise."""
    leaves = {
        "lora_embedding_A": _one(f"{path}/lora_a", (), rank),
        "lora_embedding_B": _one(f"{path}/lora_b", (), rank, transposed=True),
        ROWS: _one(f"{path}/rows", (), None),
    }
    return {
        f"{stem}{name}": filed for name, filed in leaves.items() if filed.slots[0].path in shapes
    }
