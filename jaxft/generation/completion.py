"""Answers prompts: encodes a prompt, decodes new tokens, and converts these to text.

`decoding` handles only tokens. A prompt is encoded with the same tokens here as in training.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxft.data.examples import tokens
from jaxft.data.rows.row import Message
from jaxft.generation import text
from jaxft.generation.decoding import CachedDecoder
from jaxft.generation.sampling import Sampling

Prompt = str | Sequence[Message]


@dataclasses.dataclass(frozen=True)
class Generator:
    """A decoder and the tokenizer of its model.

    Attributes:
        decoder: The decoder, whose compiled programs run any tree of its network.
        tokenizer: A fast tokenizer.
    """

    decoder: CachedDecoder
    tokenizer: Any


def as_question(prompt: str, tokenizer: Any) -> Prompt:
    """Return the prompt as a user's message if the tokenizer has a chat template, else as text."""
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
    """Return the answer to every prompt, decoded together as one batch.

    Args:
        generator: The generator of the network.
        tree: All leaves of the network.
        prompts: Plain texts to continue, or the messages of chats.
        max_new_tokens: The largest number of tokens in an answer.
        how: How tokens are picked.
        stop_strings: An answer ends after the first of these strings, or at a stop token.
        first_row: The number of the first prompt, for random draws: see `CachedDecoder.steps`.

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
    """Yield the answer to one prompt in pieces as it is made; `complete` returns the joined pieces.

    The arguments and errors are those of `complete`.
    """
    ids = tokens.encode_prompt(prompt, generator.tokenizer)
    ends = text.ends_with(generator.tokenizer, [ids], stop_strings)
    steps = generator.decoder.steps(tree, [ids], max_new_tokens=max_new_tokens, how=how, ends=ends)
    row = generator.decoder.row(steps, 0)
    return text.pieces(generator.tokenizer, row)
