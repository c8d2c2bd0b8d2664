"""Merges adapters into the weights of their modules: ``W + scaling * A^T B``.

W is the tensor in the base model's file, whatever dtype the live model has it in. The sum is
computed in float32, DoRA scales the weight's rows to their trained lengths, and the result is
rounded once, to the dtype that is written. A tensor trained as a whole replaces the base's tensor.
A tensor without a trained part is the base's own, bit for bit.

Source: `peft/tuners/lora/layer.py: Linear.get_delta_weight`, `variants.py: DoraLinearVariant`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxft import tree as trees
from jaxft.errors import AdapterError
from jaxft.leaves.address import Address
from jaxft.models.families.family import Family
from jaxft.models.network import EMBED, HEAD, Adapter, Network
from jaxft.weights import layout, names
from jaxft.weights.formats.checkpoint import Checkpoint, TensorInfo
from jaxft.weights.names import Slot


class Merged:
    """The tensors of a tuned model under their names in files; each is merged when it is read."""

    def __init__(
        self,
        tree: Mapping[str, Any],
        family: Family,
        network: Network,
        base: Checkpoint,
        base_family: Family,
    ) -> None:
        """Keep the trained leaves of `network`; nothing is computed yet.

        Args:
            tree: All leaves of the network; frozen ones are not read.
            family: The family that names the tensors of the tuned model.
            network: The network, with its adapters.
            base: The checkpoint of the base model.
            base_family: The family that names the tensors in `base`: `family`, or the multimodal
                family of which `family` is the text part.

        Raises:
            AdapterError: If an adapter cannot be merged.
        """
        trained = network.trained_leaves()
        self._leaves = {
            path: np.asarray(leaf)
            for path, leaf in trees.flatten(tree).items()
            if path in trained or not Address.parse(path).is_own
        }
        self._trained = trained
        self._base = names.under_full_names(base, base_family)
        self._base_infos = self._base.infos()
        self._sources = {
            slot: name
            for name, slots in names.slots(base_family, network).items()
            for slot in slots
        }
        self._shapes = names.leaf_shapes(network)
        self._slots = names.own_tensors(family, network)
        self._head, self._embedding = f"{family.head_name}.weight", names.embedding_name(family)
        if not network.has_own_head:
            self._slots.pop(self._head, None)
            if not self._is_still_tied(network):
                self._slots[self._head] = self._slots[names.embedding_name(family)]
        self._table_names = {names.file_name(each, family): each for each in self._slots}
        self._modules = {
            module.name: module for module in names.adaptable_modules(family, network.spec)
        }
        self._places = network.places()
        self._network = network
        self._check_biases()

    @property
    def has_tied_head(self) -> bool:
        """Whether the head is tied to the embedding, so that it has no tensor of its own."""
        return self._head not in self._slots

    def names(self) -> list[str]:
        """Return the names of all tensors, as files have them."""
        return list(self._table_names)

    def info(self, name: str) -> TensorInfo:
        """Return the shape of a tensor, and its dtype in the base model's file."""
        slots = self._slots[self._table_names[name]]
        dtype = self._base_infos[self.source(name)].dtype
        return TensorInfo(names.expected_shape(slots, self._shapes), dtype)

    def is_trained(self, name: str) -> bool:
        """Return whether a part of a tensor is trained, or an adapter adds to it."""
        name = self._table_names[name]
        stem, _, kind = name.rpartition(".")
        return (
            self._has_trained(self._slots[name])
            or self._rows(name) is not None
            or (stem in self._modules and self._adapter(stem, kind) is not None)
        )

    def base(self, name: str) -> np.ndarray:
        """Return a tensor of the base model's file; for a head that was tied, the embedding."""
        return self._base.read(self.source(name))

    def source(self, name: str) -> str:
        """Return the name, in the base model's file, of the tensor that a tensor is made from."""
        return self._sources[self._slots[self._table_names[name]][0]]

    def read(self, name: str) -> np.ndarray:
        """Return a merged tensor: float32 if a part is trained, else as in the base's file."""
        if not self.is_trained(name):
            return self.base(name)
        own = self._own(name)
        name = self._table_names[name]
        slots = self._slots[name]
        tensor = self._with_rows(name, own)
        stem, _, kind = name.rpartition(".")
        delta = self._delta(stem, kind) if stem in self._modules else None
        if delta is None:
            return tensor
        # A head that was tied is read from the embedding, which is stored transposed.
        is_tied = name == self._head and not slots[0].transposed
        merged = tensor + (delta.T if is_tied else self._fused(delta, slots))
        magnitude = self._leaf(stem, "magnitude") if kind == "weight" else None
        if magnitude is None:
            return merged
        lengths = magnitude[:, None] if is_tied else self._fused(magnitude[None], slots)
        return _of_lengths(merged, lengths, axis=1 if is_tied or slots[0].transposed else 0)

    def _fused(self, joined: np.ndarray, slots: tuple[Slot, ...]) -> np.ndarray:
        """Return an array [... out], in our order of outputs, in a file's layout and order."""
        ends = np.cumsum([self._shapes[slot.path][-1] for slot in slots])[:-1]
        return layout.fuse(np.split(joined, ends, axis=-1), slots)

    def _own(self, name: str) -> np.ndarray:
        """Return a tensor without its adapter, float32: the base's tensor with trained leaves."""
        slots = self._slots[self._table_names[name]]
        if all(slot.path in self._trained for slot in slots):
            return layout.join(self._leaves, slots)
        tensor = self.base(name).astype(np.float32)
        if not self._has_trained(slots):
            return tensor
        parts = [
            self._part(slot)
            if slot.path in self._trained
            else layout.oriented(layout.cut(tensor, slot), slot)
            for slot in slots
        ]
        return layout.fuse(parts, slots)

    def _part(self, slot: Slot) -> np.ndarray:
        return layout.slice_of(self._leaves[slot.path], slot.index)

    def _has_trained(self, slots: tuple[Slot, ...]) -> bool:
        return any(slot.path in self._trained for slot in slots)

    def _rows(self, name: str) -> tuple[str, tuple[int, ...]] | None:
        """Return which leaf has the trained rows of a tensor, and their tokens; `None` for none."""
        rows = dict(self._network.rows)
        if name == self._head and self._network.head_rows is not None:
            return self._network.head_rows
        if name == self._embedding and EMBED in rows:
            return EMBED, rows[EMBED]
        return None

    def _with_rows(self, name: str, tensor: np.ndarray) -> np.ndarray:
        """Return a tensor with its trained token rows, if it has any, in their places."""
        found = self._rows(name)
        if found is None:
            return tensor
        owner, chosen = found
        tensor = tensor.copy()
        tensor[list(chosen)] = self._leaves[f"{owner}/rows"]
        return tensor

    def _adapter(self, module: str, kind: str) -> Adapter | None:
        """Return the adapter that adds to a module's "weight" or "bias", if there is one."""
        described = self._modules[module]
        adapter = self._places[described.layer].adapters.get(described.path)
        return None if adapter is None or (kind == "bias" and not adapter.bias) else adapter

    def _delta(self, module: str, kind: str) -> np.ndarray | None:
        """Return the array that an adapter adds to a "weight" [in, out] or a "bias" [out]."""
        adapter = self._adapter(module, kind)
        if adapter is None:
            return None
        scaling = self._leaf(module, "scaling")
        if kind == "bias":
            return scaling * self._leaf(module, "bias")
        if self._modules[module].path == HEAD and self._network.ties_adapters:
            return scaling * self._tied_product()
        a, b = (self._leaf(module, side)[: adapter.width] for side in "ab")
        update = a.T @ b
        if adapter.subtracts_start:
            a0, b0 = (self._leaf(module, side)[: adapter.width] for side in ("a0", "b0"))
            update -= a0.T @ b0
        return scaling * update

    def _leaf(self, module: str, name: str) -> Any:
        """Return a leaf of a module's adapter, float32, or `None` if it has none of that name."""
        described = self._modules[module]
        place = self._places[described.layer]
        leaf = self._leaves.get(f"{place.prefix}{described.path}/lora_{name}")
        return None if leaf is None else np.asarray(leaf[place.slice_index], np.float32)

    def _tied_product(self) -> np.ndarray:
        """Return A^T B [in, out] of the head's adapter, which is tied to the embedding's."""
        a, b = (np.asarray(self._leaves[f"embed/lora_{side}"], np.float32) for side in "ba")
        return a.T @ b

    def _is_still_tied(self, network: Network) -> bool:
        """Return whether a head that was tied still equals the embedding after merging both."""
        adapters, rows = dict(network.outer_adapters), dict(network.rows)
        if network.ties_adapters:
            of_embedding, of_head = (self._leaves[f"{each}/lora_scaling"] for each in (EMBED, HEAD))
            return bool(of_embedding == of_head)
        return EMBED not in adapters and HEAD not in adapters and HEAD not in rows

    def _check_biases(self) -> None:
        """Refuse an adapter with a bias on a module that has no bias to merge it into."""
        for name in self._modules:
            if f"{name}.bias" not in self._slots and self._adapter(name, "bias") is not None:
                raise AdapterError(
                    f"The adapter on {name} has a bias (lora_bias), and the module has none.",
                    "Such an adapter cannot be merged: use it beside its base model.",
                )


def _of_lengths(matrix: np.ndarray, lengths: np.ndarray, axis: int) -> np.ndarray:
    """Return a matrix scaled so that its vectors along an axis, that of the inputs, have `lengths`.

    A vector of zeros stays zero, as in the model itself (`models/dora.py`).
    """
    norms = np.linalg.norm(matrix, axis=axis, keepdims=True)
    return matrix * np.divide(lengths, norms, out=np.ones_like(norms), where=norms != 0)
