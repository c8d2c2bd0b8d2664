"""`resize_token_embeddings` and tokenizers with added tokens, for models in Python.

Separate from `model` for its length. The first rows stay as they are; one that is made begins as
the mean of those in the model's files, where transformers draws it closely around that.
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
    """Return to how many rows a model is to be resized.

    Args:
        model: The model.
        wanted: How many, such as `len(model.tokenizer)`; `None` is as many as there are.
        multiple_of: To a multiple of what that is rounded up, if to any.
        mean_resizing: Whether new rows begin as the mean; other starts are not supported.

    Raises:
        ConfigError: If a number is out of range, or another start is asked for.
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
    """Return a model's source with so many rows, and with the tokens its tokenizer was given.

    Raises:
        ConfigError: If anything of the model is tuned, or about to be.
    """
    if model.is_tuned or model.network != base_network(model.network.spec):
        raise ConfigError(
            "The model was tuned, or is about to be, with the rows that it has.",
            "Resize what from_pretrained returns, before anything else is done to it.",
        )
    stored = vocabulary.stored_rows(model.source)
    found = vocabulary.resized(model.source, rows, new_ids=range(stored, max(rows, stored)))
    tokenizer = model.__dict__.get("tokenizer")  # in use already, and perhaps added to
    return found if tokenizer is None else new_tokens.carrying(found, tokenizer)


def with_tokenizer(model: CausalLM, tokenizer: Any) -> None:
    """Have a model be written with a tokenizer, if that has other tokens than its own."""
    model.source = new_tokens.carrying(model.source, tokenizer)
