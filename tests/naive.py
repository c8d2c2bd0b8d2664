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
from jaxft.models.spec import Learned, ModelSpec


def logits(network: Network, tree: Any, micro: Mapping[str, Any], xp: Any = np) -> Any:
    """Return the logits [b t v] of whole rows; `xp` is numpy, or `jax.numpy`."""
    spec = network.spec
    if xp is np:
        tree = jax.tree.map(np.asarray, tree)
    x = tree["embed"]["kernel"][micro["input_ids"]]
    if spec.embed_dim != spec.model_dim:
        x = _linear(_leaves(tree, "embed_in"), "embed_in", x)
    if isinstance(spec.positions, Learned):
        x = x + tree["positions"]["kernel"][micro["positions"] + spec.positions.offset]
    for block, leaves in zip(spec.blocks, tiny.layers_of(network, tree), strict=True):
        if spec.norm_placement == "pre":
            mixed = _norm(spec, leaves, "attn_norm", x, xp)
            x = x + _attention(spec, block.window, leaves, mixed, micro, xp)
            x = x + _mlp(spec, leaves, _norm(spec, leaves, "mlp_norm", x, xp), xp)
        else:
            x = x + _attention(spec, block.window, leaves, x, micro, xp)
            x = _norm(spec, leaves, "attn_norm", x, xp)
            x = _norm(spec, leaves, "mlp_norm", x + _mlp(spec, leaves, x, xp), xp)
    if spec.final_norm:
        x = _norm(spec, _leaves(tree, "final_norm"), "final_norm", x, xp)
    if spec.embed_dim != spec.model_dim:
        x = _linear(_leaves(tree, "embed_out"), "embed_out", x)
    head = _leaves(tree, "head")
    if not network.has_own_head:
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
    q, k, v = (_linear(leaves, f"attn/{name}", x) for name in "qkv")
    if "attn/qkv/lora_a" in leaves:
        delta, q_width = _lora(leaves, "attn/qkv", x), spec.num_heads * width
        q = q + delta[..., :q_width]
        k = k + delta[..., q_width : q_width + g * width]
        v = v + delta[..., q_width + g * width :]
    q, k, v = q.reshape(b, t, -1, width), k.reshape(b, t, g, width), v.reshape(b, t, g, width)
    if not isinstance(spec.positions, Learned):
        q = rotate(q, micro["positions"], spec.positions.theta, xp)
        k = rotate(k, micro["positions"], spec.positions.theta, xp)
    q = q.reshape(b, t, g, -1, width)
    mixed = attention(q, k, v, visible(micro["segment_ids"], window), width**-0.5, xp)
    return _linear(leaves, "attn/o", mixed.reshape(b, t, -1))


def _linear(leaves: Mapping[str, Any], module: str, x: Any) -> Any:
    y = x @ leaves[f"{module}/kernel"]
    if f"{module}/bias" in leaves:
        y = y + leaves[f"{module}/bias"][None, None, :]
    return y + _lora(leaves, module, x) if f"{module}/lora_a" in leaves else y


def _lora(leaves: Mapping[str, Any], module: str, x: Any) -> Any:
    return tiny.SCALING * (x @ leaves[f"{module}/lora_a"].T @ leaves[f"{module}/lora_b"])


def _mlp(spec: ModelSpec, leaves: Mapping[str, Any], x: Any, xp: Any) -> Any:
    """Apply SwiGLU, or two linear maps with a ReLU between them; no other activation."""
    up = _linear(leaves, "mlp/up", x)
    if spec.mlp == "plain":
        return _linear(leaves, "mlp/down", xp.maximum(up, 0))
    gate = _linear(leaves, "mlp/gate", x)
    return _linear(leaves, "mlp/down", gate / (1 + xp.exp(-gate)) * up)


def _norm(spec: ModelSpec, leaves: Mapping[str, Any], name: str, x: Any, xp: Any) -> Any:
    if spec.norm == "layer":
        x = x - xp.mean(x, axis=-1, keepdims=True)
    x = x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + spec.norm_eps)
    x = x * leaves[f"{name}/scale"][None, None, :]
    return x + leaves[f"{name}/bias"][None, None, :] if spec.norm == "layer" else x


def _leaves(tree: Mapping[str, Any], module: str) -> dict[str, Any]:
    """Return the leaves of a module outside the layers, by path."""
    return {f"{module}/{name}": leaf for name, leaf in tree.get(module, {}).items()}
