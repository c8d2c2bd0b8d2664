"""Tokens that are added to a model's tokenizer, with their rows in the embedding.

A row here is always a row of the embedding or the head: the vector of one token. `vocabulary` makes
new rows and knows no tokenizer. A note says for each named token whether it is new.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxft.errors import ConfigError, JaxftError
from jaxft.weights.places import vocabulary
from jaxft.weights.places.source import Source
from jaxft.weights.places.vocabulary import Resized


def with_new_tokens(found: Source, tokens: Sequence[str], note: Callable[[str], None]) -> Source:
    """Return a model whose tokenizer has these tokens too, and whose embedding has rows for all.

    If the embedding has more rows than the tokenizer has tokens, the free rows are used first.

    Args:
        found: The model.
        tokens: The texts of the tokens, such as `["<tool>", "</tool>"]`. Without any, the model is
            returned unchanged.
        note: Called with lines about the tokens.

    Raises:
        ConfigError: The tokenizer does not take one of the tokens.
        WeightsError: There is no tokenizer, or a damaged one.
    """
    if not tokens:
        return found
    tokenizer, rows = found.tokenizer(), vocabulary.stored_rows(found)
    known, wanted = tokenizer.get_vocab(), list(dict.fromkeys(tokens))
    tokenizer.add_tokens(wanted)
    now = tokenizer.get_vocab()
    if lost := [token for token in wanted if token not in now]:
        raise ConfigError(
            f"model.new_tokens has {lost[0]!r}, which the model's tokenizer does not take.",
            "Give texts of visible characters, such as '<tool>'.",
        )
    # The tokenizer may already have tokens without a row in the embedding.
    new = {token: now[token] for token in wanted if token not in known or now[token] >= rows}
    needed = max(now.values()) + 1
    for line in _told(wanted, now, new, rows, len(tokens)):
        note(line)
    return vocabulary.resized(
        found, max(rows, needed), new_ids=sorted(new.values()), own_tokenizer=tokenizer
    )


def _told(
    wanted: Sequence[str],
    ids: Mapping[str, int],
    new: Mapping[str, int],
    rows: int,
    num_named: int,
) -> list[str]:
    """Return lines about the named tokens.

    Args:
        wanted: The texts of the tokens, each once.
        ids: The ids of all tokens of the tokenizer, by their texts.
        new: The ids of the wanted tokens that are new or had no row.
        rows: The number of rows of the embedding in the model's files.
        num_named: The number of texts in the recipe.
    """
    lines = []
    if num_named > len(wanted):
        lines.append(f"model.new_tokens names {num_named - len(wanted)} of its tokens twice.")
    if old := [token for token in wanted if token not in new]:
        listed = ", ".join(f"{token!r} is {ids[token]}" for token in old)
        lines.append(f"Tokens of the model already, whose rows stay as they are: {listed}.")
    if new:
        listed = ", ".join(f"{token!r} is {number}" for token, number in new.items())
        lines.append(f"New tokens: {listed}.")
    if free := [number for number in new.values() if number < rows]:
        lines.append(
            f"The embedding has {rows:,} rows, more than there were tokens: {len(free)} of the new "
            "tokens take a free one, which begins as it is in the model's files."
        )
    others = [token for token, number in ids.items() if number >= rows and token not in new]
    if others:
        lines.append(
            f"{len(others)} more tokens of the tokenizer had no row and get one, such as "
            f"{others[0]!r}."
        )
    needed = max(ids.values()) + 1
    if needed > rows:
        lines.append(
            f"Embedding and head grow from {rows:,} to {needed:,} rows; a row that is made begins "
            "as the mean of those in the model's files."
        )
    return lines


def note_beyond(tokenizer: Any, rows: int, note: Callable[[str], None]) -> None:
    """Print a note if the tokenizer has tokens beyond the `rows` of the embedding."""
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    if beyond:
        first = min(beyond, key=lambda token: beyond[token])
        note(
            f"The tokenizer has {len(beyond):,} tokens beyond the embedding's {rows:,} rows, from "
            f"{first!r} ({beyond[first]}) on: data with them is refused. Name them in "
            "model.new_tokens to have rows made for them."
        )


def carrying(found: Source, tokenizer: Any) -> Source:
    """Return a model with the tokenizer in use, if that has tokens which its own one lacks.

    The model is then written with this tokenizer.

    Args:
        found: The model.
        tokenizer: The tokenizer in use.
    """
    try:
        own = found.tokenizer().get_vocab()
    except JaxftError:
        return found  # it has no readable tokenizer, so its files are written without one
    added = {token: number for token, number in tokenizer.get_vocab().items() if token not in own}
    if not added:
        return found
    before = (
        found
        if isinstance(found, Resized)
        else vocabulary.resized(found, vocabulary.stored_rows(found))
    )
    new_ids = {*before.new_ids, *(number for number in added.values() if number < before.rows)}
    return dataclasses.replace(
        before, new_ids=tuple(sorted(new_ids)), own_tokenizer=copy.deepcopy(tokenizer)
    )
