"""Which modules a `LoraConfig` adapts, by PEFT's rules for matching Hugging Face module names.

Source: `peft/tuners/tuners_utils.py: check_target_module_exists` (a list matches a name or its
ending after a dot, a string is a regular expression for the whole name) and
`_maybe_include_all_linear_layers` ("all-linear" is every linear module but the output embedding).
"""

import re
from collections.abc import Sequence

from jaxft.config import LoraConfig
from jaxft.errors import AdapterError, nearest
from jaxft.models.families.family import Family
from jaxft.models.network import Adapter, Network, Tuning, build_network
from jaxft.models.spec import ModelSpec
from jaxft.weights import names

ALL_LINEAR = "all-linear"
HEAD = "head"


def adapted_network(config: LoraConfig, family: Family, spec: ModelSpec) -> Network:
    """Describe `spec` with the adapters, and the trained leaves, that `config` asks for.

    A module that is trained as a whole gets no adapter, as in PEFT.

    Raises:
        AdapterError: If a target matches no module, or a choice is not supported for a module.
    """
    adapter = Adapter(config.r, config.scaling, config.lora_dropout)
    owned = names.owned_leaves(family, spec)
    saved = _saved_modules(config.modules_to_save or [], owned)
    modules = select(names.linear_modules(family, spec), target_modules(config, family))
    adapted = [module for module in modules if module.name not in saved]
    for module in adapted:
        _check(module, adapter)
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
                one.module in saved or (leaf.endswith("/bias") and one.module in with_trained_bias)
            )
        ]
        return Tuning({one.path: adapter for one in adapted if one.layer == layer}, leaves)

    return build_network(spec, [tuning(layer) for layer in range(len(spec.blocks))], tuning(None))


def _saved_modules(endings: Sequence[str], owned: Sequence[names.Owned]) -> frozenset[str]:
    """Return the names of the modules that are trained as a whole.

    Raises:
        AdapterError: If an ending matches no module.
    """
    all_names = dict.fromkeys(one.module for one in owned)
    for ending in endings:
        if not any(_ends_with(name, ending) for name in all_names):
            last = dict.fromkeys(name.rpartition(".")[2] for name in all_names)
            raise AdapterError(
                f"lora.modules_to_save has {ending!r}, which matches no module of this model.",
                f"It has {', '.join(last)}.",
            )
    return frozenset(
        name for name in all_names if any(_ends_with(name, ending) for ending in endings)
    )


def target_modules(config: LoraConfig, family: Family) -> list[str] | str:
    """Return the targets, null resolved to PEFT's choice for the family."""
    return list(family.default_targets) if config.target_modules is None else config.target_modules


def select(modules: Sequence[names.Module], targets: list[str] | str) -> list[names.Module]:
    """Return the modules that `targets` matches.

    Raises:
        AdapterError: If a target matches nothing (lists the names it could have been), or is no
            regular expression.
    """
    if targets == ALL_LINEAR:
        return [module for module in modules if module.path != HEAD]
    if isinstance(targets, str):
        pattern = _compiled(targets)
        chosen = [module for module in modules if pattern.fullmatch(module.name)]
        if not chosen:
            raise _no_match(targets, modules)
        return chosen
    for target in targets:
        if not any(_ends_with(module.name, target) for module in modules):
            raise _no_match(target, modules)
    return [
        module for module in modules if any(_ends_with(module.name, target) for target in targets)
    ]


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _compiled(target: str) -> re.Pattern[str]:
    try:
        return re.compile(target)
    except re.error as error:
        raise AdapterError(
            f"lora.target_modules is {target!r}, which is no regular expression: {error}.",
            "Give a list of name endings, such as [q_proj, v_proj], or mend the expression.",
        ) from None


def _no_match(target: str, modules: Sequence[names.Module]) -> AdapterError:
    endings = list(dict.fromkeys(module.name.rpartition(".")[2] for module in modules))
    close = nearest(target, endings)
    hint = f"Did you mean {close!r}? " if close else ""
    return AdapterError(
        f"lora.target_modules has {target!r}, which matches no linear module of this model.",
        f"{hint}It has {', '.join(endings)}, in modules such as {modules[0].name}.",
    )


def _check(module: names.Module, adapter: Adapter) -> None:
    if adapter.rank > min(module.dims):
        raise AdapterError(
            f"lora.r={adapter.rank} is larger than {module.name}, which is "
            f"{module.dims[1]} x {module.dims[0]}.",
            f"Choose an r of at most {min(module.dims)}; 8 to 64 is usual.",
        )
    if module.path == HEAD and adapter.dropout > 0:
        raise AdapterError(
            f"lora.target_modules has {module.name} together with lora_dropout={adapter.dropout}.",
            "Dropout before the head's adapter is not supported: set lora_dropout=0, or leave "
            f"{module.name} out.",
        )
