"""Before the first step over a 4-bit base: how its matrices are rounded to suit the training rows.

The weights are read twice. First each is rounded to the nearest code, and this model reads training
rows while the moments of its matrices' inputs are gathered; then they are read again and rounded by
these. So at no time is there more of the base than its codes and one tensor. The invariant: the
same rows, in the same order, give the same codes on the same devices, so a run that goes on there
has the base it began with. Where sums are rounded otherwise a code may differ; `folder` says so.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxft import console
from jaxft import tree as trees
from jaxft.data.batches.batch import Batches
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

_LEAF = re.compile(r"(groups/\d+/\d+)/(.+)/kernel")


def rounding(base: Base, network: Network, batches: Batches, num_tokens: int) -> Plans:
    """Return how each matrix of a network is rounded to 4 bits, by what the base reads.

    Args:
        base: The model, quantized to "nf4" or "int4".
        network: Its network, with adapters or without.
        batches: Training rows; they are read in their order, no further than one epoch.
        num_tokens: How many tokens are enough; batches are read whole.

    Raises:
        WeightsError: If the base model cannot be read, or what it reads is not finite.
    """
    bare = base_network(network.spec)
    tree = base.load(bare)
    assert isinstance(base.mesh, Mesh), "what is loaded has devices"
    kept = moments(bare, tree, batches, num_tokens, mesh=base.mesh, dtype=base.dtype)
    layers = {(prefix, repeat): layer for layer, (prefix, repeat, _) in network.places().items()}
    places = bare.places()

    @functools.cache  # several modules read one input
    def plan_of(block: str, path: str, repeat: int) -> RoundingPlan:
        return gptq.plan(kept[block][path][repeat])

    def of_slice(leaf: str, index: int) -> RoundingPlan:
        block, path = _split(leaf)
        prefix, repeat, _ = places[layers[f"{block}/", index]]
        assert repeat is not None, "what is quantized lies in layers"
        return plan_of(prefix.removesuffix("/"), read_by(path, network.spec), repeat)

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
    """Return the moments of what is read, by block and path, [repeats n s s] on the host.

    Args:
        bare: A network without adapters.
        tree: Its leaves.
        batches: As in `rounding`, and so is `num_tokens`.
        num_tokens: See there.
        mesh: Where the leaves live.
        dtype: dtype of activations.
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
            block, path = _split(leaf)
            repeats, num_in, _ = shape.shape
            of_one = gptq.empty(num_in)
            read = read_by(path, bare.spec)
            kept.setdefault(block, {})[read] = np.zeros((repeats, *of_one.shape), np.float32)
    return kept


def _split(leaf: str) -> tuple[str, str]:
    """Return block and module, "groups/0/0" and "attn/q", of the path of a quantized leaf."""
    found = _LEAF.fullmatch(leaf)
    assert found, f"{leaf} is quantized and in no layer"
    return found[1], found[2]
