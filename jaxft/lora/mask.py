"""The tuning method is a mask over the parameter tree: which leaves are trained, which frozen.

Trained are the leaves of every adapter, and those of the model's own leaves that the network
names (biases, rows of tokens, modules to save). Gradients, optimizer state, clipping norm and
checkpoints exist for the marked leaves alone.
"""

from collections.abc import Mapping
from typing import Any

from jaxft import tree as trees
from jaxft.leaves.address import Address
from jaxft.models.network import Network


def trainable_mask(network: Network, tree: Mapping[str, Any]) -> trees.Tree:
    """Return a tree of the same paths as `tree`, true at the leaves that are trained."""
    own = network.trained_leaves()
    return trees.map_with_path(lambda path, _: path in own or Address.parse(path).is_adapter, tree)
