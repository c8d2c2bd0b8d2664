"""Adapters merged into the weights they stand beside: ``W + scaling * A^T B``.

The sum is taken in float32, DoRA's rows are brought to their length, and all is rounded once, to
the dtype of the merged model. What was trained as a whole simply takes its place.

Source: `peft/tuners/lora/layer.py: Linear.get_delta_weight`, `variants.py: DoraLinearVariant`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxft import tree as trees
from jaxft.errors import AdapterError
from jaxft.models.families.family import Family
from jaxft.models.network import EMBED, HEAD, Network
from jaxft.weights import layout, names
from jaxft.weights.names import Slot


class Merged:
    """The tensors of a tuned model under the names that files have, merged one at a time."""

    def __init__(self, tree: Mapping[str, Any], family: Family, network: Network) -> None:
        """Take all leaves of `network`; nothing is computed yet.

        Raises:
            AdapterError: If an adapter cannot be merged.
        """
        self._leaves = trees.flatten(tree)
        self._slots = names.own_tensors(family, network)
        self._head, self._embedding = f"{family.head_name}.weight", names.embedding_name(family)
        if not network.has_own_head:
            self._slots.pop(self._head, None)
            if not _is_still_tied(network):
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
        tensor = self._with_rows(name, layout.join(self._leaves, slots))
        stem, _, kind = name.rpartition(".")
        delta = self._delta(stem, kind) if stem in self._modules else None
        if delta is None:
            return tensor
        # A head that was tied is read from the embedding, which lies the other way about.
        is_tied = name == self._head and not slots[0].transposed
        merged = tensor.astype(np.float32) + (delta.T if is_tied else self._fused(delta, slots))
        magnitude = self._leaf(stem, "magnitude") if kind == "weight" else None
        if magnitude is None:
            return merged
        lengths = magnitude[:, None] if is_tied else self._fused(magnitude[None], slots)
        return _of_lengths(merged, lengths, axis=1 if is_tied or slots[0].transposed else 0)

    def _fused(self, joined: np.ndarray, slots: tuple[Slot, ...]) -> np.ndarray:
        """Return an array [... out], in our order of outputs, in a tensor's layout and order."""
        ends = np.cumsum([self._leaves[slot.path].shape[-1] for slot in slots])[:-1]
        return layout.fuse(np.split(joined, ends, axis=-1), slots)

    def _with_rows(self, name: str, tensor: np.ndarray) -> np.ndarray:
        """Return a tensor with its trained rows, if it is one that has some, in their place."""
        rows = dict(self._network.rows)
        if name == self._head and self._network.head_rows is not None:
            owner, chosen = self._network.head_rows
        elif name == self._embedding and EMBED in rows:
            owner, chosen = EMBED, rows[EMBED]
        else:
            return tensor
        tensor = tensor.astype(np.float32)
        tensor[list(chosen)] = self._leaves[f"{owner}/rows"]
        return tensor

    def _delta(self, module: str, kind: str) -> np.ndarray | None:
        """Return what an adapter adds to a "weight" [in, out] or a "bias" [out], if anything."""
        described = self._modules[module]
        adapter = self._places[described.layer].adapters.get(described.path)
        if adapter is None or (kind == "bias" and not adapter.bias):
            return None
        if kind == "bias":
            return np.float32(adapter.scaling) * self._leaf(module, "bias")
        if described.path == HEAD and self._network.ties_adapters:
            return np.float32(adapter.scaling) * self._tied_product()
        update = self._leaf(module, "a").T @ self._leaf(module, "b")
        if adapter.subtracts_start:
            update -= self._leaf(module, "a0").T @ self._leaf(module, "b0")
        return np.float32(adapter.scaling) * update

    def _leaf(self, module: str, name: str) -> Any:
        """Return a leaf of a module's adapter, float32, or `None` if it has none of that name."""
        described = self._modules[module]
        prefix, index, _ = self._places[described.layer]
        leaf = self._leaves.get(f"{prefix}{described.path}/lora_{name}")
        if leaf is None:
            return None
        return np.asarray(leaf if index is None else leaf[index], np.float32)

    def _tied_product(self) -> np.ndarray:
        """Return A^T B of the head's adapter [in, out], which is the embedding's."""
        a, b = (np.asarray(self._leaves[f"embed/lora_{side}"], np.float32) for side in "ba")
        return a.T @ b

    def _check_biases(self) -> None:
        """Refuse biases of adapters on modules that have none of their own to take them."""
        for name in self._modules:
            if f"{name}.bias" not in self._slots and self._delta(name, "bias") is not None:
                raise AdapterError(
                    f"The adapter on {name} has a bias (lora_bias), and the module has none.",
                    "Such an adapter cannot be merged: use it beside its base model.",
                )


def _of_lengths(matrix: np.ndarray, lengths: np.ndarray, axis: int) -> np.ndarray:
    """Return a matrix brought to these lengths along an axis, that of the inputs.

    What is 0 stays 0, as in the model itself (`models/dora.py`).
    """
    norms = np.linalg.norm(matrix, axis=axis, keepdims=True)
    return matrix * np.divide(lengths, norms, out=np.ones_like(norms), where=norms != 0)


def _is_still_tied(network: Network) -> bool:
    """Say whether a head that was tied is still the embedding, with what both have been given."""
    adapters, rows = dict(network.outer_adapters), dict(network.rows)
    if network.ties_adapters:
        return adapters[EMBED].scaling == adapters[HEAD].scaling
    return EMBED not in adapters and HEAD not in adapters and HEAD not in rows
