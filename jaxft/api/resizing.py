"""Implements `resize_token_embeddings` and tokenizers with added tokens for `CausalLM`.

Existing token rows stay as they are. A new row is the mean of the rows in the model's files;
transformers draws it at random, close to that mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxft.errors import ConfigError
from jaxft.models.network import base_network
from jaxft.weights.places import new_tokens, vocabulary
from jaxft.weights.places.source import Source

if TYPE_CHECKING:
    from jaxft.api.model import CausalLM


def num_rows(
    model: CausalLM, wanted: int | None, multiple_of: int | None, mean_resizing: bool
) -> int:
    """Return the number of token rows that a resized model will have.

    Args:
        model: The model.
        wanted: The requested number, such as `len(model.tokenizer)`; `None` keeps the present one.
        multiple_of: The number is rounded up to a multiple of this; `None` for no rounding.
        mean_resizing: Whether new rows are the mean of the old ones; it must be true.

    Raises:
        ConfigError: If a number is out of range, or `mean_resizing` is false.
    """
    rows = model.network.spec.vocab_size if wanted is None else wanted
    if rows < 1 or (multiple_of is not None and multiple_of < 1) or not mean_resizing:
        raise ConfigError(
            f"resize_token_embeddings was given new_num_tokens={wanted}, "
            f"pad_to_multiple_of={multiple_of}, mean_resizing={mean_resizing}.",
            "Give at least 1 of each; new rows begin as the mean (mean_resizing=True).",
        )
    return rows if multiple_of is None else -(-rows // multiple_of) * multiple_of


def resized(model: CausalLM, rows: int) -> Source:
    """Return a model's source with `rows` token rows, and with the tokenizer's added tokens.

    Raises:
        ConfigError: If the model was tuned, or has trained parts already.
    """
    if model.is_tuned or model.network != base_network(model.network.spec):
        raise ConfigError(
            "The model was tuned, or is about to be, with the rows that it has.",
            "Resize what from_pretrained returns, before anything else is done to it.",
        )
    stored = vocabulary.stored_rows(model.source)
    found = vocabulary.resized(model.source, rows, new_ids=range(stored, max(rows, stored)))
    tokenizer = model.__dict__.get("tokenizer")  # if it is in use, it may have added tokens
    return found if tokenizer is None else new_tokens.carrying(found, tokenizer)


def with_tokenizer(model: CausalLM, tokenizer: Any) -> None:
    """Set the tokenizer that a model is saved with, if its tokens differ from the model's own."""
    model.source = new_tokens.carrying(model.source, tokenizer)
