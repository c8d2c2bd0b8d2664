"""The leaves that a run begins with; they are read no more often than necessary.

EVA and calibration read training rows before the first step and need the base alone. Training needs
the base stacked in the groups of its own network, and perhaps rounded by the calibration. `Leaves`
keeps the leaves it has read while they can be used, and releases them before it reads others: it
never holds two copies of the base.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxft import tree as trees
from jaxft.lora import eva, starts
from jaxft.models.network import Network, base_network
from jaxft.parallel import rules
from jaxft.training.prepare.plan import Plan
from jaxft.training.prepare.request import InMemory
from jaxft.weights import base as bases
from jaxft.weights.base import Base
from jaxft.weights.quantizing import Plans


class Held(NamedTuple):
    """A base model in memory, with the weights of its files.

    Attributes:
        network: The network whose groups decide how the layers are stacked.
        tree: The base's own leaves of that network; a quantized leaf has the nearest codes.
    """

    network: Network
    tree: trees.Tree


class Leaves:
    """Provides the base's leaves while a run is prepared, and then all leaves of the run."""

    def __init__(self, base: Base, held: Held | None, tuned: InMemory | None) -> None:
        """Keep the arguments; nothing is read yet.

        Args:
            base: The base model.
            held: The base model in memory, on the mesh of `base`; `None` if it is not in memory.
            tuned: The tuned leaves that replace fresh adapters and the base's trained leaves;
                `None` for a fresh start.
        """
        self._base, self._held, self._tuned = base, held, tuned
        self._rounding: Plans | None = None
        self._is_read_here = False

    def bare(self) -> trees.Tree:
        """Return the leaves of the base model alone, stacked in the groups of the base network.

        Raises:
            WeightsError: If the weights cannot be read.
        """
        return self._own(base_network(self._base.spec)).tree

    def round_by(self, rounding: Plans) -> None:
        """Have the base read again for the run, each slice of a 4-bit leaf rounded by its plan."""
        self._rounding = rounding

    def begin(self, plan: Plan) -> trees.Tree:
        """Return all leaves before the first step, and release those that are kept.

        Raises:
            WeightsError: If the weights cannot be read.
            AdapterError: If a rank does not suit the initialisation of the adapters.
        """
        if self._rounding is not None:
            self._held = None
        own, self._held = self._own(plan.network).tree, None
        self._rounding = None  # it is large
        if self._is_read_here:
            bases.note_quantized(own)
        if self._tuned is not None:
            return overlaid(own, self._tuned.leaves, plan.mesh)
        lora, seed = plan.config.lora, plan.config.train.seed
        tree = starts.with_adapters(own, plan.family, plan.network, lora, seed=seed, mesh=plan.mesh)
        if plan.directions is None:
            return tree
        return eva.begun(tree, plan.directions, plan.family, plan.network)

    def _own(self, network: Network) -> Held:
        if self._held is None or not self._serves(self._held.network, network):
            self._held = None
            self._held = Held(network, self._base.load(network, self._rounding))
            self._is_read_here = True
        return self._held

    def _serves(self, held: Network, wanted: Network) -> bool:
        """Return whether the base's leaves of two networks are the same, dtypes included."""
        if held.trained_leaves() != wanted.trained_leaves():
            return False
        return _flat(self._base.abstract(held)) == _flat(self._base.abstract(wanted))


def overlaid(tree: trees.Tree, trained: Mapping[str, Any], mesh: Mesh) -> trees.Tree:
    """Return a tree with the trained leaves replaced or added, sharded over a mesh."""
    placed = jax.device_put(trained, rules.shardings(trained, mesh))
    return trees.unflatten({**trees.flatten(tree), **trees.flatten(placed)})


def _flat(tree: trees.Tree) -> tuple[Any, Any]:
    leaves, structure = jax.tree.flatten(tree)
    return leaves, structure
