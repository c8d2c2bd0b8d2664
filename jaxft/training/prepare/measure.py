"""Measures ranks and directions for `init_lora_weights: eva`, before the first step.

The base reads training batches here; `lora.eva` computes ranks from the inputs of its modules. A
module without a rank gets no adapter, which may change how layers are grouped. So ranks are decided
before the weights are loaded for training: the base is measured in its own groups, and a 4-bit base
before it is calibrated. The invariant: a resumed run has the ranks of its checkpoints, whatever
this machine would measure.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy
from jax.sharding import Mesh

from jaxft import console
from jaxft import tree as trees
from jaxft.adapters import kinds
from jaxft.config import EvaConfig, LoraConfig
from jaxft.data.batches.batch import Batches
from jaxft.errors import AdapterError, CheckpointError
from jaxft.lora import eva, targets, tying
from jaxft.lora.eva import Site
from jaxft.models.network import Network, base_network
from jaxft.parallel import mesh as meshes
from jaxft.training import checkpoint, objective
from jaxft.training.objective import CAUSAL_LM
from jaxft.training.prepare import inputs
from jaxft.training.prepare.leaves import Leaves
from jaxft.training.prepare.plan import Plan, checkpoints_in
from jaxft.training.prepare.request import Request
from jaxft.weights.base import Base

FILE = "eva.safetensors"  # A of each module by its full name: `eva_state_dict` in PEFT
_MAX_BATCHES = 200  # after this many, another batch changes the directions only by chance


class Measured(NamedTuple):
    """The result of measuring some batches.

    Attributes:
        directions: A [rank, in] for each module that gets a rank, by its full name.
        ranks: The rank of each module, by its full name; 0 for a module without an adapter.
        num_found: The number of modules whose directions have converged.
        num_tokens: The number of tokens measured.
        num_batches: The number of batches measured.
    """

    directions: dict[str, np.ndarray]
    ranks: dict[str, int]
    num_found: int
    num_tokens: int
    num_batches: int


class Decided(NamedTuple):
    """The adapters that are trained, with their final ranks.

    Attributes:
        lora: The config of the adapters; measured ranks are patterns of full module names.
        network: The network with these adapters.
        directions: The initial A [rank, in] of each module, by its full name; `None` if A is drawn
            at random.
    """

    lora: LoraConfig
    network: Network
    directions: Mapping[str, np.ndarray] | None


def decided(request: Request, train: Batches, leaves: Leaves) -> Decided:
    """Return the adapters to train; their ranks are measured if the recipe asks for it.

    If the run's folder has checkpoints, their ranks are used. An adapter in memory keeps its ranks.

    Args:
        request: The request of the run.
        train: The training batches.
        leaves: Provide the base model that is measured.

    Raises:
        CheckpointError: If the folder has checkpoints, but no ranks that fit them.
        AdapterError: If there are too few tokens to measure.
        WeightsError: If the base model cannot be read.
    """
    asked, base = request.config.lora, request.base
    if request.tuned is not None:
        return Decided(request.tuned.lora, request.network, None)
    if asked.eva_config is None:
        return Decided(asked, request.network, None)
    bare = base_network(base.spec)
    sites = eva.sites(request.network, bare, base.family, asked.eva_config.rho)
    folder = request.config.train.output_dir
    if checkpoint.saved_steps(checkpoints_in(folder)):
        directions = _read(folder / FILE, sites)
    else:
        directions = _measured(base, train, leaves.bare(), sites, asked.eva_config)
    ranks = {name: len(a) for name, a in directions.items()}
    tables = eva.tables(request.network, base.family)
    lora = eva.decided(asked, sites, ranks, tables)
    if tying.of(asked, base.family, base.spec) is None:
        # The list of names could tie more than the recipe does.
        lora = lora.model_copy(update={"ensure_weight_tying": False})
    return Decided(lora, targets.adapted_network(lora, base.family, base.spec), directions)


def write(plan: Plan) -> None:
    """Write the directions to the run's folder, if they were measured."""
    if plan.directions is None:
        return
    new = plan.folder / f".{FILE}"
    safetensors.numpy.save_file(dict(plan.directions), new)
    os.replace(new, plan.folder / FILE)


def _read(path: Path, sites: list[Site]) -> dict[str, np.ndarray]:
    try:
        directions = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise _unusable(path, f"cannot be read ({error})") from None
    by_name = {site.module.name: site for site in sites}
    for name, a in directions.items():
        site = by_name.get(name)
        num_in, most = (site.module.dims[0], site.most) if site else (0, 0)
        if a.ndim != 2 or a.shape[1] != num_in or not 1 <= len(a) <= most:
            raise _unusable(path, f"has {name} {a.shape}, which the recipe does not adapt so")
    given, budget = sum(map(len, directions.values())), sum(site.rank for site in sites)
    if given != budget:
        raise _unusable(path, f"has {given} ranks in all, where the recipe gives {budget}")
    return directions


def _unusable(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"{path}, with the ranks of the checkpoints beside it, {found}.",
        "Copy it there anew, or choose another train.output_dir.",
    )


def _measured(
    base: Base, train: Batches, tree: trees.Tree, sites: list[Site], config: EvaConfig
) -> dict[str, np.ndarray]:
    """Measure, print the ranks, and return A [rank, in] of each module with a rank."""
    # One epoch is enough, but at least 2 batches: convergence shows only at the second.
    limit = min(max(train.steps_per_epoch or _MAX_BATCHES, 2), _MAX_BATCHES)
    with console.loading("Measuring what modules read (EVA)", limit) as count:
        batches = (batch for _, batch in train.iterate(0, limit))
        where: Any = {"mesh": base.mesh, "dtype": base.dtype}
        found = measured(batches, tree, base_network(base.spec), sites, config, count, **where)
    _show(found)
    return found.directions


def measured(
    batches: Iterable[Mapping[str, Any]],
    tree: Mapping[str, Any],
    bare: Network,
    sites: list[Site],
    config: EvaConfig,
    progress: Callable[[int], None],
    *,
    mesh: Mesh,
    dtype: str,
) -> Measured:
    """Measure batches until all directions in use have converged, or the batches end.

    Args:
        batches: Batches as a training step takes them, [a b t], at least one.
        tree: The leaves of the base model.
        bare: The network of the base model.
        sites: The modules to adapt.
        config: The options of EVA.
        progress: Called with 1 after each batch.
        mesh: The devices that hold the leaves.
        dtype: The dtype of the computation.

    Raises:
        AdapterError: If there are too few tokens.
    """
    kept = jax.device_put(eva.empty(sites, bare), meshes.replicated(mesh))
    include = inputs.make_include(bare, eva.include, config.use_label_mask, mesh=mesh, dtype=dtype)
    shardings = objective.batch_shardings(CAUSAL_LM, mesh)
    budget, num_batches = sum(site.rank for site in sites), 0
    for batch in batches:
        kept = include(kept, tree, jax.device_put(dict(batch), shardings))
        host = jax.device_get(kept)
        sketches = [eva.sketch_of(site, host) for site in sites]
        ratios = [eva.ratios(*each) for each in zip(sites, sketches, strict=True)]
        ranks = eva.allocate(ratios, budget)
        by_site = list(zip(sites, sketches, ranks, strict=True))
        num_found = sum(eva.is_found(sketch, rank, config.tau) for _, sketch, rank in by_site)
        num_batches += 1
        progress(1)
        if num_found == len(sites):
            break
    num_tokens = int(sketches[0].num_tokens)
    _check_number(num_tokens, sites)
    return Measured(
        directions={
            site.module.name: eva.beginning(sketch, rank, whiten=config.whiten)
            for site, sketch, rank in by_site
            if rank
        },
        ranks={site.module.name: rank for site, _, rank in by_site},
        num_found=num_found,
        num_tokens=num_tokens,
        num_batches=num_batches,
    )


def _check_number(num_tokens: int, sites: list[Site]) -> None:
    most = max(site.most for site in sites)
    if num_tokens <= most:
        raise AdapterError(
            f"lora.init_lora_weights is eva, and {num_tokens} tokens were measured, in which to "
            f"find up to {most} directions.",
            "Use more rows, a smaller lora.r or rho, or use_label_mask=false in lora.eva_config.",
        )


def _show(found: Measured) -> None:
    """Print the ranks for each kind of module, in the order of the layers."""
    ranks, num_modules = list(found.ranks.values()), len(found.ranks)
    console.note(
        f"EVA: {found.num_tokens:,} tokens in {found.num_batches} batches; ranks from "
        f"{min(ranks)} to {max(ranks)}, {sum(ranks):,} over {num_modules} modules; "
        f"{ranks.count(0)} get no adapter:"
    )
    for kind, modules in kinds.grouped(found.ranks).items():
        given = [found.ranks[module] for module in modules]
        mean = sum(given) / len(given)
        console.note(f"  {kind}: {mean:.1f} on average, by layer {' '.join(map(str, given))}")
    if found.num_found < num_modules:
        console.warning(
            f"the directions of {num_modules - found.num_found} modules had not come to rest "
            f"after {found.num_batches} batches (lora.eva_config.tau); they are used as they are."
        )
