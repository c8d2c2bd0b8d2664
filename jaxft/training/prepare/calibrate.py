"""Calibrates the rounding of a 4-bit base model on training rows, before the first step.

The weights are read twice. The first time each weight is rounded to the nearest code; this model
reads training rows, and the moments of the inputs of its matrices are accumulated. When training
begins, the weights are read again and rounded according to these moments. So memory never holds
more of the base than its codes and one tensor. The invariant: the same rows in the same order give
the same codes on the same devices, so that a resumed run has the base it began with. Devices that
round sums differently may give different codes; `folder` warns of that.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxft import console
from jaxft import tree as trees
from jaxft.data.batches.batch import Batches
from jaxft.leaves.address import Address
from jaxft.models.bind import abstract_tree
from jaxft.models.network import Network, base_network, read_by
from jaxft.parallel import mesh as meshes
from jaxft.training import objective
from jaxft.training.objective import CAUSAL_LM
from jaxft.training.prepare import inputs
from jaxft.weights import gptq, quantizing
from jaxft.weights.base import Base
from jaxft.weights.gptq import RoundingPlan
from jaxft.weights.quantizing import Plans


def rounding(
    base: Base, tree: Mapping[str, Any], network: Network, batches: Batches, num_tokens: int
) -> Plans:
    """Return the rounding plan of each 4-bit matrix of a network, from the inputs it reads.

    Args:
        base: The model, quantized to "nf4" or "int4".
        tree: The leaves of the base without anything trained, rounded to the nearest codes.
        network: The model's network, with adapters or without.
        batches: Training batches; they are read in order, for at most one epoch.
        num_tokens: The number of tokens to read; the last batch is read to its end.

    Raises:
        WeightsError: If the inputs of a matrix are not finite.
    """
    bare = base_network(network.spec)
    assert isinstance(base.mesh, Mesh), "what is loaded has devices"
    kept = moments(bare, tree, batches, num_tokens, mesh=base.mesh, dtype=base.dtype)
    layers = {block: indices for block, _, indices in network.stacked_blocks()}
    places = {
        layer: (block, repeat)
        for block, _, indices in bare.stacked_blocks()
        for repeat, layer in enumerate(indices)
    }

    @functools.cache  # several modules may read the same input
    def plan_of(block: str, path: str, repeat: int) -> RoundingPlan:
        return gptq.plan(kept[block][path][repeat])

    def of_slice(leaf: str, index: int) -> RoundingPlan:
        address = Address.parse(leaf)
        block, repeat = places[layers[address.block][index]]
        return plan_of(block, read_by(address.module, network.spec), repeat)

    return of_slice


def moments(
    bare: Network,
    tree: Mapping[str, Any],
    batches: Batches,
    num_tokens: int,
    *,
    mesh: Mesh,
    dtype: str,
) -> dict[str, dict[str, np.ndarray]]:
    """Return the moments of the inputs that modules read, [repeats n s s] on the host.

    Args:
        bare: A network without adapters.
        tree: All leaves of the network.
        batches: Training batches; they are read in order, for at most one epoch.
        num_tokens: The number of tokens to read; the last batch is read to its end.
        mesh: The devices that hold the leaves.
        dtype: The dtype of activations.

    Returns:
        The moments by block and by the path of the module whose input it is.
    """
    kept = jax.device_put(_empty(bare), meshes.replicated(mesh))
    include = inputs.make_include(bare, gptq.include, False, mesh=mesh, dtype=dtype)
    shardings = objective.batch_shardings(CAUSAL_LM, mesh)
    num_read = 0
    with console.loading("Calibrating: reading training rows", num_tokens) as count:
        for _, batch in batches.iterate(0, batches.steps_per_epoch or num_tokens):
            kept = jax.block_until_ready(
                include(kept, tree, jax.device_put(dict(batch), shardings))
            )
            here = int(np.sum(batch["segment_ids"] > 0))
            num_read += here
            count(here)
            if num_read >= num_tokens:
                break
    console.note(f"Calibrated on {num_read:,} tokens.")
    found: dict[str, dict[str, np.ndarray]] = jax.device_get(kept)
    return found


def _empty(bare: Network) -> dict[str, dict[str, np.ndarray]]:
    kept: dict[str, dict[str, np.ndarray]] = {}
    for leaf, shape in trees.flatten(abstract_tree(bare)).items():
        if quantizing.is_quantized(leaf):
            address = Address.parse(leaf)
            repeats, num_in, _ = shape.shape
            of_one = gptq.empty(num_in)
            read, zeros = read_by(address.module, bare.spec), (repeats, *of_one.shape)
            kept.setdefault(address.block, {})[read] = np.zeros(zeros, np.float32)
    return kept
