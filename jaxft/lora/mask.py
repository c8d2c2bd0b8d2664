"""The tuning method is a mask over the parameter tree: which leaves are trained, which frozen.

Trained are the leaves of every adapter, and those of the model's own leaves that the network
names (biases, rows of tokens, modules to save). Gradients, optimizer state, clipping norm and
checkpoints exist for the marked leaves alone.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxft import tree as trees
from jaxft.leaves.address import Address, within
from jaxft.models.bind import abstract_tree
from jaxft.models.network import Network


def trainable_mask(network: Network, tree: Mapping[str, Any]) -> trees.Tree:
    """Return a tree of the same paths as `tree`, true at the leaves that are trained."""
    own = network.trained_leaves()
    return trees.map_with_path(lambda path, _: path in own or Address.parse(path).is_adapter, tree)


class Parts(NamedTuple):
    """The leaves of a tree by what becomes of them.

    Attributes:
        trainable: The trained leaves.
        started: What adapters began as, A0 and B0.
        numbers: Scaling and dropout of the adapters.
        frozen: The model's own leaves that are not trained.
    """

    trainable: trees.Tree
    started: trees.Tree
    numbers: trees.Tree
    frozen: trees.Tree


def parts(network: Network, tree: Mapping[str, Any]) -> Parts:
    """Return the parts of a tree of `network`; their union is the tree."""
    own = network.trained_leaves()

    def part(path: str) -> int:
        address = Address.parse(path)
        if path in own or address.is_adapter:
            return 0
        return 1 if address.is_start else 2 if address.is_number else 3

    leaves = trees.flatten(tree)
    return Parts(
        *(
            trees.unflatten({path: leaf for path, leaf in leaves.items() if part(path) == index})
            for index in range(len(Parts._fields))
        )
    )


def num_trained(network: Network) -> int:
    """Return the number of trained parameters, zeros beyond the rank of an adapter not counted."""
    leaves = trees.flatten(parts(network, abstract_tree(network)).trainable)
    count = trees.num_parameters(leaves)
    for block, layer, layers in network.stacked_blocks():
        for path, adapter in layer.adapters:
            num_zeros = adapter.width * len(layers) - sum(adapter.ranks)
            for part in adapter.parts:
                if part.role == "trained" and "rank" in part.axes:
                    count -= num_zeros * leaves[within(block, f"{path}/{part.name}")].shape[-1]
    return count
