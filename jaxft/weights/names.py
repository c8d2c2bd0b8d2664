"""Where each tensor of a checkpoint belongs in the tree, from the family's name table.

The table is read both ways: import and export, and the module names that PEFT knows, derive from
the same lines. A layer's tensor goes to a slice of a stacked leaf; which one follows from how
the network's layers are cut into groups.
"""

import dataclasses
from collections.abc import Mapping

from jaxft import tree as trees
from jaxft.models.bind import abstract_tree
from jaxft.models.families.family import Family
from jaxft.models.network import Network, base_network
from jaxft.models.spec import ModelSpec


@dataclasses.dataclass(frozen=True)
class Slot:
    """A place in the tree that one tensor of a checkpoint fills.

    Attributes:
        path: The leaf.
        index: Which slice of the stacked leaf, or `None` for the whole leaf.
        transposed: Whether theirs is the transpose of ours.
    """

    path: str
    index: int | None
    transposed: bool


@dataclasses.dataclass(frozen=True)
class Module:
    """A linear module that an adapter can be put on.

    Attributes:
        name: Hugging Face's full name, "model.layers.0.self_attn.q_proj".
        path: Ours within the block, "attn/q", or "head".
        layer: The layer's index; `None` outside the layers.
        dims: (in, out).
    """

    name: str
    path: str
    layer: int | None
    dims: tuple[int, int]


def slots(family: Family, network: Network) -> dict[str, Slot]:
    """Return the slot of every tensor that a checkpoint of `network`'s base must have."""
    leaves = trees.flatten(abstract_tree(network))
    table: dict[str, Slot] = {}
    for line in family.tensors:
        transposed = line.layout == "transposed"
        if not line.is_per_layer:
            if line.ours in leaves:
                table[line.theirs] = Slot(line.ours, None, transposed)
            continue
        for prefix, _, layers in network.stacked_blocks():
            if f"{prefix}/{line.ours}" not in leaves:
                continue
            for index, layer in enumerate(layers):
                name = line.theirs.format(layer=layer)
                table[name] = Slot(f"{prefix}/{line.ours}", index, transposed)
    return table


def linear_modules(family: Family, spec: ModelSpec) -> list[Module]:
    """Return every linear module of the model, layer by layer, the head last."""
    network = base_network(spec)
    leaves = trees.flatten(abstract_tree(network))
    modules = []
    for prefix, _, layers in network.stacked_blocks():
        for line in family.tensors:
            leaf = leaves.get(f"{prefix}/{line.ours}")
            if line.is_per_layer and line.ours.endswith("/kernel") and leaf is not None:
                _, fan_in, fan_out = leaf.shape
                path = line.ours.removesuffix("/kernel")
                modules += [
                    Module(_module_name(line.theirs, layer), path, layer, (fan_in, fan_out))
                    for layer in layers
                ]
    modules.sort(key=lambda module: module.layer or 0)  # stable: the table's order within a layer
    head = Module(family.head_name, "head", None, (spec.model_dim, spec.vocab_size))
    return [*modules, head]


def _module_name(tensor: str, layer: int) -> str:
    return tensor.removesuffix(".weight").format(layer=layer)


def expected_shape(slot: Slot, leaf_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the tensor that fills `slot` of a leaf of `leaf_shape`."""
    shape = leaf_shape if slot.index is None else leaf_shape[1:]
    return tuple(reversed(shape)) if slot.transposed else tuple(shape)


def leaf_shapes(network: Network) -> Mapping[str, tuple[int, ...]]:
    """Return the shape of every leaf of `network` by path."""
    return {path: leaf.shape for path, leaf in trees.flatten(abstract_tree(network)).items()}
