"""Recovers the base of a tuned model, its network and leaves, without loading it a second time.

Adapters are left out, not multiplied by zero, so the base is computed as if they had never existed.
The base needs the originals of the model's own trained leaves: their values before the first step.
A compiled step has them in a branch of the frozen leaves: ``originals/head/kernel`` is the original
of ``head/kernel``.
"""

from collections.abc import Mapping
from typing import Any

from jaxft import tree as trees
from jaxft.leaves.address import Address
from jaxft.models.network import Network

_BRANCH = "originals"


def with_originals(
    network: Network, frozen: Mapping[str, Any], began: Mapping[str, Any]
) -> trees.Tree:
    """Return the frozen leaves together with the originals of the model's own trained leaves.

    Args:
        network: The tuned model.
        frozen: Its leaves that are not trained.
        began: The trained leaves before the first step; leaves of adapters are ignored.
    """
    own, leaves = network.trained_leaves(), trees.flatten(began)
    originals = {path: leaf for path, leaf in leaves.items() if path in own}
    return {**frozen, _BRANCH: trees.unflatten(originals)} if originals else dict(frozen)


def split(tree: Mapping[str, Any]) -> tuple[trees.Tree, trees.Tree]:
    """Return the leaves of the model, and the originals that `with_originals` added to them."""
    leaves = {name: branch for name, branch in tree.items() if name != _BRANCH}
    return leaves, dict(tree.get(_BRANCH, {}))


def base_tree(
    network: Network, tree: Mapping[str, Any], originals: Mapping[str, Any]
) -> trees.Tree:
    """Return the leaves of the base, which are the leaves of ``network.untuned()``.

    Args:
        network: The tuned model.
        tree: Its leaves.
        originals: The model's own trained leaves (biases, norms, saved modules) before the first
            step; other leaves are ignored.

    Raises:
        ValueError: If the original of a trained leaf is missing.
    """
    trained, kept = network.trained_leaves(), trees.flatten(originals)
    base = {}
    for path, leaf in trees.flatten(tree).items():
        if not Address.parse(path).is_own:
            continue
        if path == "head/kernel" and network.unties_head and network.spec.tied_head:
            continue  # the base's head is its embedding
        if path in trained:
            if path not in kept:
                raise ValueError(
                    f"the base needs the original of {path!r}, which was not kept: an objective "
                    "asks for it by needs_base"
                )
            leaf = kept[path]
        base[path] = leaf
    return trees.unflatten(base)
