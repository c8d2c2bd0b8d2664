"""Fits an adapter that was read from disk to the model that it is used with.

PEFT accepts more than it writes: targets that match nothing, names of older versions, and
embeddings saved with an adapter (`save_embedding_layers`) under up to three names. Here such a
folder is converted to what the rest of the program expects: a config in which every entry matches
something, the adapter's own tensors under current names, and a base model with the embeddings that
the adapter was trained with. The invariant: whatever is left out could not have changed a logit,
and a message says what it was.

Source: `peft/utils/save_and_load.py: get_peft_model_state_dict` and `set_peft_model_state_dict`,
`peft/utils/transformers_weight_conversion.py` for names.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxft import console
from jaxft.adapters import peft_format, tables
from jaxft.config import LoraConfig
from jaxft.errors import AdapterError, JaxftError
from jaxft.lora import numbers, targets, tying
from jaxft.models.families.family import Family
from jaxft.models.spec import ModelSpec
from jaxft.weights import base, names
from jaxft.weights.places import tokenizer, vocabulary
from jaxft.weights.places.source import Source

_LORA = re.compile(r"(.+)\.lora_\w+(\.\w+)?")
Value = TypeVar("Value")


class Fitted(NamedTuple):
    """An adapter that was fitted to a model.

    Attributes:
        source: The base model, with those of its weights that the adapter's folder replaces.
        lora: The adapter's config.
        tensors: The trained tensors, under PEFT's current names.
    """

    source: Source
    lora: LoraConfig
    tensors: dict[str, np.ndarray]


def fitted(
    source: Source, lora: LoraConfig, tensors: Mapping[str, np.ndarray], origin: Path
) -> Fitted:
    """Fit an adapter that was read to a base model, and print a note of what was left out.

    Args:
        source: The base model.
        lora: The adapter's config.
        tensors: The adapter's tensors, as `peft_format.read_adapter` returns them.
        origin: The adapter's folder, for messages.

    Raises:
        AdapterError: If the adapter is for another model.
    """
    family, spec = base.read_spec(source)
    tensors = peft_format.under_names_of(tensors, family)
    lora, idle = _without_idle(_under_names_of(lora, family), family, spec, tensors)
    lora = _as_far_as_filed(lora, family, spec, tensors, origin)
    if idle:
        said = "; ".join(f"{field}: {', '.join(map(str, each))}" for field, each in idle.items())
        console.note(f"{origin / peft_format.CONFIG_FILE} names what is not adapted here: {said}.")
    stored = vocabulary.stored_rows(source)
    filed = tables.num_rows(tensors, lora, family, stored)
    rows = spec.vocab_size if filed is None else filed
    try:
        grown = dataclasses.replace(spec, vocab_size=rows)
        network = targets.adapted_network(lora, family, grown)
    except AdapterError:
        return Fitted(source, lora, tensors)  # the error is reported when it is put on the model
    trained = peft_format.names_of(family, network)
    frozen = tables.frozen_in(tensors, family, trained, is_tied=spec.tied_head)
    if filed is not None:
        tables.check_complete(frozen, family, network, stored, origin)
    own = _own(tensors, family, spec, trained)
    return Fitted(_trained_beside(source, family, spec, rows, frozen, origin), lora, own)


def _trained_beside(
    source: Source,
    family: Family,
    spec: ModelSpec,
    rows: int,
    frozen: Mapping[str, np.ndarray],
    origin: Path,
) -> Source:
    """Return the base model with the vocabulary that an adapter was trained with.

    If anything of the base model is replaced, a note says so.

    Args:
        source: The base model.
        family: The family of the base model.
        spec: The description of the base model.
        rows: The number of rows that the embedding had when the adapter was trained.
        frozen: The embedding and the head in the adapter's file, by the model's own names.
        origin: The adapter's folder, whose tokenizer is used if it has tokens that the base's
            lacks.

    Raises:
        AdapterError: If a table has a shape that does not fit the base model.
    """
    words = _own_tokenizer(source, origin)
    new_ids = [each for each in vocabulary.new_ids(source) if each < rows]
    resized = vocabulary.resized(source, rows, new_ids=new_ids, own_tokenizer=words, tables=frozen)
    others = _others(source, resized, family, origin)
    if rows == spec.vocab_size and not others and words is None:
        return source
    if rows != spec.vocab_size:
        console.note(
            f"The adapter was trained beside an embedding of {rows:,} rows, and the base has "
            f"{spec.vocab_size:,}: the adapter's {rows:,} are used."
        )
    if others:
        console.note(
            f"{origin} has weights of the base model, used in its place: {', '.join(others)}."
        )
    return resized


def _others(source: Source, resized: vocabulary.Resized, family: Family, origin: Path) -> list[str]:
    """Return the names of the tables in an adapter's file that differ from the base model's.

    Raises:
        AdapterError: If a table has another shape than the base model's module needs.
    """
    stored = names.under_full_names(source.checkpoint(), family)
    now = resized.checkpoint()
    found, infos, others = stored.infos(), now.infos(), []
    for name, table in resized.tables.items():
        if name not in infos:
            continue
        if table.shape != infos[name].shape:
            raise AdapterError(
                f"{origin}: {name} has shape {table.shape}, and this base model's module needs "
                f"{infos[name].shape}.",
                "Use the adapter with the base model it was made for.",
            )
        if table.shape != found[name].shape or not np.array_equal(
            now.read(name), stored.read(name)
        ):
            others.append(name)
    return others


def _own_tokenizer(found: Source, adapter: Path) -> Any:
    """Return the tokenizer in an adapter's folder, if it has tokens that the base's lacks."""
    if not tokenizer.is_in(adapter):
        return None
    try:
        own = tokenizer.load_folder(adapter)
        is_other = not own.get_vocab().items() <= found.tokenizer().get_vocab().items()
    except JaxftError as error:
        console.warning(f"the tokenizer beside the adapter is not used: {error.found}")
        return None
    return own if is_other else None


def _under_names_of(lora: LoraConfig, family: Family) -> LoraConfig:
    """Return the config with current names of modules in its lists, as the tensors have them."""

    def renamed(name: str) -> str:
        return names.renamed(f"{name}.weight", family.renames).removesuffix(".weight")

    lists = ("target_modules", "exclude_modules", "modules_to_save")
    given = {field: getattr(lora, field) for field in lists}
    changes: dict[str, Any] = {
        field: list(map(renamed, each)) for field, each in given.items() if isinstance(each, list)
    }
    for field in ("rank_pattern", "alpha_pattern"):
        changes[field] = {renamed(key): value for key, value in getattr(lora, field).items()}
    return lora.model_copy(update=changes)


def _adapted(tensors: Iterable[str]) -> list[str]:
    """Return the names of the modules that have LoRA tensors among these."""
    found = (_LORA.fullmatch(name.removeprefix(tables.PREFIX)) for name in tensors)
    return list(dict.fromkeys(each[1] for each in found if each))


def _as_far_as_filed(
    lora: LoraConfig, family: Family, spec: ModelSpec, tensors: Iterable[str], origin: Path
) -> LoraConfig:
    """Return an EVA config that targets only the modules that have tensors in its file.

    PEFT shortens a long list of targets, so that it matches modules to which EVA gave no rank; it
    leaves these modules unchanged. For any other kind of adapter, a module that has no tensors in
    the file is a sign of another base model.
    """
    if lora.init_lora_weights != "eva":
        return lora
    try:
        targeted = [module.name for module in targets.targeted(lora, family, spec)]
    except AdapterError:
        return lora  # it is for another model: reported when it is put on this one
    saved = tuple(lora.modules_to_save or ())
    wanted = [name for name in targeted if not (saved and name.endswith(saved))]
    filed = [name for name in wanted if name in set(_adapted(tensors))]
    if not filed or filed == wanted or lora.ensure_weight_tying:
        return lora
    lacking = [name for name in wanted if name not in filed]
    console.note(
        f"{origin}: EVA gave no rank to {len(lacking)} of the {len(wanted)} modules that its "
        f"targets name, such as {lacking[0]}: they are as in the base model."
    )
    nothing = dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern"))
    return lora.model_copy(update={**nothing, "target_modules": filed})


def _without_idle(
    lora: LoraConfig, family: Family, spec: ModelSpec, tensors: Iterable[str]
) -> tuple[LoraConfig, dict[str, list[Any]]]:
    """Return a config without the entries that match nothing, and those entries by field."""
    modules = names.adaptable_modules(family, spec)
    by_name, adapted = {module.name for module in modules}, _adapted(tensors)
    owners = {one.module for one in names.owned_leaves(family, spec)}
    idle: dict[str, list[Any]] = {}
    changes: dict[str, Any] = {}

    def keep(field: str, values: list[Value], matches: Callable[[Value], bool]) -> None:
        kept = [each for each in values if matches(each)]
        if kept != values:
            idle[field] = [each for each in values if each not in kept]
            of_dict = isinstance(getattr(lora, field), dict)
            given = getattr(lora, field)
            changes[field] = {key: given[key] for key in kept} if of_dict else kept or None

    def ends(target: str, name: str) -> bool:
        return targets.ends_with(name, target)

    if isinstance(lora.target_modules, list):
        keep("target_modules", lora.target_modules, _means(by_name, ends))
    if changes.get("target_modules", True) is None:
        return lora, {}  # an adapter for another model: `targets` reports it
    if isinstance(lora.exclude_modules, list):
        keep("exclude_modules", lora.exclude_modules, _means(by_name, ends))
    elif lora.exclude_modules is not None:
        keep("exclude_modules", [lora.exclude_modules], _means(by_name, _fullmatches))
    saved = _means(owners, lambda ending, name: name.endswith(ending))
    keep("modules_to_save", lora.modules_to_save or [], saved)
    for field in ("rank_pattern", "alpha_pattern"):
        keep(field, list(getattr(lora, field)), _means(adapted, numbers.fits_pattern))
    layers = lora.layers_to_transform
    if isinstance(layers, list):
        there = targets.layers_of(lora, modules).values()
        keep("layers_to_transform", layers, lambda layer: layer in there)
    return lora.model_copy(update=changes), idle


def _means(modules: Iterable[str], is_meant: Callable[[str, str], bool]) -> Callable[[str], bool]:
    """Return a function that says whether an entry of a config field matches any of the modules."""

    def matches(entry: str) -> bool:
        try:
            return any(is_meant(entry, name) for name in modules)
        except re.error:
            return True  # reported where the pattern is used

    return matches


def _fullmatches(pattern: str, name: str) -> bool:
    return re.fullmatch(pattern, name) is not None


def _own(
    tensors: Mapping[str, np.ndarray], family: Family, spec: ModelSpec, trained: Collection[str]
) -> dict[str, np.ndarray]:
    """Return a file's tensors without frozen tables and copies: the trained and unknown ones."""
    frozen = tables.frozen_names(family)
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name in trained or not (name in frozen or _is_copy(name, tensors, family, spec))
    }


def _is_copy(name: str, tensors: Mapping[str, np.ndarray], family: Family, spec: ModelSpec) -> bool:
    """Return whether a tensor is also in the file under another name, from which it is read.

    PEFT 0.21 writes a module that was trained as a whole twice, and the token rows of a tied pair.
    """
    others = [name.replace(".modules_to_save.", ".")]
    if spec.tied_head:
        head, embedding = family.head_name, tying.embedding_module(family)
        others.append(name.replace(f"{head}.token_adapter.", f"{embedding}.token_adapter."))
    return any(
        other != name and other in tensors and np.array_equal(tensors[other], tensors[name])
        for other in others
    )
