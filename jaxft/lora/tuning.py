"""Chooses the trained parts of a model: adapters, the whole model, or parts that a recipe names.

Separate from `targets`, which follows PEFT's rules: with the methods of this module a tied head
stays tied, and nothing is copied. The rest of the program sees only a network and its mask.
"""

import re
from collections.abc import Sequence

from jaxft.config import LoraConfig, TuningConfig
from jaxft.errors import ConfigError, nearest
from jaxft.lora import targets, tying
from jaxft.models.families.family import Family
from jaxft.models.network import Network, Tuning, build_network
from jaxft.models.spec import ModelSpec
from jaxft.weights import names


def tuned_network(
    tuning: TuningConfig, lora: LoraConfig, family: Family, spec: ModelSpec
) -> Network:
    """Describe `spec` with its trained parts.

    Raises:
        AdapterError: If `lora` is not possible for the model, or lists a module both as a target
            and as a module to save.
        ConfigError: If `tuning` names a module or a layer that does not exist.
    """
    if tuning.method == "lora":
        targets.refuse_collisions(lora, family, spec)
        tying.warn_if_idle(lora, family, spec)
        return targets.adapted_network(lora, family, spec)
    owned = names.owned_leaves(family, spec)
    chosen = owned if tuning.method == "full" else _chosen(tuning, owned, len(spec.blocks))
    # A tied head is the embedding.
    tied = {"head/kernel": "embed/kernel"} if spec.tied_head else {}

    def trained(layer: int | None) -> Tuning:
        leaves = {leaf for one in chosen if one.layer == layer for leaf in one.leaves}
        return Tuning({}, {tied.get(leaf, leaf) for leaf in leaves})

    layers = [trained(layer) for layer in range(len(spec.blocks))]
    return build_network(spec, layers, trained(None), unties_head=False)


def _chosen(
    tuning: TuningConfig, owned: Sequence[names.Owned], num_layers: int
) -> list[names.Owned]:
    """Return the leaves that `freeze` trains: those of the given modules in the given layers.

    Modules outside the layers are trained if they are named, whatever layers are given.
    """
    layers = None if tuning.layers is None else _counted(tuning.layers, num_layers)
    if tuning.modules is None:
        return [one for one in owned if layers is not None and one.layer in layers]
    named = _named(tuning.modules, owned)
    return [one for one in named if layers is None or one.layer is None or one.layer in layers]


def _counted(layers: Sequence[int], num_layers: int) -> set[int]:
    wrong = [layer for layer in layers if not -num_layers <= layer < num_layers]
    if wrong:
        raise ConfigError(
            f"tuning.layers has {', '.join(map(str, wrong))}: the model has {num_layers} layers.",
            f"Count from 0 to {num_layers - 1}, or from the end, from -1 to {-num_layers}.",
        )
    return {layer % num_layers for layer in layers}


def _named(modules: list[str] | str, owned: Sequence[names.Owned]) -> list[names.Owned]:
    """Return the leaves of the named modules and of the modules inside them."""
    if isinstance(modules, str):
        try:
            pattern = re.compile(modules)
        except re.error as error:
            raise ConfigError(
                f"tuning.modules is {modules!r}, which is no regular expression: {error}.",
                "Give a list of name endings, such as [mlp, lm_head], or mend the expression.",
            ) from None
        found = [one for one in owned if pattern.fullmatch(one.module)]
        _check(modules, found, owned)
        return found
    for ending in modules:
        _check(ending, [one for one in owned if _lies_in(one.module, ending)], owned)
    return [one for one in owned if any(_lies_in(one.module, ending) for ending in modules)]


def _lies_in(module: str, ending: str) -> bool:
    return f".{ending}." in f".{module}."


def _check(named: str, found: Sequence[names.Owned], owned: Sequence[names.Owned]) -> None:
    if found:
        return
    every = dict.fromkeys(part for one in owned for part in one.module.split("."))
    parts = [part for part in every if not part.isdigit()]
    close = nearest(named, parts)
    hint = f"Did you mean {close!r}? " if close else ""
    raise ConfigError(
        f"tuning.modules has {named!r}, which matches no module of this model.",
        f"{hint}Its modules are made of {', '.join(parts)}.",
    )
