"""The answer that `jaxft generate` streams: reads an adapter and its base model, then asks them.

Separate from `generation`, which neither reads files nor prints. The invariant: the base is the
one that the adapter names, unless the caller names another.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from jax.sharding import Mesh

from jaxft import console
from jaxft.generation import completion
from jaxft.generation.completion import Generator
from jaxft.generation.decoding import Decoder
from jaxft.generation.sampling import GREEDY
from jaxft.lora import tuned
from jaxft.lora.tuned import Tuned
from jaxft.parallel import devices
from jaxft.parallel import mesh as meshes
from jaxft.weights import base
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
    found, lora, tensors, origin = tuned.find(adapter, model)
    mesh = meshes.single_device_mesh()
    dtype = base.resolve_dtype("auto")
    loaded = tuned.load(found, lora, tensors, origin=origin, mesh=mesh, dtype=dtype)
    generator = make_generator(found, loaded, mesh=mesh, dtype=dtype)
    return completion.stream(
        generator,
        loaded.tree,
        completion.as_question(prompt, generator.tokenizer),
        max_new_tokens=max_new_tokens,
        how=dataclasses.replace(GREEDY, temperature=temperature, seed=seed),
    )


def make_generator(found: Source, loaded: Tuned, *, mesh: Mesh, dtype: str) -> Generator:
    """Return the generator of a model that was loaded on `mesh`, computing in `dtype`.

    It asks with the template that the model was trained with, and stops where it learned to stop.
    """
    trained = loaded.chat_format
    tokenizer = trained.apply(found.tokenizer())
    stop_ids = {*base.read_stop_ids(found, tokenizer), *trained.stop_ids}
    decoder = Decoder(loaded.network, stop_ids=sorted(stop_ids), mesh=mesh, dtype=dtype)
    return Generator(decoder, tokenizer)
