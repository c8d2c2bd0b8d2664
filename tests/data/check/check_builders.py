"""Sides of a data set, encoded as a run encodes them."""

from __future__ import annotations

from types import SimpleNamespace

from data_builders import make_encoding, make_tokenizer

from jaxft.data.check import check
from jaxft.data.examples import encode
from jaxft.data.sources.source import rows_of


def make_side(values, name="made", tokenizer=None, **options):
    """Return rows and their examples as `jaxft.training.prepare.reading.Side` has them."""
    encoding = make_encoding(tokenizer or make_tokenizer(), **options)
    source = rows_of(values, name)
    return SimpleNamespace(
        sources=[source],
        encodings=[encoding],
        examples=[encode.encode_source(source, encoding)],
    )


def run_check(train, held_out=None, *, near=True, accepted=()):
    return check(
        train,
        held_out,
        None,
        near_duplicates=near,
        accepted=accepted,
        advance=lambda amount: None,
    )


def chat(question, answer):
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }
