"""Running one text through both sides, and how far apart the results are.

torch's side takes positions explicitly: transformers' `forward`, unlike its `generate`, counts
padding as positions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.sharding import Mesh
from reference_texts import Text

from jaxft import tree as trees
from jaxft.models import forward
from jaxft.models.network import Network
from jaxft.parallel import mesh as meshes

Record = Callable[[str, object], None]  # pytest's `record_property`: numbers seen, for reports
TOLERANCE = 1e-4  # largest difference of logits over the largest logit, float32


def torch_logits(model: torch.nn.Module, text: Text) -> np.ndarray:
    """Return transformers' logits, float32 [b t v]."""
    with torch.no_grad():
        return torch_forward(model, text).float().numpy()


def torch_forward(model: torch.nn.Module, text: Text) -> torch.Tensor:
    """Return transformers' logits with their graph."""
    arrays = (text.input_ids, text.attention_mask, text.positions)
    ids, mask, positions = (torch.tensor(array, dtype=torch.int64) for array in arrays)
    rope = getattr(model.config, "rope_parameters", None) or {}
    if rope.get("rope_type") not in ("longrope", "dynamic"):
        inputs = {"attention_mask": mask, "position_ids": positions}
        return model(input_ids=ids, use_cache=False, **inputs).logits
    # It takes one set of factors for the whole batch, by the longest row: a row at a time then.
    rows = zip(ids.split(1), mask.split(1), positions.split(1), strict=True)
    each = []
    for row, seen, places in rows:
        model(input_ids=row[:, :1], use_cache=False)  # a dynamic rope forgets longer texts by it
        inputs = {"attention_mask": seen, "position_ids": places}
        each.append(model(input_ids=row, use_cache=False, **inputs).logits)
    return torch.cat(each)


def torch_loss_sum(model: torch.nn.Module, text: Text, labels: np.ndarray) -> torch.Tensor:
    """Return the summed loss in nats over shifted labels, with its graph."""
    logits = torch_forward(model, text).float().flatten(0, 1)
    targets = torch.tensor(labels, dtype=torch.int64).flatten()
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")


def our_logits(
    network: Network,
    tree: Mapping[str, Any],
    text: Text,
    mesh: Mesh,
    dtype: str = "float32",
) -> np.ndarray:
    """Return jaxft's logits, float32 [b t v]."""
    inputs = (text.input_ids, text.attention_mask, text.positions)
    placed = jax.device_put(inputs, meshes.rows(mesh, 0))
    return np.asarray(_logits(network, mesh, dtype, tree, *placed))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _logits(network: Network, mesh: Mesh, dtype: str, tree: trees.Tree, *inputs: Any) -> Any:
    hidden = forward.hidden_states(network, tree, *inputs, mesh=mesh, dtype=dtype)
    return forward.head_logits(network, mesh, forward.head_leaves(network, tree), hidden, None)


def greedy(
    network: Network, tree: trees.Tree, prompts: Text, mesh: Mesh, num_tokens: int
) -> np.ndarray:
    """Continue padded prompts by the most likely token, int32 [b num_tokens]."""

    @jax.jit
    def advance(
        tree: trees.Tree, cache: forward.Cache, tokens: Any, valid: Any, lengths: Any
    ) -> Any:
        hidden, cache = forward.extend(
            network, tree, cache, tokens, valid, lengths, mesh=mesh, dtype="float32"
        )
        leaves = forward.head_leaves(network, tree)
        logits = forward.head_logits(network, mesh, leaves, hidden[:, -1:], None)
        return cache, jnp.argmax(logits, axis=-1).astype(jnp.int32)

    batch, width = prompts.input_ids.shape
    cache = forward.empty_cache(network, batch, width + num_tokens, "float32")
    lengths = prompts.attention_mask.sum(axis=1, dtype=np.int32)
    cache, token = advance(tree, cache, prompts.input_ids, prompts.is_token, lengths)
    tokens, every = [token], jnp.ones((batch, 1), bool)
    while len(tokens) < num_tokens:
        cache, token = advance(tree, cache, token, every, cache.next_position + 1)
        tokens.append(token)
    return np.concatenate(tokens, axis=1)


def difference(ours: np.ndarray, theirs: np.ndarray, text: Text) -> float:
    """Return the largest difference at tokens over the largest of `theirs` there."""
    ours, theirs = ours[text.is_token], theirs[text.is_token]
    assert np.isfinite(theirs).all()
    assert np.isfinite(ours).all()
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def norm_difference(ours: Any, theirs: Any) -> float:
    """Return the norm of the difference over the norm of `theirs`."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
