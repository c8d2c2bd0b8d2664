"""Adapters as sets of low-rank updates, which can be scaled, added, compared and written again.

`peft_format` maps an adapter onto a network; this module needs no base model, only the adapter's
two files. All functions are pure. The invariant: the result of a function is an ordinary adapter
whose update is exactly the requested linear combination, up to one rounding to float32.

Tensors that are trained as a whole (biases, modules to save) are not differences from the base. A
linear combination of them is meaningful only if its weights sum to 1; any other is refused. DoRA
rescales the base's weights, so its update cannot be computed without them: it is refused too.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.adapters import kinds, low_rank, peft_format
from jaxft.adapters.low_rank import Update
from jaxft.adapters.tables import is_of_base, shared
from jaxft.config import LoraConfig
from jaxft.errors import AdapterError
from jaxft.lora import numbers

_LORA = re.compile(
    r"base_model\.model\.(.+)\.lora_"
    r"(A\.weight|B\.weight|B\.bias|magnitude_vector|embedding_[AB])"
)
_TARGETING = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
_WHOLE = ("bias", "modules_to_save", "trainable_token_indices", "ensure_weight_tying")
_CLOSE = 1e-6  # how far from 1 a sum of weights such as 0.7 + 0.3 may be


@dataclasses.dataclass(frozen=True, eq=False)
class LoraAdapter:
    """An adapter in memory.

    Attributes:
        origin: The adapter's folder, for messages.
        content: The content of adapter_config.json.
        lora: The same content, validated.
        updates: The update of each adapted module, by module name.
        magnitudes: DoRA's magnitudes [out] of each module, by module name; empty without DoRA.
        whole: Biases, token rows and modules that are trained as a whole, under PEFT's names.
        tables: The names of modules that are embeddings; their tensors have other names in PEFT.
        beside: Tensors of the base model that the adapter was trained on, under PEFT's names.
    """

    origin: Path
    content: Mapping[str, Any]
    lora: LoraConfig
    updates: Mapping[str, Update]
    magnitudes: Mapping[str, np.ndarray]
    whole: Mapping[str, np.ndarray]
    tables: frozenset[str]
    beside: Mapping[str, np.ndarray]

    @property
    def base_model(self) -> str | None:
        """The name of the base model in the config, if there is one."""
        return self.content.get("base_model_name_or_path")

    @property
    def num_parameters(self) -> int:
        """The number of trained parameters."""
        adapted = sum(each.num_parameters for each in self.updates.values())
        others = [*self.magnitudes.values(), *self.whole.values()]
        return adapted + sum(tensor.size for tensor in others)


def read(folder: Path) -> LoraAdapter:
    """Read an adapter folder.

    Raises:
        AdapterError: If a file is missing or damaged, or the kind of adapter is not supported.
    """
    return parse(*peft_format.read_adapter(folder), folder)


def parse(
    content: Mapping[str, Any], tensors: Mapping[str, np.ndarray], origin: Path
) -> LoraAdapter:
    """Build an adapter from the content of its config and its tensors under PEFT's names.

    Raises:
        AdapterError: If the config and the tensors do not fit each other.
    """
    lora = peft_format.read_lora_config(content, origin)
    parts: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    whole, beside, tables = {}, {}, set()
    for name, tensor in tensors.items():
        values = np.asarray(tensor, np.float32)
        found = _LORA.fullmatch(name)
        if found:
            module, part = found.groups()
            if part.startswith("embedding_"):
                tables.add(module)
            parts[module][_OF_TABLE.get(part, part)] = values
        elif ".lora_" in name:
            raise AdapterError(
                f"{origin}: {name} is of a kind of adapter that is not supported.",
                "Adapters on linear modules are.",
            )
        elif ".modules_to_save." in name:
            continue  # PEFT stores the same tensor under a shorter name too
        elif is_of_base(name, lora):
            beside[name] = tensor
        else:
            whole[name] = values
    updates = {module: _update(module, each, lora, origin) for module, each in parts.items()}
    magnitudes = {
        module: each["magnitude_vector"]
        for module, each in parts.items()
        if "magnitude_vector" in each
    }
    _check_magnitudes(magnitudes, updates, lora, origin)
    return LoraAdapter(origin, content, lora, updates, magnitudes, whole, frozenset(tables), beside)


def _check_magnitudes(
    magnitudes: Mapping[str, np.ndarray],
    updates: Mapping[str, Update],
    lora: LoraConfig,
    origin: Path,
) -> None:
    for module, update in updates.items():
        wanted = (update.dims[1],) if lora.use_dora else None
        found = magnitudes[module].shape if module in magnitudes else None
        if found != wanted:
            raise AdapterError(
                f"{origin}: {module} has a lora_magnitude_vector of {found}, where {wanted} was "
                f"expected: use_dora is {str(lora.use_dora).lower()} in {peft_format.CONFIG_FILE}.",
                f"Use the {peft_format.CONFIG_FILE} that the adapter was made with.",
            )


_OF_TABLE = {"embedding_A": "A.weight", "embedding_B": "B.weight"}


def _update(module: str, parts: Mapping[str, np.ndarray], lora: LoraConfig, origin: Path) -> Update:
    a, b = parts.get("A.weight"), parts.get("B.weight")
    if a is None or b is None:
        raise AdapterError(
            f"{origin}: {module} has lora_{next(iter(parts))} alone.", "Copy the adapter anew."
        )
    rank, scaling = numbers.of(lora, module)
    if a.shape[:-1] != (rank,) or b.shape[1:] != (rank,):
        raise AdapterError(
            f"{origin}: {module} has tensors of {a.shape} and {b.shape}, and a rank of {rank} in "
            f"{peft_format.CONFIG_FILE}.",
            f"Use the {peft_format.CONFIG_FILE} that the adapter was made with.",
        )
    return Update(a, b, scaling, parts.get("B.bias"))


def tensors_of(adapter: LoraAdapter) -> dict[str, np.ndarray]:
    """Return an adapter's tensors under PEFT's names: the inverse of `parse`."""
    tensors = {**adapter.whole, **adapter.beside}
    for module, update in adapter.updates.items():
        stem = f"base_model.model.{module}.lora_"
        sides = _OF_TABLE if module in adapter.tables else _OF_TABLE.values()
        tensors |= {
            f"{stem}{each}": side for each, side in zip(sides, (update.a, update.b), strict=True)
        }
        if update.bias is not None:
            tensors[f"{stem}B.bias"] = update.bias
        if module in adapter.magnitudes:
            tensors[f"{stem}magnitude_vector"] = adapter.magnitudes[module]
    return {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}


def scale(adapter: LoraAdapter, factor: float) -> LoraAdapter:
    """Return an adapter whose updates are `factor` times as large and that is otherwise the same.

    Raises:
        AdapterError: If it uses DoRA, or has tensors trained as a whole and `factor` is not 1.
    """
    check_plain(adapter)
    whole, adapter = _combined_whole([(adapter, factor)]), _untied(adapter)
    updates = {name: low_rank.times(each, factor) for name, each in adapter.updates.items()}
    return dataclasses.replace(adapter, updates=updates, whole=whole)


def combine(terms: Sequence[tuple[LoraAdapter, float]]) -> LoraAdapter:
    """Return the weighted sum of adapters as one adapter with a scaling of 1.

    Their ranks add up. A module that only some of them adapt gets the sum of those updates.

    Raises:
        AdapterError: If a module has different shapes in them, one uses DoRA, or they have tensors
            that cannot be added.
    """
    for adapter, _ in terms:
        check_plain(adapter)
    whole = _combined_whole(terms)
    terms = [(_untied(adapter), weight) for adapter, weight in terms]
    tables = frozenset[str]().union(*(adapter.tables for adapter, _ in terms))
    updates = {}
    for module in dict.fromkeys(name for adapter, _ in terms for name in adapter.updates):
        found = [(each, weight) for each, weight in terms if module in each.updates]
        check_dims(module, [each for each, _ in found])
        updates[module] = low_rank.total([(each.updates[module], weight) for each, weight in found])
    if any(each.bias is not None for each in updates.values()):
        if tables:
            raise AdapterError(
                f"{sorted(tables)[0]} is an embedding, and other modules have a bias (lora_bias).",
                "PEFT has no bias beside an embedding: such adapters cannot be written as one.",
            )
        updates = {name: _with_bias(each) for name, each in updates.items()}
    first = terms[0][0]
    # How the first adapter was initialised does not describe the sum.
    kept = {key: value for key, value in first.content.items() if key != "eva_config"}
    content = {**kept, **_merged_fields([adapter for adapter, _ in terms], updates)}
    lora = peft_format.read_lora_config(content, first.origin)
    beside = shared([(adapter.origin, adapter.beside) for adapter, _ in terms])
    return LoraAdapter(first.origin, content, lora, updates, {}, whole, tables, beside)


def fold(adapter: LoraAdapter) -> LoraAdapter:
    """Return the same adapter with one rank for all modules and a scaling of 1.

    This is for programs that read `r` and `lora_alpha` but no patterns: smaller ranks are padded
    with zeros, and each module's B is multiplied by its scaling.

    Raises:
        AdapterError: If the adapter uses DoRA.
    """
    check_plain(adapter)
    adapter = _untied(adapter)
    rank = max((each.rank for each in adapter.updates.values()), default=adapter.lora.r)
    updates = {name: low_rank.padded(each, rank) for name, each in adapter.updates.items()}
    content = {**adapter.content, **_rank_fields({}, rank)}
    lora = peft_format.read_lora_config(content, adapter.origin)
    return dataclasses.replace(adapter, content=content, lora=lora, updates=updates)


def _untied(adapter: LoraAdapter) -> LoraAdapter:
    """Return the adapter with separate updates for an embedding and a head that were tied.

    The A of a tied head is the B of the embedding, transposed. A change to an update changes its B
    alone, so that the changed updates would no longer be tied. The file has the tensors of both.
    """
    updates = adapter.updates
    mirrored = any(
        np.array_equal(updates[table].a, other.b.T) and np.array_equal(updates[table].b, other.a.T)
        for table in adapter.tables
        for other in updates.values()
    )
    if not (adapter.lora.ensure_weight_tying and mirrored):
        return adapter
    modules = {**dict.fromkeys(_TARGETING), "target_modules": list(adapter.updates)}
    content = {**adapter.content, **modules, "ensure_weight_tying": False}
    lora = peft_format.read_lora_config(content, adapter.origin)
    return dataclasses.replace(adapter, content=content, lora=lora)


def with_base(adapter: LoraAdapter, base_model: str) -> LoraAdapter:
    """Return the adapter with another base model in its config."""
    content = {**adapter.content, "base_model_name_or_path": base_model, "revision": None}
    return dataclasses.replace(adapter, content=content)


def check_plain(adapter: LoraAdapter) -> None:
    """Refuse a DoRA adapter.

    Raises:
        AdapterError: If the adapter uses DoRA.
    """
    if adapter.lora.use_dora:
        raise AdapterError(
            f"{adapter.origin} is DoRA's (use_dora): it rescales the weights of the base, so it "
            "is no update that could be scaled, added or compared without them.",
            "Merge it with `jaxft export`; `jaxft adapter info` says what it is.",
        )


def check_base(first: LoraAdapter, second: LoraAdapter) -> None:
    """Refuse two adapters whose configs name different base models.

    Raises:
        AdapterError: If the names differ.
    """
    if first.base_model != second.base_model:
        raise AdapterError(
            f"{first.origin} is for {first.base_model}, and {second.origin} for "
            f"{second.base_model}.",
            "Adapters can be added for one base model alone. If it is the same under two names, "
            "say so with --model NAME.",
        )


def check_dims(module: str, adapters: Sequence[LoraAdapter]) -> None:
    """Refuse adapters in which a module has different shapes.

    Raises:
        AdapterError: If the shapes differ.
    """
    first, *others = adapters
    for other in others:
        ours, theirs = first.updates[module].dims, other.updates[module].dims
        if ours != theirs:
            raise AdapterError(
                f"{module} is {ours[1]} x {ours[0]} in {first.origin}, and "
                f"{theirs[1]} x {theirs[0]} in {other.origin}.",
                "They are for different base models: use adapters of one.",
            )


def _with_bias(update: Update) -> Update:
    bias = np.zeros(len(update.b), np.float32) if update.bias is None else update.bias
    return dataclasses.replace(update, bias=bias)


def _merged_fields(
    adapters: Sequence[LoraAdapter], updates: Mapping[str, Update]
) -> dict[str, Any]:
    """Return the fields of adapter_config.json that describe a sum of adapters."""
    first, *others = (each.lora for each in adapters)
    targeting: dict[str, Any] = {}
    same = all(getattr(each, key) == getattr(first, key) for each in others for key in _TARGETING)
    if not same or first.target_modules is None:
        targeting = {**dict.fromkeys(_TARGETING), "target_modules": list(updates)}
    is_one_dropout = all(each.lora_dropout == first.lora_dropout for each in others)
    has_bias = any(each.bias is not None for each in updates.values())
    return {
        **_rank_fields({name: each.rank for name, each in updates.items()}, first.r),
        **targeting,
        "lora_dropout": first.lora_dropout if is_one_dropout else 0.0,
        "init_lora_weights": True,
        **({"lora_bias": True} if has_bias else {}),
    }


def _rank_fields(ranks: Mapping[str, int], default: int) -> dict[str, Any]:
    """Return the config fields that give each module its rank, with a scaling of 1."""
    rank = max(ranks.values(), default=default)
    others: dict[str, int] = {}
    for kind, modules in kinds.grouped(ranks).items():
        is_one = len({ranks[each] for each in modules}) == 1 and "*" not in kind
        named = {kind: ranks[modules[0]]} if is_one else {each: ranks[each] for each in modules}
        others |= {key: each for key, each in named.items() if each != rank}
    return {
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": dict(others),
        "use_rslora": False,
    }


def _combined_whole(terms: Sequence[tuple[LoraAdapter, float]]) -> dict[str, np.ndarray]:
    """Return the linear combination of the tensors that are trained as a whole.

    Raises:
        AdapterError: If it is not meaningful: the weights do not sum to 1, an adapter lacks one of
            the tensors, or shapes or config fields differ.
    """
    names = dict.fromkeys(name for adapter, _ in terms for name in adapter.whole)
    for name in names:
        owners = [adapter for adapter, _ in terms if name in adapter.whole]
        if len(owners) < len(terms) or abs(sum(weight for _, weight in terms) - 1) > _CLOSE:
            raise AdapterError(
                f"{owners[0].origin} has {name.removeprefix('base_model.model.')}, which was "
                "trained as a whole: it is no difference from the base that could be scaled.",
                "Interpolate between two adapters that both have it, or train with bias: none and "
                "without modules_to_save.",
            )
        if len({adapter.whole[name].shape for adapter in owners}) > 1:
            raise AdapterError(
                f"{name} has other shapes in {owners[0].origin} than in {owners[1].origin}.",
                "They are for different base models: use adapters of one.",
            )
        if len({_whole_fields(each) for each in owners}) > 1:
            raise AdapterError(
                f"{owners[0].origin} and {owners[1].origin} differ in one of {', '.join(_WHOLE)}.",
                "Combine adapters that train the same parts of the model as a whole.",
            )
    return {
        name: np.stack(
            [weight * adapter.whole[name].astype(np.float64) for adapter, weight in terms]
        )
        .sum(axis=0)
        .astype(np.float32)
        for name in names
    }


def _whole_fields(adapter: LoraAdapter) -> str:
    return repr([getattr(adapter.lora, key) for key in _WHOLE])
