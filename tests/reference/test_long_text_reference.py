"""Generation where rotary embeddings depend on the length of the text, held to transformers.

Texts shorter and longer than the length that the model began with (40), and that grow past it;
prompts that are read in parts; and a batch of all of them, whose rows are each what transformers
makes of that row alone. (Transformers goes, in a batch, by the longest row.)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("torch")

import cases
import torch
from jax.sharding import Mesh
from reference_models import TinyModel

from jaxft.generation.decoding import CHUNK, CachedDecoder
from jaxft.generation.sampling import GREEDY

pytestmark = pytest.mark.reference

ORIGINAL, NEW_TOKENS = 40, 20
LENGTHS = {
    "in parts": CHUNK + 22,  # of which the first has less than the original length
    "long": ORIGINAL + 1,
    "as long": ORIGINAL,  # the first new token is the last with the angles of a short text
    "grows past": ORIGINAL - 11,
    "short": ORIGINAL - NEW_TOKENS,
}


def prompt(length: int, seed: int = 0) -> list[int]:
    rng = np.random.default_rng([length, seed])
    return rng.integers(0, cases.VOCAB_SIZE, length).tolist()


def theirs(model: TinyModel, row: list[int], *, use_cache: bool = True) -> list[int]:
    ids = torch.tensor([row])
    found = model.torch_model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        use_cache=use_cache,
        pad_token_id=0,
    )
    return found[0, len(row) :].tolist()


@pytest.mark.parametrize("name", ["phi3-long-part-tied", "phi3-long-window", "llama-rope-long"])
def test_texts_of_all_lengths_are_continued_as_transformers_continues_each(
    name: str, tiny_model: Callable[..., TinyModel], one_device: Mesh
) -> None:
    model = tiny_model(name, std=0.3)
    decoder = CachedDecoder(model.network, stop_ids=(), mesh=one_device, dtype="float32")
    tree = model.load(model.network, one_device)
    rows = [prompt(length) for length in LENGTHS.values()]
    # Only Phi-3's class drops its cache where the angles change; without a cache all are right.
    expected = [theirs(model, row, use_cache=name != "llama-rope-long") for row in rows]
    together = decoder.rows(tree, rows, max_new_tokens=NEW_TOKENS, how=GREEDY)
    for length, ours, right in zip(LENGTHS, together, expected, strict=True):
        assert ours == right, length
        assert len(set(right)) > NEW_TOKENS // 3, length
    alone = [LENGTHS["in parts"], LENGTHS["grows past"]]
    for length in alone:
        row = prompt(length)
        ours = decoder.rows(tree, [row], max_new_tokens=NEW_TOKENS, how=GREEDY)
        assert ours == [expected[rows.index(row)]]
