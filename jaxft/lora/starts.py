"""Fresh adapters on a base model, including adapters that begin with a part of its weights.

For the latter (PiSSA, OLoRA) the tree holds A and B, which are trained, and beside them their
initial values A0 and B0, which are frozen: the model is ``W + scaling * (B A - B0 A0)``. The
invariant: the base's own leaves are never written. So the untrained model equals its base, and the
trained one can be saved as a plain adapter (`adapters.conversion`). Checkpoints hold A0 and B0: a
resumed run could not compute them again, because their signs and the order of equal singular
values depend on the machine.

Separate from `init`, whose adapters come from random numbers alone.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxft import console
from jaxft import tree as trees
from jaxft.config import LoraConfig
from jaxft.leaves.address import Address
from jaxft.lora import decomposition, init, magnitude, numbers
from jaxft.models import embedding, quantized
from jaxft.models.families.family import Family
from jaxft.models.network import Network
from jaxft.models.quantized import Quantized
from jaxft.parallel import mesh as meshes
from jaxft.weights import layout, names

_SILENT_S = 2.0  # seconds; the randomised SVDs of a small model take less


def with_adapters(
    own: Mapping[str, Any],
    family: Family,
    network: Network,
    lora: LoraConfig,
    *,
    seed: int,
    mesh: Mesh,
) -> trees.Tree:
    """Return the base's leaves together with fresh adapters, which are float32 and replicated.

    Args:
        own: All leaves of `network` but the adapters'; a quantized leaf is dequantized before it
            is decomposed.
        family: The family of the model.
        network: The network, which says which adapters there are.
        lora: The config of the adapters.
        seed: The seed of all random draws.
        mesh: The devices to hold the adapters.

    Raises:
        AdapterError: If `init_lora_weights` does not allow a rank: "orthogonal" needs even ranks.
    """
    drawn = init.init_adapters(network, kind=lora.init_lora_weights, seed=seed, mesh=mesh)
    begun = _decomposed(own, family, network, lora, seed=seed)
    everywhere = meshes.replicated(mesh)
    kept = jax.device_put(begun, everywhere)
    fixed = jax.device_put(numbers.leaves(lora, family, network), everywhere)
    rows = embedding.original_rows(network, own)
    tree = trees.combine(own, drawn, rows, trees.unflatten(kept), _as_trained(kept), fixed)
    return magnitude.with_magnitudes(network, tree, mesh)


def _decomposed(
    own: Mapping[str, Any], family: Family, network: Network, lora: LoraConfig, *, seed: int
) -> dict[str, np.ndarray]:
    """Return A0 and B0 of the adapters that begin with a part of the weights, by leaf path."""
    begun = {
        path: np.zeros(shape, np.float32)
        for path, shape in names.leaf_shapes(network).items()
        if Address.parse(path).is_start
    }
    if not begun:
        return begun
    decompose = decomposition.named(str(lora.init_lora_weights))
    tensors, leaves = names.own_tensors(family, network), trees.flatten(own)
    adapted = list(_adapted(family, network))
    with console.loading("Decomposing weights", len(adapted), silent_s=_SILENT_S) as count:
        for module, stem, at in adapted:
            weight = _weight(module, leaves, tensors, family)
            rng = init.generator(seed, module.path, -1 if module.layer is None else module.layer)
            a, b = decompose(weight, *numbers.of(lora, module.name), rng)
            width = begun[f"{stem}a0"].shape[-2]
            a, b = init.padded(a, width), init.padded(b.T, width).T
            layout.fill(begun, (names.Slot(f"{stem}a0", at, False, None, None),), a)
            layout.fill(begun, module.slots(f"{stem}b0", at, transposed=True), b)
            count(1)
    return begun


def of(tree: Mapping[str, Any]) -> trees.Tree:
    """Return the A0 and B0 of a tree; there are none if no adapter began with a part of W."""
    return trees.partition(tree, _marks(tree))[0]


def _marks(tree: Mapping[str, Any]) -> trees.Tree:
    return trees.map_with_path(lambda path, _: Address.parse(path).is_start, tree)


def as_begun(tree: Mapping[str, Any]) -> trees.Tree:
    """Return the leaves of a tree, with A and B reset to A0 and B0 where these exist."""
    began = _as_trained(trees.flatten(of(tree)))
    return trees.unflatten({**trees.flatten(tree), **trees.flatten(began)})


def _as_trained(starts: Mapping[str, Any]) -> trees.Tree:
    """Return the starts A0 and B0 at the paths of the trained leaves, A and B."""
    began = {}
    for path, leaf in starts.items():
        trained = Address.parse(path).start_of
        assert trained is not None, f"{path} is no start"
        began[trained] = leaf
    return trees.unflatten(began)


class _Adapted(NamedTuple):
    """The place of an adapter: the path of its leaves up to "a" or "b", and its slice of them."""

    module: names.Module
    stem: str
    at: names.Index


def _adapted(family: Family, network: Network) -> Iterator[_Adapted]:
    """Yield every adapter that a network has on a linear module."""
    places = network.places()
    for module in names.linear_modules(family, network.spec):
        place = places[module.layer]
        if module.path in place.adapters:
            yield _Adapted(module, f"{place.prefix}{module.path}/lora_", place.slice_index)


def _weight(
    module: names.Module,
    leaves: Mapping[str, Any],
    tensors: Mapping[str, tuple[names.Slot, ...]],
    family: Family,
) -> np.ndarray:
    """Return the weight of a module, float32 [out, in], its rows in Hugging Face's order."""
    is_tied_head = f"{module.name}.weight" not in tensors
    name = names.embedding_name(family) if is_tied_head else f"{module.name}.weight"
    slots = tensors[name]
    parts = {slot.path: _matrix(leaves[slot.path], slot.index) for slot in slots}
    alone = tuple(dataclasses.replace(slot, index=()) for slot in slots)
    tensor = layout.join(parts, alone)
    return tensor if slots[0].transposed or is_tied_head else np.ascontiguousarray(tensor.T)


def _matrix(leaf: Any, index: names.Index) -> np.ndarray:
    """Return a leaf, or one layer's slice of it, as a float32 matrix."""
    leaf = jax.tree.map(lambda stack: stack[index], leaf)
    if isinstance(leaf, Quantized):
        leaf = quantized.dequantize(leaf)
    return np.asarray(leaf, np.float32)
