"""EVA: the initial A of an adapter holds the directions in which its module's inputs vary most.

There are three parts. `include` adds a batch to the sketch of a module's inputs: their mean and
principal directions, whose size does not grow. `allocate` gives ranks to the modules whose
directions explain the largest shares of variance. `decided` writes these ranks as PEFT's patterns,
so that the network, the adapter's file and its readers need to know nothing of EVA.

Source: Paischer et al. 2024, "One Initialization to Rule them All", section 3;
`peft/tuners/lora/eva.py`, `peft/utils/incremental_pca.py: IncrementalPCA.partial_fit`.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from jaxft import tree as trees
from jaxft.config import LoraConfig
from jaxft.lora import numbers
from jaxft.models.families.family import Family
from jaxft.models.network import Network, read_by
from jaxft.weights import names

# Sweeps of subspace iteration for each batch. A sweep multiplies the error of a direction by a
# ratio of variances: that of the first direction that is not searched for, to its own.
_SWEEPS = 6
_SPARE = 16  # extra directions to search for, which keeps the ratio small if few are kept


class Sketch(NamedTuple):
    """A summary of a module's inputs: their mean, and the directions in which they vary most.

    Attributes:
        num_tokens: int32, the number of tokens seen.
        mean: float32 [i], the mean of the tokens seen.
        scatter: float32, the sum of the tokens' squared distances from the mean.
        directions: float32 [k i], the principal directions, orthonormal, in descending order of
            variance. The largest entry of each direction is positive, as in PEFT.
        spread: float32 [k], the singular value of each direction, of the centred inputs.
        likeness: float32 [k], the cosine between each direction and the one that it replaced in
            the last batch.
    """

    num_tokens: Int32[Array, ""]
    mean: Float[Array, " i"]
    scatter: Float[Array, ""]
    directions: Float[Array, "k i"]
    spread: Float[Array, " k"]
    likeness: Float[Array, " k"]


class Site(NamedTuple):
    """A module that is to be adapted.

    Attributes:
        module: The module.
        block: The path of the stacked layers that it is in, "groups/0/0"; "" outside the layers.
        slot: The index of its layer in the stack; 0 outside the layers.
        input: The path of the module whose input it shares, such as "attn/q" for "attn/k".
        rank: The rank that the recipe gives it.
        most: The largest rank that it can get.
    """

    module: names.Module
    block: str
    slot: int
    input: str
    rank: int
    most: int


def sites(asked: Network, base: Network, family: Family, rho: float) -> list[Site]:
    """Return the modules to be adapted, in the model's order.

    Args:
        asked: The network with adapters of the ranks that the recipe gives.
        base: The network without adapters, whose inputs are measured.
        family: The family of the model.
        rho: The largest rank of a module, as a multiple of the recipe's rank. Modules that read
            the same input share the largest of their limits. No rank exceeds the smaller dimension
            of its module.
    """
    asked_of = asked.places()
    places: dict[int | None, tuple[str, int]] = {
        layer: (block, slot)
        for block, _, layers in base.stacked_blocks()
        for slot, layer in enumerate(layers)
    } | {None: ("", 0)}
    found = [
        Site(module, *places[module.layer], read_by(module.path, asked.spec), adapter.width, 0)
        for module in names.linear_modules(family, asked.spec)
        if (adapter := asked_of[module.layer].adapters.get(module.path))
    ]
    widest: dict[tuple[str, int, str], int] = {}
    for site in found:
        key = site.block, site.slot, site.input
        widest[key] = max(widest.get(key, 0), round(site.rank * rho))
    return [
        site._replace(most=min(widest[site.block, site.slot, site.input], *site.module.dims))
        for site in found
    ]


def empty(sites: Sequence[Site], base: Network) -> dict[str, dict[str, Sketch]]:
    """Return empty sketches for the inputs of `sites`, in the form of `Decoder.fold_inputs`."""
    repeats = {block: len(layers) for block, _, layers in base.stacked_blocks()}
    kept: dict[str, dict[str, Sketch]] = {}
    by_place = sorted(sites, key=lambda site: (site.block, site.input))
    for (block, path), found in itertools.groupby(by_place, lambda site: (site.block, site.input)):
        same = list(found)
        width, num_in = max(site.most for site in same), same[0].module.dims[0]
        stack = (repeats[block],) if block else ()
        kept.setdefault(block, {})[path] = Sketch(
            num_tokens=jnp.zeros(stack, jnp.int32),
            mean=jnp.zeros((*stack, num_in)),
            scatter=jnp.zeros(stack),
            directions=jnp.zeros((*stack, width, num_in)),
            spread=jnp.zeros((*stack, width)),
            likeness=jnp.zeros((*stack, width)),
        )
    return kept


_times = functools.partial(jnp.matmul, precision="highest")


def include(sketch: Sketch, x: Float[Array, "b t i"], is_counted: Bool[Array, "b t"]) -> Sketch:
    """Return the sketch with the tokens of `x` added for which `is_counted` is true.

    The new directions are the principal directions of a matrix with three kinds of rows: the old
    directions times their spread, the new tokens minus their mean, and the scaled shift of the
    mean. Neither this matrix nor its product with itself is formed. Subspace iteration searches for
    more than twice as many directions as are kept, from the kept directions and random ones.
    """
    num_kept, num_in = sketch.directions.shape
    is_counted = is_counted[..., None]
    x = jnp.where(is_counted, x.astype(jnp.float32), 0.0)
    num_new = jnp.sum(is_counted, dtype=jnp.int32)
    new_mean = jnp.sum(x, axis=(0, 1)) / jnp.maximum(num_new, 1)
    tokens = jnp.where(is_counted, x - new_mean[None, None, :], 0.0).reshape(-1, num_in)
    count = sketch.num_tokens + num_new
    share = num_new / jnp.maximum(count, 1)
    moved = new_mean - sketch.mean
    step = jnp.sqrt(sketch.num_tokens * share) * moved
    rows = jnp.concatenate([sketch.directions * sketch.spread[:, None], step[None, :]])

    width = min(2 * num_kept + _SPARE, num_in)
    basis = jax.random.normal(jax.random.key(0), (num_in, width))
    basis = jnp.where(sketch.num_tokens > 0, basis.at[:, :num_kept].set(sketch.directions.T), basis)
    for _ in range(_SWEEPS):
        on_tokens, on_rows = _times(tokens, basis), _times(rows, basis)
        basis, _ = jnp.linalg.qr(_times(tokens.T, on_tokens) + _times(rows.T, on_rows))
    projected = jnp.concatenate([_times(tokens, basis), _times(rows, basis)])
    _, spread, turn = jnp.linalg.svd(projected, full_matrices=False)
    directions = _times(turn, basis.T)[:num_kept]
    largest = jnp.argmax(jnp.abs(directions), axis=1)
    directions *= jnp.sign(jnp.take_along_axis(directions, largest[:, None], axis=1))
    return Sketch(
        num_tokens=count,
        mean=sketch.mean + share * moved,
        scatter=sketch.scatter + jnp.sum(tokens**2) + jnp.sum(step**2),
        directions=directions,
        spread=spread[:num_kept],
        likeness=jnp.sum(directions * sketch.directions, axis=1),
    )


def sketch_of(site: Site, kept: Mapping[str, Mapping[str, Sketch]]) -> Sketch:
    """Return the sketch of a module's input; the arrays of `kept` are on the host."""
    stacked = kept[site.block][site.input]
    return Sketch(*(part[site.slot] for part in stacked)) if site.block else stacked


def ratios(site: Site, sketch: Sketch) -> np.ndarray:
    """Return the share of the input's variance that each of `site.most` directions explains."""
    spread = np.asarray(sketch.spread[: site.most], np.float64)
    return spread**2 / max(float(sketch.scatter), float(np.finfo(np.float32).tiny))


def allocate(ratios: Sequence[np.ndarray], budget: int) -> list[int]:
    """Return the rank of each module: how many of the `budget` largest ratios belong to it.

    Among equal ratios, those of earlier modules are taken first. So of the modules that read the
    same input, a later one never has a larger rank.

    Args:
        ratios: The ratios of each module, in descending order.
        budget: The sum of all ranks, at most the number of ratios.
    """
    owners = np.repeat(np.arange(len(ratios)), [len(each) for each in ratios])
    chosen = np.argsort(-np.concatenate(ratios), kind="stable")[:budget]
    return np.bincount(owners[chosen], minlength=len(ratios)).tolist()


def is_found(sketch: Sketch, rank: int, tau: float) -> bool:
    """Return whether each of the first `rank` directions has a likeness of at least `tau`."""
    return bool((np.asarray(sketch.likeness[:rank]) >= tau).all())


def beginning(sketch: Sketch, rank: int, *, whiten: bool) -> np.ndarray:
    """Return the initial A, float32 [rank, in]; `whiten` divides it by the root of the spread."""
    a = np.array(sketch.directions[:rank])
    return a / np.sqrt(np.asarray(sketch.spread[:rank]))[:, None] if whiten else a


def tables(asked: Network, family: Family) -> list[str]:
    """Return the names of adapted embedding tables; their inputs are ids, without directions."""
    outer = dict(asked.outer_adapters)
    modules = names.adaptable_modules(family, asked.spec)
    return [module.name for module in modules if module.is_table and module.path in outer]


def decided(
    config: LoraConfig, sites: Sequence[Site], ranks: Mapping[str, int], tables: Sequence[str]
) -> LoraConfig:
    """Return the config with the decided ranks, as patterns of full module names.

    A module of rank 0 is no longer a target.

    Args:
        config: The config of the recipe, which has an `eva_config`.
        sites: The modules whose ranks are decided.
        ranks: The rank of each module, by module name; a module that is not named has rank 0.
        tables: The names of adapted tables, which keep their ranks.

    Source: `peft/tuners/lora/eva.py: _load_eva_state_dict`.
    """
    assert config.eva_config is not None
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    kept = [numbers.by_pattern(config.rank_pattern, name, config.r) for name in tables]
    given = [
        *zip(tables, kept, kept, strict=True),
        *((site.module.name, site.rank, ranks.get(site.module.name, 0)) for site in sites),
    ]
    for name, asked, rank in given:
        alpha: float = numbers.by_pattern(config.alpha_pattern, name, config.lora_alpha)
        if rank != asked and config.eva_config.adjust_scaling_factors:
            alpha *= rank / asked
        if rank and rank != config.r:
            rank_pattern[name] = rank
        if rank and alpha != config.lora_alpha:
            alpha_pattern[name] = alpha
    fields: dict[str, Any] = {"rank_pattern": rank_pattern, "alpha_pattern": alpha_pattern}
    if len(adapted := [name for name, _, rank in given if rank]) < len(given):
        fields["target_modules"] = adapted
        fields |= dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern"))
    return config.model_copy(update=fields)


def begun(
    tree: Mapping[str, Any],
    directions: Mapping[str, np.ndarray],
    family: Family,
    network: Network,
) -> trees.Tree:
    """Return leaves with new initial values of A; those of tables stay.

    Args:
        tree: The leaves.
        directions: The new A [rank, in] of each module, by module name; in the layers, a module
            that is not named gets zeros.
        family: The family, which names the modules.
        network: The network, which says which adapters there are.
    """
    called = {
        (module.layer, module.path): module.name
        for module in names.linear_modules(family, network.spec)
    }
    leaves = trees.flatten(tree)
    nothing = np.zeros((0, 1), np.float32)

    def stacked(path: str, layers: Sequence[int], shape: Sequence[int]) -> np.ndarray:
        a = np.zeros(shape, np.float32)
        for index, layer in enumerate(layers):
            found = directions.get(called[layer, path], nothing)
            a[index, : len(found)] = found
        return a

    new = {
        (leaf := f"{block}/{path}/lora_a"): stacked(path, layers, leaves[leaf].shape)
        for block, described, layers in network.stacked_blocks()
        for path, _ in described.adapters
    } | {
        f"{path}/lora_a": directions[called[None, path]]
        for path, _ in network.outer_adapters
        if (None, path) in called
    }
    placed = {path: jax.device_put(a, leaves[path].sharding) for path, a in new.items()}
    return trees.unflatten(leaves | placed)
