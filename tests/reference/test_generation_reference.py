"""Greedy continuation through the cache, held to transformers' `generate` token by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")

import reference_texts
import torch
from jax.sharding import Mesh
from reference_models import WINDOW, TinyModel

from jaxft.models import forward
from jaxft.models.network import Network

pytestmark = pytest.mark.reference

LENGTHS, NEW_TOKENS = (19, 13), 24


@pytest.mark.parametrize("name", ["llama-tied", "llama-rope-llama3", "mistral-window"])
def test_greedy_continuation_equals_transformers(
    name: str, tiny_model: Callable[..., TinyModel], one_device: Mesh
) -> None:
    assert min(LENGTHS) > WINDOW
    model = tiny_model(name)
    prompts = reference_texts.draw(LENGTHS, "left", model.spec.vocab_size, seed=3)
    ours = greedy(model.network, model.load(model.network, one_device), prompts, one_device)
    theirs = model.torch_model.generate(
        torch.tensor(prompts.input_ids, dtype=torch.int64),
        attention_mask=torch.tensor(prompts.attention_mask, dtype=torch.int64),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
    )
    np.testing.assert_array_equal(ours, theirs[:, max(LENGTHS) :].numpy())
    # Neither stuck on one token nor the same in both rows.
    assert all(len(set(row)) > NEW_TOKENS // 3 for row in ours.tolist())
    assert ours[0].tolist() != ours[1].tolist()


def greedy(network: Network, tree: Any, prompts: reference_texts.Text, mesh: Mesh) -> np.ndarray:
    """Continue padded prompts by the most likely token, `NEW_TOKENS` times."""

    @jax.jit
    def advance(cache: forward.Cache, tokens: Any, valid: Any) -> Any:
        hidden, cache = forward.extend(
            network, tree, cache, tokens, valid, mesh=mesh, dtype="float32"
        )
        leaves = forward.head_leaves(network, tree)
        logits = forward.head_logits(network, mesh, leaves, hidden[:, -1:])
        return cache, jnp.argmax(logits, axis=-1).astype(jnp.int32)

    batch, width = prompts.input_ids.shape
    cache = forward.empty_cache(network, batch, width + NEW_TOKENS, "float32")
    cache, token = advance(cache, prompts.input_ids, prompts.is_token)
    tokens, every = [token], jnp.ones((batch, 1), bool)
    while len(tokens) < NEW_TOKENS:
        cache, token = advance(cache, token, every)
        tokens.append(token)
    return np.concatenate(tokens, axis=1)
