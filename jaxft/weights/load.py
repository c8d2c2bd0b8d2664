"""Load the tensors of a checkpoint into the parameter tree, with the sharding of each leaf.

Every tensor is used exactly once or ignored by name, and every leaf is filled exactly once. The
headers are checked for this before a tensor is read. A layer's tensor is written into its slice of
the stacked leaf as soon as it is read, so the host holds one tensor beside the leaves. If the
devices of this process need only regions of a tensor, only those are read.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxft import tree as trees
from jaxft.errors import WeightsError
from jaxft.leaves.address import Address
from jaxft.models import quantized
from jaxft.models.bind import abstract_tree
from jaxft.models.families import foreign_quantization
from jaxft.models.families.family import Family
from jaxft.models.network import Network
from jaxft.models.quantized import Quantized
from jaxft.parallel import rules
from jaxft.weights import filling, finite, layout, names, quantizing
from jaxft.weights.formats import regions
from jaxft.weights.formats.checkpoint import Checkpoint
from jaxft.weights.formats.regions import Region

Filling = filling.Filling | quantizing.Quantizing

_SHOWN = 5  # names that a message lists for each kind of mismatch


def abstract(
    network: Network, *, dtype: Any, mesh: Mesh | AbstractMesh, quantization: str | None
) -> trees.Tree:
    """Return the tree of `load_base` without values.

    Args:
        network: The network; leaves of its adapters are not part of the result.
        dtype: The dtype of frozen leaves; trained ones are float32.
        mesh: The devices that share the leaves; an abstract mesh needs no devices.
        quantization: The kind to which the frozen matrices of the layers are quantized; `None`
            for no quantization.

    Returns:
        For every leaf of the network except those of adapters, a `ShapeDtypeStruct` with its
        sharding, or a `Quantized` of them.

    Raises:
        DeviceError: A dimension does not divide by the mesh axis that its rule names.
    """
    trained = network.trained_leaves()
    leaves = {
        path: leaf
        for path, leaf in trees.flatten(abstract_tree(network)).items()
        if Address.parse(path).is_own
    }
    placed = trees.flatten(rules.shardings(trees.unflatten(leaves), mesh))
    everywhere = NamedSharding(mesh, PartitionSpec())

    def held(path: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct | Quantized:
        if quantization and path not in trained and quantizing.is_quantized(path):
            return quantized.abstract(leaf.shape, quantization, everywhere)
        wanted = jnp.float32 if path in trained else dtype
        return jax.ShapeDtypeStruct(leaf.shape, wanted, sharding=placed[path])

    return trees.unflatten({path: held(path, leaf) for path, leaf in leaves.items()})


def load_base(
    checkpoint: Checkpoint,
    family: Family,
    network: Network,
    *,
    dtype: Any,
    mesh: Mesh,
    progress: Callable[[int], None],
    quantization: str | None,
    rounding: quantizing.Plans | None,
) -> trees.Tree:
    """Read the base weights of `network`.

    Args:
        checkpoint: The checkpoint with the tensors.
        family: The family that names them.
        network: The network; leaves of its adapters are not part of the result.
        dtype: The dtype of frozen leaves, whatever the files store; trained ones are float32.
        mesh: The devices that share the leaves, by the sharding table.
        progress: Called after each tensor with the number of its bytes.
        quantization: The kind to which the frozen matrices of the layers are quantized; `None`
            for no quantization.
        rounding: How each slice of a 4-bit leaf is rounded; `None` rounds to the nearest code.

    Returns:
        Every leaf of the network except those of adapters.

    Raises:
        WeightsError: Tensors are missing, unexpected or misshapen, a value is infinite or NaN, or
            a file is damaged.
    """
    checkpoint = names.under_full_names(checkpoint, family)
    table = names.slots(family, network)
    _check(checkpoint, family, network, table)
    held = abstract(network, dtype=dtype, mesh=mesh, quantization=quantization)
    leaves = trees.flatten(held)
    _check_filled(family, leaves, table)

    def begin(path: str, leaf: jax.ShapeDtypeStruct | Quantized) -> Filling:
        if isinstance(leaf, Quantized):
            plan_of = functools.partial(rounding, path) if rounding else None
            return quantizing.Quantizing(leaf, plan_of)
        return filling.begin(leaf)

    filled = {path: begin(path, leaf) for path, leaf in leaves.items()}
    fill(filled, checkpoint, table, progress)
    return trees.unflatten({path: leaf.finish() for path, leaf in filled.items()})


def fill(
    filled: Mapping[str, Filling],
    checkpoint: Checkpoint,
    table: Mapping[str, tuple[names.Slot, ...]],
    progress: Callable[[int], None],
) -> None:
    """Read the needed regions of every tensor of a table into leaves.

    Args:
        filled: The leaves by path.
        checkpoint: The checkpoint, under the names of the table.
        table: The slots of each tensor.
        progress: Called after each tensor with the number of its bytes.

    Raises:
        WeightsError: A value is infinite or NaN, or a file is damaged.
    """
    infos = checkpoint.infos()
    for name, slots in table.items():
        shape, stored = infos[name]
        _fill(filled, slots, functools.partial(_read_finite, checkpoint, name), shape)
        progress(math.prod(shape) * stored.itemsize)


def read_leaf(
    checkpoint: Checkpoint, family: Family, network: Network, path: str, region: Region
) -> np.ndarray:
    """Return a region of a leaf with the values of the checkpoint, neither cast nor quantized.

    Args:
        checkpoint: The checkpoint with the tensors.
        family: The family that names them.
        network: The network of the leaf.
        path: The leaf's path, "groups/0/0/attn/q/kernel".
        region: The region of the leaf; the first dimension of a stacked leaf is its layers.

    Raises:
        WeightsError: A value is infinite or NaN, or a file is damaged.
    """
    checkpoint = names.under_full_names(checkpoint, family)
    return read_region(checkpoint, names.slots(family, network), path, region)


def read_region(
    checkpoint: Checkpoint,
    table: Mapping[str, tuple[names.Slot, ...]],
    path: str,
    region: Region,
) -> np.ndarray:
    """Return a region of a leaf from the tensors that fill it, as `read_leaf` does.

    Args:
        checkpoint: The checkpoint, under the names of the table.
        table: The slots of each tensor.
        path: The leaf's path, "groups/0/0/attn/q/kernel".
        region: The region of the leaf. The first dimension of a stacked leaf is its layers, the
            second of a leaf of experts is its experts.

    Raises:
        WeightsError: A value is infinite or NaN, or a file is damaged.
    """
    infos = checkpoint.infos()
    parts: dict[names.Index, np.ndarray] = {}
    for name, slots in table.items():
        read = functools.partial(_read_finite, checkpoint, name)
        for slot in slots:
            if slot.path == path and regions.holds(region, slot.index):
                inner = region[len(slot.index) :]
                parts[slot.index] = layout.read(read, slot, infos[name].shape, inner)
    if () in parts:
        return parts[()]
    stacked = np.stack([parts[index] for index in sorted(parts)])
    return stacked.reshape(regions.shape_of(region))


def _fill(
    filled: Mapping[str, Filling],
    slots: tuple[names.Slot, ...],
    read: Callable[[Region | None], np.ndarray],
    shape: tuple[int, ...],
) -> None:
    """Read the needed regions of a tensor and write them into its slots.

    Args:
        filled: The leaves by path.
        slots: The slots of the tensor.
        read: Reads a region of the tensor, or with `None` all of it.
        shape: The shape of the tensor.
    """
    found = [(slot, filled[slot.path].needed(slot.index)) for slot in slots]
    needed = [(slot, region) for slot, region in found if region is not None]
    wanted = {
        str(each): each for slot, region in needed for each in layout.sources(slot, shape, region)
    }
    if sum(map(regions.num_values, wanted.values())) >= math.prod(shape):
        # The whole tensor is needed: read it once.
        cut = functools.partial(regions.cut, read(None))
    else:
        parts = {key: read(each) for key, each in wanted.items()}
        cut = functools.partial(_one_of, parts)
    for slot, region in needed:
        filled[slot.path].write(layout.read(cut, slot, shape, region), slot.index)


def _one_of(parts: Mapping[str, np.ndarray], region: Region) -> np.ndarray:
    return parts[str(region)]


def _read_finite(checkpoint: Checkpoint, name: str, region: Region | None) -> np.ndarray:
    """Read a tensor or a region of it.

    Raises:
        WeightsError: A value is infinite or NaN, or a file is damaged.
    """
    tensor = checkpoint.read(name) if region is None else checkpoint.read(name, region)
    if finite.is_finite(tensor):
        return tensor
    values = np.asarray(tensor, np.float32)
    wrong = np.argwhere(~np.isfinite(values))
    begins = [part.start for part in region] if region else [0] * values.ndim
    first = tuple(map(int, wrong[0]))
    at = [begin + place for begin, place in zip(begins, first, strict=True)]
    raise WeightsError(
        f"{checkpoint.path}: {name} holds values that are no numbers: {values[first]} at "
        f"{at}, {len(wrong):,} in all.",
        "Take the weights as they were published. If they were cast to float16, some were too "
        "large for it: cast to bfloat16.",
    )


def _check(
    checkpoint: Checkpoint,
    family: Family,
    network: Network,
    table: dict[str, tuple[names.Slot, ...]],
) -> None:
    infos = checkpoint.infos()
    foreign_quantization.refuse_quantized_tensors(checkpoint.path, infos)
    shapes = names.leaf_shapes(network)
    copies = _tied_copies(checkpoint, family, network)
    ignored = re.compile("|".join(family.ignored) or r"(?!)")
    unexpected = [
        name
        for name in infos
        if name not in table and name not in copies and not ignored.fullmatch(name)
    ]
    misshapen = []
    for name, slots in table.items():
        expected = names.expected_shape(slots, shapes)
        if name in infos and tuple(infos[name].shape) != expected:
            misshapen.append(f"{name} {tuple(infos[name].shape)} instead of {expected}")
    complaints = {
        "missing": [name for name in table if name not in infos],
        "unexpected": unexpected,
        "misshapen": misshapen,
    }
    found = [
        f"{len(bad)} {kind} ({', '.join(bad[:_SHOWN])}{', ...' if len(bad) > _SHOWN else ''})"
        for kind, bad in complaints.items()
        if bad
    ]
    if found:
        raise WeightsError(
            f"{checkpoint.path}: the tensors are not those of its config.json: {'; '.join(found)}.",
            "Take weights and config.json of one and the same model.",
        )


def _check_filled(
    family: Family, leaves: Mapping[str, Any], table: Mapping[str, tuple[names.Slot, ...]]
) -> None:
    """Raise a WeightsError if no tensor of the family's table fills one of the leaves."""
    filled = {slot.path for slots in table.values() for slot in slots}
    empty = sorted(leaves.keys() - filled)
    if empty:
        raise WeightsError(
            f"The network has {', '.join(empty[:_SHOWN])}, and no tensor of a {family.model_type} "
            "is that.",
            "This is a mistake in the family's table of tensors, or in its spec: report it.",
        )


def has_other_head(checkpoint: Checkpoint, family: Family) -> bool:
    """Return whether a checkpoint has a head that differs from its embedding."""
    checkpoint = names.under_full_names(checkpoint, family)
    head, embed = f"{family.head_name}.weight", names.embedding_name(family)
    if not {head, embed} <= checkpoint.infos().keys():
        return False
    return not np.array_equal(checkpoint.read(head), checkpoint.read(embed))


def _tied_copies(checkpoint: Checkpoint, family: Family, network: Network) -> set[str]:
    """Return the tensors that repeat the embedding as a tied head: {"lm_head.weight"}, or {}.

    Raises:
        WeightsError: The file stores a head that differs from the embedding that it is tied to.
    """
    head, embed = f"{family.head_name}.weight", names.embedding_name(family)
    if not network.spec.tied_head or head not in checkpoint.infos():
        return set()
    if has_other_head(checkpoint, family):
        raise WeightsError(
            f"{checkpoint.path}: {head} differs from {embed}, though config.json ties them.",
            "Set tie_word_embeddings to false in config.json if the head is meant to differ.",
        )
    return {head}
