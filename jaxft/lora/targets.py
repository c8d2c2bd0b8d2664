"""Chooses the modules that a `LoraConfig` adapts, by PEFT's rules for Hugging Face module names.

Source: `peft/tuners/tuners_utils.py: check_target_module_exists` (a list matches a name or its
ending after a dot, a string is a regular expression for the whole name) and
`_maybe_include_all_linear_layers` ("all-linear" is every linear module but the output embedding).
"""

import re
from collections.abc import Sequence

from jaxft.config import LoraConfig
from jaxft.errors import AdapterError, nearest
from jaxft.leaves.address import Address
from jaxft.lora import numbers, tying
from jaxft.models.families.family import Family
from jaxft.models.network import EMBED, HEAD, Adapter, Network, Tuning, build_network
from jaxft.models.spec import ModelSpec
from jaxft.weights import names

ALL_LINEAR = "all-linear"
_PATTERNS = ("rank_pattern", "alpha_pattern")


def adapted_network(config: LoraConfig, family: Family, spec: ModelSpec) -> Network:
    """Describe `spec` with the adapters, and the trained leaves, that `config` asks for.

    A module that is trained as a whole gets no adapter, as in PEFT.

    Raises:
        AdapterError: If a target matches no module, or a choice is not supported for a module.
    """
    for field in _PATTERNS:
        for key in getattr(config, field):
            _compiled(key, field)
    owned = names.owned_leaves(family, spec)
    tie = tying.of(config, family, spec)
    saved = _saved_modules(config.modules_to_save or [], owned)
    if tie == "saved":  # trained as one leaf, the embedding's
        saved = saved - {family.head_name} | {tying.embedding_module(family)}
    modules = targeted(config, family, spec)
    adapted = {module: _adapter(config, module) for module in modules if module.name not in saved}
    _check_patterns(config, [module.name for module in adapted])
    with_trained_bias = {
        "none": frozenset[str](),
        "lora_only": frozenset(module.name for module in adapted),
        "all": frozenset(one.module for one in owned),
    }[config.bias]

    def tuning(layer: int | None) -> Tuning:
        leaves = [
            leaf
            for one in owned
            for leaf in one.leaves
            if one.layer == layer
            and (
                one.module in saved
                or (Address.parse(leaf).part == "bias" and one.module in with_trained_bias)
            )
        ]
        adapters = {one.path: adapter for one, adapter in adapted.items() if one.layer == layer}
        return Tuning(adapters, leaves)

    outside = tuning(None)
    # PEFT trains a copy of a tied head or embedding; the other of the two keeps its weight.
    is_copied = not {"head/kernel", "embed/kernel"}.isdisjoint(outside.leaves)
    layers = [tuning(layer) for layer in range(len(spec.blocks))]
    if config.init_lora_weights == "eva" and not config.use_dora:
        modules = names.linear_modules(family, spec)
        layers = _filled_up(layers, [each for each in modules if each.name not in saved])
    unties_head = spec.tied_head and is_copied and tie != "saved"
    network = build_network(spec, layers, outside, unties_head=unties_head)
    return tying.completed(config, family, network)


def _filled_up(layers: Sequence[Tuning], modules: Sequence[names.Module]) -> list[Tuning]:
    """Return the tuning of each layer, with adapters of rank 0 on modules that EVA left out.

    These adapters do nothing, but let layers with and without an adapter on a module be one group.
    None is added below the first layer that has an adapter, or above the last.

    Args:
        layers: The tuning of each layer.
        modules: The modules that may have an adapter.
    """
    adapted = [index for index, layer in enumerate(layers) if layer.adapters]
    kinds = {path: adapter for layer in layers for path, adapter in layer.adapters.items()}
    filled = list(layers)
    for module in modules:
        index = module.layer
        if index is not None and module.path in kinds and adapted[0] <= index <= adapted[-1]:
            nothing = {module.path: kinds[module.path].of_ranks((0,))}
            adapters = {**nothing, **filled[index].adapters}
            filled[index] = Tuning(adapters, filled[index].leaves)
    return filled


def refuse_collisions(config: LoraConfig, family: Family, spec: ModelSpec) -> None:
    """Refuse a config that lists a module both as a target and as a module to save.

    PEFT silently does not adapt such a module. Files that PEFT wrote are not checked: they are read
    with the meaning that they have in PEFT.

    Raises:
        AdapterError: If a module is in both lists.
    """
    if not isinstance(config.target_modules, list) or not config.modules_to_save:
        return
    saved = _saved_modules(config.modules_to_save, names.owned_leaves(family, spec))
    modules = targeted(config, family, spec)
    both = [module.name for module in modules if module.name in saved]
    if both:
        more = f" and {len(both) - 1} more" if len(both) > 1 else ""
        raise AdapterError(
            f"lora.target_modules and lora.modules_to_save both name {both[0]}{more}: a module is "
            "adapted or trained as a whole.",
            "Take it out of one of them, or name it in lora.exclude_modules.",
        )


def _saved_modules(endings: Sequence[str], owned: Sequence[names.Owned]) -> frozenset[str]:
    """Return the names of the modules that are trained as a whole, given endings of names.

    An ending may begin inside a word: "norm" matches every norm, also "input_layernorm".

    Raises:
        AdapterError: If an ending matches no module.

    Source: `peft/utils/other.py: _set_trainable`.
    """
    all_names = dict.fromkeys(one.module for one in owned)
    for ending in endings:
        if not any(name.endswith(ending) for name in all_names):
            last = dict.fromkeys(name.rpartition(".")[2] for name in all_names)
            close = nearest(ending, last)
            hint = f"Did you mean {close!r}? " if close else ""
            raise AdapterError(
                f"lora.modules_to_save has {ending!r}, which matches no module of this model.",
                f"{hint}It has {', '.join(last)}.",
            )
    return frozenset(name for name in all_names if name.endswith(tuple(endings)))


def _adapter(config: LoraConfig, module: names.Module) -> Adapter:
    """Return the adapter on a module.

    Raises:
        AdapterError: If the module cannot have this adapter.
    """
    adapter = Adapter(
        ranks=(numbers.of(config, module.name).rank,),
        bias=config.lora_bias,
        # On a table, PEFT's adapters have no dropout and do not begin with a part of the weights.
        subtracts_start=config.begins_with_weights and not module.is_table,
        is_dora=config.use_dora,
        drops=config.lora_dropout > 0 and not module.is_table,
    )
    _check(config, module, adapter)
    return adapter


def _check_patterns(config: LoraConfig, adapted: Sequence[str]) -> None:
    for field in _PATTERNS:
        for key in getattr(config, field):
            if not any(numbers.fits_pattern(key, name) for name in adapted):
                raise AdapterError(
                    f"lora.{field} has {key!r}, which matches no adapted module.",
                    f"Adapted are modules such as {', '.join(adapted[:3])}.",
                )


def targeted(config: LoraConfig, family: Family, spec: ModelSpec) -> list[names.Module]:
    """Return the modules that a config targets, without those that it excludes.

    If the embedding and the head share one adapter, both are returned.

    Raises:
        AdapterError: If a target, an exclusion or a layer matches nothing.
    """
    modules = names.adaptable_modules(family, spec)
    chosen = select(modules, target_modules(config, family))
    if tying.of(config, family, spec) == "adapters":
        chosen = [each for each in modules if each in chosen or each.path in (EMBED, HEAD)]
    excluded: list[names.Module] = []
    if config.exclude_modules is not None:
        excluded = select(modules, config.exclude_modules, field="exclude_modules")
    kept = [module for module in _in_layers(config, chosen, modules) if module not in excluded]
    if not kept and not config.modules_to_save:
        raise AdapterError(
            "lora.exclude_modules leaves no module to adapt.", "Exclude less, or target more."
        )
    tying.check(config, family, spec, kept)
    return kept


def _in_layers(
    config: LoraConfig, chosen: list[names.Module], modules: Sequence[names.Module]
) -> list[names.Module]:
    """Return the modules of `chosen` that are in `layers_to_transform`; all if that is `None`.

    Source: `peft/tuners/tuners_utils.py: check_target_module_exists`.
    """
    wanted = config.layers_to_transform
    if wanted is None:
        return chosen
    layers = {wanted} if isinstance(wanted, int) else set(wanted)
    counted = layers_of(config, modules)
    missing = layers - set(counted.values())
    if missing:
        there = sorted({layer for layer in counted.values() if layer is not None})
        raise AdapterError(
            f"lora.layers_to_transform has {', '.join(map(str, sorted(missing)))}: no such layer "
            f"(with layers_pattern={config.layers_pattern!r}).",
            f"Its layers are {there[0]} to {there[-1]}."
            if there
            else "Name the list of layers as it stands in module names such as "
            f"{modules[0].name}, or leave layers_pattern out.",
        )
    return [module for module in chosen if counted[module.name] in layers]


def layers_of(config: LoraConfig, modules: Sequence[names.Module]) -> dict[str, int | None]:
    """Return the layer of each module, by module name, as `layers_to_transform` counts them."""
    patterns = config.layers_pattern or [r"[^.]*"]
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return {module.name: _layer_by(patterns, module.name) for module in modules}


def _layer_by(patterns: Sequence[str], name: str) -> int | None:
    found = (re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name) for pattern in patterns)
    return next((int(each.group(1)) for each in found if each), None)


def target_modules(config: LoraConfig, family: Family) -> list[str] | str:
    """Return the targets of a config; `None` becomes PEFT's default for the family."""
    return list(family.default_targets) if config.target_modules is None else config.target_modules


def select(
    modules: Sequence[names.Module], targets: list[str] | str, *, field: str = "target_modules"
) -> list[names.Module]:
    """Return the modules that `targets`, the value of a field, matches.

    Raises:
        AdapterError: If a target matches nothing (the message lists possible names), or is not a
            valid regular expression.
    """
    if targets == ALL_LINEAR:
        return [module for module in modules if module.path != HEAD and not module.is_table]
    if isinstance(targets, str):
        pattern = _compiled(targets, field)
        chosen = [module for module in modules if pattern.fullmatch(module.name)]
        if not chosen:
            raise _no_match(targets, modules, field)
        return chosen
    for target in targets:
        if not any(ends_with(module.name, target) for module in modules):
            raise _no_match(target, modules, field)
    return [
        module for module in modules if any(ends_with(module.name, target) for target in targets)
    ]


def ends_with(name: str, target: str) -> bool:
    """Return whether a list's entry matches a module: its name, or its ending after a dot."""
    return name == target or name.endswith(f".{target}")


def _compiled(target: str, field: str) -> re.Pattern[str]:
    try:
        return re.compile(target)
    except re.error as error:
        raise AdapterError(
            f"lora.{field} has {target!r}, which is no regular expression: {error}.",
            "Give a list of name endings, such as [q_proj, v_proj], or mend the expression.",
        ) from None


def _no_match(target: str, modules: Sequence[names.Module], field: str) -> AdapterError:
    endings = list(dict.fromkeys(module.name.rpartition(".")[2] for module in modules))
    close = nearest(target, endings)
    hint = f"Did you mean {close!r}? " if close else ""
    return AdapterError(
        f"lora.{field} has {target!r}, which matches no linear module or embedding of this model.",
        f"{hint}It has {', '.join(endings)}, in modules such as {modules[0].name}.",
    )


def _check(config: LoraConfig, module: names.Module, adapter: Adapter) -> None:
    if adapter.width > min(module.dims):
        raise AdapterError(
            f"lora.r={adapter.width} is larger than {module.name}, which is "
            f"{module.dims[1]} x {module.dims[0]}.",
            f"Choose an r of at most {min(module.dims)}; 8 to 64 is usual.",
        )
    if module.is_table and adapter.bias:
        raise AdapterError(
            f"lora.target_modules has {module.name} together with lora_bias.",
            f"An adapter on an embedding has no bias, in PEFT too: leave {module.name} out.",
        )
    if module.is_table and adapter.is_dora:
        raise AdapterError(
            f"lora.target_modules has {module.name} together with use_dora.",
            f"DoRA on an embedding is not supported: leave {module.name} out, or use_dora.",
        )
