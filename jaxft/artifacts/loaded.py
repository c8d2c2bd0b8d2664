"""Loads a base model with an adapter, for generation and export."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxft import console
from jaxft import tree as trees
from jaxft.adapters import fitting, peft_format
from jaxft.config import LoraConfig
from jaxft.errors import AdapterError
from jaxft.lora import mask, numbers, targets
from jaxft.models.families.family import Family
from jaxft.models.network import Network, base_network
from jaxft.models.spec import ModelSpec
from jaxft.parallel import rules
from jaxft.weights import base
from jaxft.weights.base import Base
from jaxft.weights.places import chat_format, source
from jaxft.weights.places.chat_format import ChatFormat
from jaxft.weights.places.source import Source


class Tuned(NamedTuple):
    """A loaded model, with an adapter or without.

    Attributes:
        family: The family of the model.
        network: The network, with the trained parts of the adapter.
        tree: All leaves of the network.
        chat_format: The chat template of the model, and the tokens at which it stops.
    """

    family: Family
    network: Network
    tree: trees.Tree
    chat_format: ChatFormat = chat_format.BASE_FORMAT


def base_name(
    content: Mapping[str, Any], model: str | None, adapter: Path | None
) -> tuple[str, str | None]:
    """Return the name and the revision of the base model to use.

    Args:
        content: The content of adapter_config.json.
        model: The base model that the user named, if any.
        adapter: The adapter's folder, or `None` without one.

    Raises:
        AdapterError: If neither the user nor the adapter names one.
    """
    if model is not None:
        return model, None
    if adapter is None:
        raise AdapterError(
            "Neither an adapter nor a base model was given.",
            "Give --adapter, whose base model is then used, or --model to use a base model alone.",
        )
    name = content.get("base_model_name_or_path")
    if not name:
        raise AdapterError(
            f"{adapter / peft_format.CONFIG_FILE} names no base model.",
            "Name the one that the adapter was made for with --model.",
        )
    return name, content.get("revision")


class Found(NamedTuple):
    """An adapter that was read, and the base model that was found for it.

    Attributes:
        source: The base model.
        lora: The adapter's config; `None` without an adapter.
        tensors: The adapter's tensors, under PEFT's names.
        origin: The adapter's folder, for messages.
    """

    source: Source
    lora: LoraConfig | None
    tensors: Mapping[str, Any]
    origin: Path


def find(adapter: Path | None, model: str | None) -> Found:
    """Read an adapter, find its base model, and print where the base model is.

    Args:
        adapter: The adapter's folder; `None` for the base model alone.
        model: The base model; `None` takes the one that the adapter names.

    Raises:
        JaxftError: If the adapter cannot be read, or the base model cannot be found.
    """
    content, tensors = ({}, {}) if adapter is None else peft_format.read_adapter(adapter)
    lora = None if adapter is None else peft_format.read_lora_config(content, adapter)
    name, revision = base_name(content, model, adapter)
    found = source.resolve(name, revision, console.note)
    console.note(f"Base model: {found.name} ({found.origin})")
    if adapter is None or lora is None:
        return Found(found, None, {}, Path())
    note_other_base(content, found, adapter)
    return Found(*fitting.fitted(found, lora, tensors, adapter), adapter)


def note_other_base(content: Mapping[str, Any], found: Source, adapter: Path) -> None:
    """Warn if an adapter is used with another base model than it names, perhaps a copy of it.

    Args:
        content: The content of adapter_config.json.
        found: The base model in use.
        adapter: The adapter's folder.
    """
    named = content.get("base_model_name_or_path")
    if named and named != found.name and Path(named).resolve() != Path(found.name).resolve():
        console.warning(
            f"{adapter} was made for {named}, and is used with {found.name}: right if that is a "
            "copy of it, and noise if it is another model."
        )


def network_of(
    lora: LoraConfig,
    tensors: Iterable[str],
    family: Family,
    spec: ModelSpec,
    origin: Path,
) -> Network:
    """Return the network of a model with an adapter on it.

    Args:
        lora: The adapter's config.
        tensors: The names of the adapter's tensors.
        family: The family of the model.
        spec: The description of the model.
        origin: The adapter's folder, for messages.

    Raises:
        AdapterError: If the adapter does not fit the model.
    """
    peft_format.refuse_other_parts(tensors, family, origin)
    try:
        return targets.adapted_network(lora, family, spec)
    except AdapterError as error:
        raise AdapterError(
            f"{origin}: the adapter does not fit the base model: {error.found}",
            "Use the adapter with the base model and the adapter_config.json it was made with.",
        ) from error


def load(
    found: Source,
    lora: LoraConfig | None,
    tensors: Mapping[str, Any],
    *,
    origin: Path,
    mesh: Mesh,
    dtype: str,
) -> Tuned:
    """Read a base model and put an adapter on it.

    Args:
        found: The base model.
        lora: The adapter's config; `None` without an adapter.
        tensors: The adapter's tensors, under PEFT's names.
        origin: The adapter's folder, for messages.
        mesh: The devices over which the leaves are sharded.
        dtype: The dtype of the base model's leaves.

    Raises:
        JaxftError: If the model cannot be read, or the adapter does not fit it.
    """
    family, spec = base.read_spec(found)
    network, trained = base_network(spec), dict[str, Any]()
    if lora is not None:
        network = network_of(lora, tensors, family, spec, origin)
        read = peft_format.from_tensors(tensors, family, network, origin)
        trained = trees.combine(read, numbers.leaves(lora, family, network))
    own = Base(found, family, spec, mesh, dtype, quantization=None).load(network)
    placed = jax.device_put(trained, rules.shardings(trained, mesh))
    frozen = mask.parts(network, own).frozen
    trained_format = chat_format.BASE_FORMAT if lora is None else chat_format.read(origin)
    return Tuned(family, network, trees.combine(frozen, placed), trained_format)
