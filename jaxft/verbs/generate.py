"""`jaxft generate`: loads an adapter and its base model, and answers prompts.

The base is the one that the adapter names, unless the caller names another. `generation` decodes,
and neither reads files nor prints.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxft import console
from jaxft import tree as trees
from jaxft.artifacts import loaded
from jaxft.artifacts.loaded import Tuned
from jaxft.data.rows.row import Message
from jaxft.data.sources import prompts as prompt_files
from jaxft.generation import completion
from jaxft.generation.completion import Generator, Prompt
from jaxft.generation.decoding import CachedDecoder, check_below
from jaxft.generation.sampling import Sampling
from jaxft.parallel import devices
from jaxft.parallel import mesh as meshes
from jaxft.weights import base
from jaxft.weights.places.source import Source


@dataclasses.dataclass(frozen=True)
class Asked:
    """The model to ask, and the options of its answers.

    Attributes:
        adapter: The folder of the adapter; `None` asks the base model.
        model: The base model; `None` takes the one that the adapter names.
        max_new_tokens: The largest number of tokens in an answer.
        how: How tokens are picked.
        stop_strings: Strings that end an answer, besides the model's end tokens.
        eos_token_ids: The tokens that end an answer; `None` takes those of the model.
    """

    adapter: Path | None
    model: str | None
    max_new_tokens: int
    how: Sampling
    stop_strings: Sequence[str]
    eos_token_ids: Sequence[int] | None


@dataclasses.dataclass(frozen=True)
class Answerer:
    """A loaded model that answers prompts.

    Attributes:
        generator: The decoder and tokenizer of the model.
        tree: All leaves of the model.
        asked: The options of its answers.
    """

    generator: Generator
    tree: trees.Tree
    asked: Asked

    def answer(self, prompt: str | Sequence[Message]) -> Iterator[str]:
        """Yield the answer to a question or a chat in pieces, as they are made."""
        return completion.stream(
            self.generator,
            self.tree,
            self._as_prompt(prompt),
            max_new_tokens=self.asked.max_new_tokens,
            how=self.asked.how,
            stop_strings=self.asked.stop_strings,
        )

    def answers(self, file: str, batch_size: int) -> Iterator[str]:
        """Yield a JSON line for each prompt of a file, in order, as batches are done.

        A line is `{"prompt": "Why?", "answer": "Because."}`, or has `messages` in the place of
        `prompt`. The answers do not depend on the size of the batches.

        Raises:
            DataError: The file, or a prompt in it, cannot be read.
        """
        every = prompt_files.read(file)
        for first in range(0, len(every), batch_size):
            batch = every[first : first + batch_size]
            # The last batch is filled up, because another size would have to be compiled.
            filled = itertools.islice(itertools.cycle(batch), min(batch_size, len(every)))
            answers = completion.complete(
                self.generator,
                self.tree,
                [self._as_prompt(prompt) for prompt in filled],
                max_new_tokens=self.asked.max_new_tokens,
                how=self.asked.how,
                stop_strings=self.asked.stop_strings,
                first_row=first,
            )
            for prompt, answer in zip(batch, answers, strict=False):
                name = "prompt" if isinstance(prompt, str) else "messages"
                yield json.dumps({name: prompt, "answer": answer}, ensure_ascii=False)

    def chat(self, lines: Iterable[str]) -> Iterator[Iterator[str]]:
        """Yield, for each line of a chat, the pieces of the answer.

        The caller has to take all pieces of an answer before the next answer. Blank lines are
        skipped.

        Raises:
            DataError: The model has no chat template, or the chat has more tokens than the model
                has positions.
        """
        said: list[dict[str, Any]] = []
        for line in lines:
            if not line.strip():
                continue
            said.append({"role": "user", "content": line.rstrip("\r\n")})
            pieces: list[str] = []
            yield _noted(self.answer(list(said)), pieces)
            said.append({"role": "assistant", "content": "".join(pieces)})

    def _as_prompt(self, prompt: str | Sequence[Message]) -> Prompt:
        if isinstance(prompt, str):
            return completion.as_question(prompt, self.generator.tokenizer)
        return prompt


def _noted(pieces: Iterator[str], into: list[str]) -> Iterator[str]:
    for piece in pieces:
        into.append(piece)
        yield piece


def load(asked: Asked) -> Answerer:
    """Load the model to ask.

    Raises:
        JaxftError: The model or the adapter cannot be found or read, or do not fit each other.
    """
    if asked.how.temperature == 0 and asked.how.limits_draws:
        console.note("Nothing is drawn at temperature 0: top_k, top_p and min_p change nothing.")
    devices.check()
    console.note(f"Devices: {devices.describe()}")
    found, lora, tensors, origin = loaded.find(asked.adapter, asked.model)
    mesh = meshes.single_device_mesh()
    dtype = base.resolve_dtype("auto")
    tuned = loaded.load(found, lora, tensors, origin=origin, mesh=mesh, dtype=dtype)
    generator = make_generator(found, tuned, asked.eos_token_ids, mesh=mesh, dtype=dtype)
    return Answerer(generator, tuned.tree, asked)


def make_generator(
    found: Source,
    loaded: Tuned,
    eos_token_ids: Sequence[int] | None,
    *,
    mesh: Mesh,
    dtype: str,
) -> Generator:
    """Return the generator of a model that was loaded on `mesh`, computing in `dtype`.

    It uses the chat template that the model was trained with. It stops at `eos_token_ids` or, if
    these are `None`, at the end tokens that the model was trained with.

    Raises:
        DataError: One of `eos_token_ids` is beyond the model's vocabulary.
    """
    trained = loaded.chat_format
    tokenizer = trained.apply(found.tokenizer())
    if eos_token_ids is None:
        eos_token_ids = sorted({*base.read_stop_ids(found, tokenizer), *trained.stop_ids})
    else:
        check_below(eos_token_ids, loaded.network.spec.vocab_size, "token")
    decoder = CachedDecoder(loaded.network, stop_ids=eos_token_ids, mesh=mesh, dtype=dtype)
    return Generator(decoder, tokenizer)
