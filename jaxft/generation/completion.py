"""Prompts to answers: what a person asks, as tokens, through the decoder, and back as text.

Separate from decoding, which knows tokens and no text. The invariant: a prompt is tokenized here
exactly as the same prompt was in training.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxft.data.examples import tokens
from jaxft.data.rows.row import Message
from jaxft.generation import text
from jaxft.generation.decoding import Decoder
from jaxft.generation.sampling import Sampling

Prompt = str | Sequence[Message]


@dataclasses.dataclass(frozen=True)
class Generator:
    """A decoder and the tokenizer of its model.

    Attributes:
        decoder: Holds the compiled programs; any tree of its network will do.
        tokenizer: A fast tokenizer.
    """

    decoder: Decoder
    tokenizer: Any


def as_question(prompt: str, tokenizer: Any) -> Prompt:
    """Return the prompt as one user's message if the model is one that chats, else as it is."""
    return [{"role": "user", "content": prompt}] if tokenizer.chat_template else prompt


def complete(
    generator: Generator,
    tree: Mapping[str, Any],
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    how: Sampling,
    stop_strings: Sequence[str] = (),
    first_row: int = 0,
) -> list[str]:
    """Return the answer to every prompt, all of them decoded as one batch.

    Args:
        generator: The network's.
        tree: All leaves, of the base or of a tuned model: both run the same programs.
        prompts: Plain texts to go on from, or the messages of chats.
        max_new_tokens: The most that an answer gets.
        how: How tokens are picked.
        stop_strings: An answer ends with the first of them that it has, or with the model's own
            end.
        first_row: The number of the first prompt, for draws: see `Decoder.steps`.

    Raises:
        ConfigError: If a stop string is empty.
        DataError: If a prompt has no token, or the chat template does not take it.
    """
    encoded = [tokens.encode_prompt(prompt, generator.tokenizer) for prompt in prompts]
    rows = generator.decoder.rows(
        tree,
        encoded,
        max_new_tokens=max_new_tokens,
        how=how,
        first_row=first_row,
        ends=text.ends_with(generator.tokenizer, encoded, stop_strings),
    )
    return [text.decode(generator.tokenizer, row) for row in rows]


def stream(
    generator: Generator,
    tree: Mapping[str, Any],
    prompt: Prompt,
    *,
    max_new_tokens: int,
    how: Sampling,
    stop_strings: Sequence[str] = (),
) -> Iterator[str]:
    """Yield the answer to one prompt as it is made; joined, it is what `complete` returns.

    Arguments and errors are those of `complete`.
    """
    ids = tokens.encode_prompt(prompt, generator.tokenizer)
    ends = text.ends_with(generator.tokenizer, [ids], stop_strings)
    steps = generator.decoder.steps(tree, [ids], max_new_tokens=max_new_tokens, how=how, ends=ends)
    row = generator.decoder.row(steps, 0)
    return text.pieces(generator.tokenizer, row)
