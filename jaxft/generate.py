"""The answer that `jaxft generate` streams: reads an adapter and its base model, then asks them.

Separate from `generation`, which neither reads files nor prints. The invariant: the base is the
one that the adapter names, unless the caller names another.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxft import console
from jaxft import tree as trees
from jaxft.config import LoraConfig
from jaxft.errors import AdapterError
from jaxft.generation import completion
from jaxft.generation.completion import Generator
from jaxft.generation.decoding import Decoder
from jaxft.generation.sampling import Sampling
from jaxft.lora import mask, peft_format, targets
from jaxft.models.network import base_network
from jaxft.parallel import devices, rules
from jaxft.parallel import mesh as meshes
from jaxft.weights import base, source
from jaxft.weights.source import Source


def answer(
    *,
    adapter: Path | None,
    model: str | None,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> Iterator[str]:
    """Load a model and return its answer to one question, in pieces as they are made.

    Args:
        adapter: Folder of the adapter; `None` asks the base model.
        model: The base model; `None` takes the one that the adapter names.
        prompt: The question; if the model chats, it is put as a user's message.
        max_new_tokens: The most that the answer gets.
        temperature: 0 takes the likeliest token each time.
        seed: Of the draw.

    Raises:
        JaxftError: If the model or the adapter cannot be found, read, or used together.
    """
    devices.check()
    console.note(f"Devices: {devices.describe()}")
    config, tensors = ({}, {}) if adapter is None else peft_format.read_adapter(adapter)
    name, revision = base_model(config, model, adapter)
    found = source.resolve(name, revision, console.note)
    console.note(f"Base model: {found.name} ({found.origin})")
    lora = None if adapter is None else peft_format.read_lora_config(config, adapter)
    mesh = meshes.single_device_mesh()
    generator, tree = load_generator(found, lora, tensors, origin=adapter or Path(), mesh=mesh)
    return completion.stream(
        generator,
        tree,
        completion.as_question(prompt, generator.tokenizer),
        max_new_tokens=max_new_tokens,
        how=Sampling(temperature=temperature, top_k=0, top_p=1.0, seed=seed),
    )


def base_model(
    config: Mapping[str, Any], model: str | None, adapter: Path | None
) -> tuple[str, str | None]:
    """Return the name and the revision of the base model to use.

    Raises:
        AdapterError: If neither the caller nor the adapter names one.
    """
    if model is not None:
        return model, None
    if adapter is None:
        raise AdapterError(
            "Neither an adapter nor a base model was given.",
            "Give --adapter, whose base model is then used, or --model to ask a base model.",
        )
    name = config.get("base_model_name_or_path")
    if not name:
        raise AdapterError(
            f"{adapter / peft_format.CONFIG_FILE} names no base model.",
            "Name the one that the adapter was made for with --model.",
        )
    return name, config.get("revision")


def load_generator(
    found: Source,
    lora: LoraConfig | None,
    tensors: Mapping[str, Any],
    *,
    origin: Path,
    mesh: Mesh,
) -> tuple[Generator, trees.Tree]:
    """Read a base model and return its generator, and its tree with the adapter in place.

    Args:
        found: The base model.
        lora: What the adapter is; `None` for none.
        tensors: The adapter's, under PEFT's names.
        origin: The adapter's folder, for messages.
        mesh: Over which the leaves are divided.

    Raises:
        JaxftError: If the model cannot be read, or the adapter does not fit it.
    """
    family, spec = base.read_spec(found)
    network = base_network(spec) if lora is None else targets.adapted_network(lora, family, spec)
    adapters = {} if lora is None else peft_format.from_tensors(tensors, family, network, origin)
    tokenizer, dtype = found.tokenizer(), base.resolve_dtype("auto")
    own = base.load_base(found, family, network, dtype=dtype, mesh=mesh)
    _, frozen = trees.partition(own, mask.trainable_mask(network, own))
    adapters = jax.device_put(adapters, rules.shardings(adapters, mesh))
    stop_ids = base.read_stop_ids(found, tokenizer)
    decoder = Decoder(network, stop_ids=stop_ids, mesh=mesh, dtype=dtype)
    return Generator(decoder, tokenizer), trees.combine(frozen, adapters)
