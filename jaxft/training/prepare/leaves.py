"""The leaves that a run begins with, read no more often than need be.

What reads training rows before the first step wants the base alone; training wants it in the groups
of its own network, and perhaps rounded by what was read. `Leaves` keeps what it has while that
serves, and lets go of it before it reads anything else: it never has two bases.
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
    """A base model in memory, as its files have it.

    Attributes:
        network: The network in whose groups its layers are stacked.
        tree: The base's own leaves of that network; a quantized leaf has the nearest codes.
    """

    network: Network
    tree: trees.Tree


class Leaves:
    """The base's leaves while a run is prepared, and in the end all leaves of the run."""

    def __init__(self, base: Base, held: Held | None, tuned: InMemory | None) -> None:
        """Read nothing yet.

        Args:
            base: The base model.
            held: What is in memory of it, on the mesh of `base`; `None` for nothing.
            tuned: What is put in the place of fresh adapters and of the base's trained leaves.
        """
        self._base, self._held, self._tuned = base, held, tuned
        self._rounding: Plans | None = None
        self._is_read_here = False

    def bare(self) -> trees.Tree:
        """Return the leaves of the base without anything trained, in its own groups.

        Raises:
            WeightsError: If the weights cannot be read.
        """
        return self._own(base_network(self._base.spec)).tree

    def round_by(self, rounding: Plans) -> None:
        """Have the base be read anew for the run, and each slice of a 4-bit leaf rounded so."""
        self._rounding = rounding

    def begin(self, plan: Plan) -> trees.Tree:
        """Return all leaves as they are before the first step, and keep none of them.

        Raises:
            WeightsError: If the weights cannot be read.
            AdapterError: If a rank does not suit how the adapters begin.
        """
        if self._rounding is not None:
            self._held = None
        own, self._held = self._own(plan.network).tree, None
        self._rounding = None  # which is large
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
        """Return whether the own leaves of one network are those of another, dtypes included."""
        if held.trained_leaves() != wanted.trained_leaves():
            return False
        return _flat(self._base.abstract(held)) == _flat(self._base.abstract(wanted))


def overlaid(tree: trees.Tree, trained: Mapping[str, Any], mesh: Mesh) -> trees.Tree:
    """Return leaves with others put in their places or beside them, onto a mesh."""
    placed = jax.device_put(trained, rules.shardings(trained, mesh))
    return trees.unflatten({**trees.flatten(tree), **trees.flatten(placed)})


def _flat(tree: trees.Tree) -> tuple[Any, Any]:
    leaves, structure = jax.tree.flatten(tree)
    return leaves, structure
