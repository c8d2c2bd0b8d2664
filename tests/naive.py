"""The decoder once more, as plainly as it can be written: the oracle of forward and gradients.

No scan, no chunk, no primitive, no mesh: a loop over layers, a full score matrix, complex numbers
for the rotation, and autodiff for everything backward. Runs on numpy (nothing to compile), or on
`jax.numpy` where it is to be differentiated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import tiny

from jaxft.models.network import Network
from jaxft.models.spec import ModelSpec


def logits(network: Network, tree: Any, micro: Mapping[str, Any], xp: Any = np) -> Any:
    """Return the logits [b t v] of whole rows; `xp` is numpy, or `jax.numpy`."""
    spec = network.spec
    if xp is np:
        tree = jax.tree.map(np.asarray, tree)
    x = tree["embed"]["kernel"][micro["input_ids"]]
    for block, leaves in zip(spec.blocks, tiny.layers_of(network, tree), strict=True):
        mixed = _norm(x, leaves["attn_norm/scale"], spec.norm_eps, xp)
        x = x + _attention(spec, block.window, leaves, mixed, micro, xp)
        mixed = _norm(x, leaves["mlp_norm/scale"], spec.norm_eps, xp)
        gate, up = _linear(leaves, "mlp/gate", mixed), _linear(leaves, "mlp/up", mixed)
        x = x + _linear(leaves, "mlp/down", gate / (1 + xp.exp(-gate)) * up)
    x = _norm(x, tree["final_norm"]["scale"], spec.norm_eps, xp)
    head = {f"head/{name}": leaf for name, leaf in tree.get("head", {}).items()}
    if spec.tied_head:
        head["head/kernel"] = tree["embed"]["kernel"].T
    return _linear(head, "head", x)


def loss_sum(network: Network, tree: Any, micro: Mapping[str, Any], xp: Any = np) -> Any:
    """Return the summed negative log-likelihood of the labels."""
    values = logits(network, tree, micro, xp)
    labels = micro["labels"]
    log_sum = xp.log(xp.sum(xp.exp(values), axis=-1))
    picked = xp.take_along_axis(values, np.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    return xp.sum(xp.where(labels == -100, 0.0, log_sum - picked))


def visible(segment_ids: Any, window: int | None) -> np.ndarray:
    """Return which keys each query sees, bool [b t s]."""
    segment_ids = np.asarray(segment_ids)
    length = segment_ids.shape[1]
    behind = np.arange(length)[:, None] - np.arange(length)[None, :]
    seen = (behind >= 0) & (behind < (length if window is None else window))
    return (segment_ids[:, :, None] == segment_ids[:, None, :]) & seen[None]


def attention(q: Any, k: Any, v: Any, seen: np.ndarray, scale: float, xp: Any = np) -> Any:
    """Attend by the whole score matrix: q [b t g m k]; k, v [b s g k]; seen [b t s]."""
    scores = xp.einsum("btgmk,bsgk->btgms", q, k) * scale
    scores = xp.where(seen[:, :, None, None, :], scores, -np.inf)
    weights = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
    weights = weights / xp.sum(weights, axis=-1, keepdims=True)
    return xp.einsum("btgms,bsgk->btgmk", weights, v)


def rotate(x: Any, positions: Any, theta: float, xp: Any = np) -> Any:
    """Turn the channel pairs (i, i + half) of x [b t h k], as complex numbers."""
    half = x.shape[-1] // 2
    per_position = theta ** (-np.arange(half) / half)
    turn = np.exp(1j * np.asarray(positions)[..., None] * per_position).astype(np.complex64)
    turned = (x[..., :half] + 1j * x[..., half:]) * turn[:, :, None, :]
    return xp.concatenate([turned.real, turned.imag], axis=-1)


def _attention(
    spec: ModelSpec, window: int | None, leaves: Any, x: Any, micro: Any, xp: Any
) -> Any:
    b, t, g, width = *x.shape[:2], spec.num_kv_heads, spec.head_dim
    q = _linear(leaves, "attn/q", x).reshape(b, t, -1, width)
    k = _linear(leaves, "attn/k", x).reshape(b, t, g, width)
    v = _linear(leaves, "attn/v", x).reshape(b, t, g, width)
    q = rotate(q, micro["positions"], spec.rope.theta, xp).reshape(b, t, g, -1, width)
    k = rotate(k, micro["positions"], spec.rope.theta, xp)
    mixed = attention(q, k, v, visible(micro["segment_ids"], window), width**-0.5, xp)
    return _linear(leaves, "attn/o", mixed.reshape(b, t, -1))


def _linear(leaves: Mapping[str, Any], module: str, x: Any) -> Any:
    y = x @ leaves[f"{module}/kernel"]
    if f"{module}/bias" in leaves:
        y = y + leaves[f"{module}/bias"][None, None, :]
    if f"{module}/lora_a" in leaves:
        inner = x @ leaves[f"{module}/lora_a"].T
        y = y + tiny.SCALING * (inner @ leaves[f"{module}/lora_b"])
    return y


def _norm(x: Any, scale: Any, eps: float, xp: Any) -> Any:
    return x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + eps) * scale[None, None, :]
