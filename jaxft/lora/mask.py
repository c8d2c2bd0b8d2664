"""The mask over the parameter tree that says which leaves are trained and which are frozen.

The trained leaves are those of every adapter, and those of the model's own leaves that the network
names (biases, rows of tokens, modules to save). Gradients, optimizer state, the clipping norm and
the tuned weights of a checkpoint cover only these leaves.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxft import tree as trees
from jaxft.leaves.address import Address, within
from jaxft.models.bind import abstract_tree
from jaxft.models.network import Network


def trainable_mask(network: Network, tree: Mapping[str, Any]) -> trees.Tree:
    """Return a tree with the paths of `tree` that is true at the trained leaves."""
    own = network.trained_leaves()
    return trees.map_with_path(lambda path, _: path in own or Address.parse(path).is_adapter, tree)


class Parts(NamedTuple):
    """The leaves of a tree, divided by their role.

    Attributes:
        trainable: The trained leaves.
        started: The initial A0 and B0 of adapters that subtract their start.
        numbers: The scaling and the dropout of the adapters.
        frozen: The model's own leaves that are not trained.
    """

    trainable: trees.Tree
    started: trees.Tree
    numbers: trees.Tree
    frozen: trees.Tree


def parts(network: Network, tree: Mapping[str, Any]) -> Parts:
    """Divide a tree of `network` into its parts, whose union is the tree."""
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
    """Return the number of trained parameters, without the zeros beyond an adapter's rank."""
    leaves = trees.flatten(parts(network, abstract_tree(network)).trainable)
    count = trees.num_parameters(leaves)
    for block, layer, layers in network.stacked_blocks():
        for path, adapter in layer.adapters:
            num_zeros = adapter.width * len(layers) - sum(adapter.ranks)
            for part in adapter.parts:
                if part.role == "trained" and "rank" in part.axes:
                    count -= num_zeros * leaves[within(block, f"{path}/{part.name}")].shape[-1]
    return count
