"""Bring a checkpoint's tensors into the parameter tree, each leaf born with its sharding.

Every tensor is consumed exactly once or ignored by name, and every leaf is filled exactly once;
all violations are found from the headers, before anything is read. A layer's tensor is written
into its slice of the stacked leaf as it is read, so beside the leaves the host holds one tensor.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxft import tree as trees
from jaxft.errors import WeightsError
from jaxft.models.bind import abstract_tree
from jaxft.models.families import quantised
from jaxft.models.families.family import Family
from jaxft.models.network import Network, is_adapter_leaf, is_start_leaf
from jaxft.parallel import rules
from jaxft.weights import filling, finite, layout, names, quantising
from jaxft.weights.checkpoint import Checkpoint

Filling = filling.Filling | quantising.Quantising

_SHOWN = 5  # names listed of each kind of mismatch


def load_base(
    checkpoint: Checkpoint,
    family: Family,
    network: Network,
    *,
    dtype: Any,
    mesh: Mesh,
    progress: Callable[[int], None],
    quantization: str | None,
    rounding: quantising.Plans | None,
) -> trees.Tree:
    """Read the base weights of `network`.

    Args:
        checkpoint: Where the tensors are.
        family: Their names.
        network: The network; leaves of its adapters are not part of the result.
        dtype: dtype of frozen leaves, whatever they are stored as; trained ones are float32.
        mesh: Over which the leaves are divided, by the sharding table.
        progress: Called with the number of bytes after each tensor read.
        quantization: To what the frozen matrices of the layers are quantised: a kind of
            `Quantized`, or `None` for not at all.
        rounding: How each slice of a 4-bit leaf is rounded; `None` is to the nearest code.

    Returns:
        Every leaf of the network but those of adapters.

    Raises:
        WeightsError: If tensors are missing, unexpected or misshapen, one holds what is no number,
            or a file is damaged.
    """
    checkpoint = names.under_full_names(checkpoint, family)
    table = names.slots(family, network)
    _check(checkpoint, family, network, table)
    trained = network.trained_leaves()
    leaves = {
        path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32 if path in trained else dtype)
        for path, leaf in trees.flatten(abstract_tree(network)).items()
        if not is_adapter_leaf(path) and not is_start_leaf(path)
    }
    _check_filled(family, leaves, table)
    placed = trees.flatten(rules.shardings(trees.unflatten(leaves), mesh))

    def begin(path: str, leaf: jax.ShapeDtypeStruct) -> Filling:
        if quantization and path not in trained and quantising.is_quantised(path):
            plan_of = functools.partial(rounding, path) if rounding else None
            return quantising.Quantising(placed[path], quantization, plan_of)
        return filling.begin(leaf, placed[path])

    filled = {path: begin(path, leaf) for path, leaf in leaves.items()}
    for name, slots in table.items():
        tensor = checkpoint.read(name)
        _check_finite(checkpoint, name, tensor)
        progress(_fill(filled, slots, tensor))
    return trees.unflatten({path: leaf.finish() for path, leaf in filled.items()})


def _fill(filled: Mapping[str, Filling], slots: tuple[names.Slot, ...], tensor: np.ndarray) -> int:
    """Write a tensor into its slots; return its bytes, and keep nothing of it."""
    for slot in slots:
        filled[slot.path].write(layout.oriented(layout.cut(tensor, slot), slot), slot.index)
    return tensor.nbytes


def _check_finite(checkpoint: Checkpoint, name: str, tensor: np.ndarray) -> None:
    if finite.is_finite(tensor):
        return
    values = np.asarray(tensor, np.float32)
    wrong = np.argwhere(~np.isfinite(values))
    first = tuple(map(int, wrong[0]))
    raise WeightsError(
        f"{checkpoint.path}: {name} holds values that are no numbers: {values[first]} at "
        f"{list(first)}, {len(wrong):,} in all.",
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
    quantised.refuse_quantised_tensors(checkpoint.path, infos)
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
    """Refuse a network with a leaf that no tensor of the family's table fills."""
    filled = {slot.path for slots in table.values() for slot in slots}
    empty = sorted(leaves.keys() - filled)
    if empty:
        raise WeightsError(
            f"The network has {', '.join(empty[:_SHOWN])}, and no tensor of a {family.model_type} "
            "is that.",
            "This is a mistake in the family's table of tensors, or in its spec: report it.",
        )


def has_other_head(checkpoint: Checkpoint, family: Family) -> bool:
    """Return whether a file has a head that is not its embedding, so that they cannot be tied."""
    checkpoint = names.under_full_names(checkpoint, family)
    head, embed = f"{family.head_name}.weight", names.embedding_name(family)
    if not {head, embed} <= checkpoint.infos().keys():
        return False
    return not np.array_equal(checkpoint.read(head), checkpoint.read(embed))


def _tied_copies(checkpoint: Checkpoint, family: Family, network: Network) -> set[str]:
    """Return the names of redundant copies of a tied head, once they are seen to be copies.

    Raises:
        WeightsError: If the head that the file stores is not the embedding it is tied to.
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
