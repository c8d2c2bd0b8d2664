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
from jaxft.models.network import Adapter, Network, build_network
from jaxft.models.spec import ModelSpec
from jaxft.weights import names

ALL_LINEAR = "all-linear"


def adapted_network(config: LoraConfig, family: Family, spec: ModelSpec) -> Network:
    """Describe `spec` with the adapters that `config` asks for.

    Raises:
        AdapterError: If a target matches no module, or a choice is not supported for a module.
    """
    adapter = Adapter(config.r, config.scaling, config.lora_dropout)
    modules = names.linear_modules(family, spec)
    layers: list[dict[str, Adapter]] = [{} for _ in spec.blocks]
    outer: dict[str, Adapter] = {}
    for module in select(modules, target_modules(config, family)):
        _check(module, adapter)
        (outer if module.layer is None else layers[module.layer])[module.path] = adapter
    return build_network(spec, layers, outer)


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
        return [module for module in modules if module.layer is not None]
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
    if module.layer is None and adapter.dropout > 0:
        raise AdapterError(
            f"lora.target_modules has {module.name} together with lora_dropout={adapter.dropout}.",
            "Dropout before the head's adapter is not supported: set lora_dropout=0, or leave "
            f"{module.name} out.",
        )
