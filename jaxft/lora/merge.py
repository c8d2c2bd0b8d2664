"""Adapters merged into the weights they stand beside: ``W + scaling * A^T B``.

The sum is taken in float32 and rounded once, to the dtype of the merged model. What was trained
as a whole simply takes its place.

Source: `peft/tuners/lora/layer.py: Linear.get_delta_weight`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxft import tree as trees
from jaxft.errors import AdapterError
from jaxft.lora import targets
from jaxft.models.families.family import Family
from jaxft.models.network import Network
from jaxft.weights import layout, names


class Merged:
    """The tensors of a tuned model under the names that files have, merged one at a time."""

    def __init__(self, tree: Mapping[str, Any], family: Family, network: Network) -> None:
        """Take all leaves of `network`; nothing is computed yet.

        Raises:
            AdapterError: If an adapter cannot be merged.
        """
        self._leaves = trees.flatten(tree)
        self._slots = names.own_tensors(family, network)
        self._outer = ("", None, dict(network.outer_adapters))
        self._head = f"{family.head_name}.weight"
        if not network.has_own_head:
            self._slots.pop(self._head, None)
            if targets.HEAD in self._outer[2]:  # with an adapter in it, it is no more the embedding
                self._slots[self._head] = self._slots[names.embedding_name(family)]
        self._table_names = {names.file_name(each, family): each for each in self._slots}
        self._modules = {
            module.name: module for module in names.linear_modules(family, network.spec)
        }
        self._places = {
            layer: (f"{prefix}/", index, dict(described.adapters))
            for prefix, described, layers in network.stacked_blocks()
            for index, layer in enumerate(layers)
        }
        self._check_biases()

    @property
    def has_tied_head(self) -> bool:
        """Whether the head is the embedding, and no tensor of its own."""
        return self._head not in self._slots

    def names(self) -> list[str]:
        """Return the names of all tensors."""
        return list(self._table_names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        slots = self._slots[self._table_names[name]]
        shapes = {slot.path: self._leaves[slot.path].shape for slot in slots}
        return names.expected_shape(slots, shapes)

    def base(self, name: str) -> np.ndarray:
        """Return a tensor as it is stored, with nothing added to it."""
        return layout.join(self._leaves, self._slots[self._table_names[name]])

    def read(self, name: str) -> np.ndarray:
        """Return a tensor, float32 if something was added to it, else as it is stored."""
        name = self._table_names[name]
        slots = self._slots[name]
        tensor = layout.join(self._leaves, slots)
        stem, _, kind = name.rpartition(".")
        delta = self._delta(stem, kind) if stem in self._modules else None
        if delta is None:
            return tensor
        if name == self._head and not slots[0].transposed:
            # A head that was tied is read from the embedding, which lies the other way about.
            return tensor.astype(np.float32) + delta.T
        ends = np.cumsum([self._leaves[slot.path].shape[-1] for slot in slots])[:-1]
        return tensor.astype(np.float32) + layout.fuse(np.split(delta, ends, axis=-1), slots)

    def _delta(self, module: str, kind: str) -> np.ndarray | None:
        """Return what an adapter adds to a "weight" [in, out] or a "bias" [out], if anything."""
        described = self._modules[module]
        prefix, index, adapters = (
            self._outer if described.layer is None else self._places[described.layer]
        )
        adapter = adapters.get(described.path)
        if adapter is None or (kind == "bias" and not adapter.bias):
            return None

        def leaf(name: str) -> np.ndarray:
            value = self._leaves[f"{prefix}{described.path}/lora_{name}"]
            return np.asarray(value if index is None else value[index], np.float32)

        scaling = np.float32(adapter.scaling)
        if kind == "bias":
            return scaling * leaf("bias")
        update = leaf("a").T @ leaf("b")
        if adapter.subtracts_start:
            update -= leaf("a0").T @ leaf("b0")
        return scaling * update

    def _check_biases(self) -> None:
        """Refuse biases of adapters on modules that have none of their own to take them."""
        for name in self._modules:
            if f"{name}.bias" not in self._slots and self._delta(name, "bias") is not None:
                raise AdapterError(
                    f"The adapter on {name} has a bias (lora_bias), and the module has none.",
                    "Such an adapter cannot be merged: use it beside its base model.",
                )
