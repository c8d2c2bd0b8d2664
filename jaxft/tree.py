"""Operations on parameter trees: plain nested dicts with string keys.

Everything that jaxft trains, freezes, saves or shards is such a tree, and a leaf is named by its
path, ``"groups/0/0/attn/q/kernel"``. Every value that is not a dict is a leaf, so a quantized array
(itself a pytree) is one leaf here. `partition` splits a tree in two and `combine` is its inverse:
``combine(*partition(tree, mask)) == tree`` for every mask.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

Tree = dict[str, Any]


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves of `tree` by path, sorted by path."""
    flat: dict[str, Any] = {}
    for key in sorted(tree):
        value = tree[key]
        if isinstance(value, Mapping):
            flat.update({f"{key}/{path}": leaf for path, leaf in flatten(value).items()})
        else:
            flat[key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """Return the tree whose leaves by path are `flat`; the inverse of `flatten`.

    Raises:
        ValueError: If one path is a prefix of another, so that no tree holds both.
    """
    tree: Tree = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"{path!r} lies below another leaf")
        if name in node:
            raise ValueError(f"{path!r} is both a leaf and a branch")
        node[name] = leaf
    return tree


def map_with_path(function: Callable[[str, Any], Any], tree: Mapping[str, Any]) -> Tree:
    """Return a tree with the same paths and the leaves ``function(path, leaf)``."""
    return unflatten({path: function(path, leaf) for path, leaf in flatten(tree).items()})


def partition(tree: Mapping[str, Any], mask: Mapping[str, Any]) -> tuple[Tree, Tree]:
    """Split `tree` into the leaves that are true in `mask` and the others.

    Args:
        tree: Any tree.
        mask: A tree with the same paths and bool leaves.

    Returns:
        Two trees with disjoint paths; branches without leaves are left out.

    Raises:
        ValueError: If the paths of `mask` are not those of `tree`.
    """
    leaves, marks = flatten(tree), flatten(mask)
    if leaves.keys() != marks.keys():
        odd = sorted(leaves.keys() ^ marks.keys())
        raise ValueError(f"mask and tree differ in {len(odd)} paths, first {odd[0]!r}")
    selected = {path: leaf for path, leaf in leaves.items() if marks[path]}
    rest = {path: leaf for path, leaf in leaves.items() if not marks[path]}
    return unflatten(selected), unflatten(rest)


def combine(*trees: Mapping[str, Any]) -> Tree:
    """Return the union of trees with disjoint paths, the inverse of `partition`.

    Raises:
        ValueError: If two trees hold the same path.
    """
    union: dict[str, Any] = {}
    for tree in trees:
        flat = flatten(tree)
        shared = union.keys() & flat.keys()
        if shared:
            raise ValueError(f"{sorted(shared)[0]!r} is in more than one tree")
        union.update(flat)
    return unflatten(union)


def num_parameters(tree: Mapping[str, Any]) -> int:
    """Return the total number of elements of all leaves."""
    return sum(int(np.prod(leaf.shape)) for leaf in flatten(tree).values())


def num_bytes(tree: Mapping[str, Any]) -> int:
    """Return the total number of bytes of all leaves."""
    return sum(
        int(np.prod(leaf.shape)) * jax.numpy.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )
