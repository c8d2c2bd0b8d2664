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
from jaxft.models.spec import Alibi, ConvSpec, Learned, MLPSpec, ModelSpec, Rope, Sinusoidal


def logits(network: Network, tree: Any, micro: Mapping[str, Any], xp: Any = np) -> Any:
    """Return the logits [b t v] of whole rows; `xp` is numpy, or `jax.numpy`."""
    spec = network.spec
    if xp is np:
        tree = jax.tree.map(np.asarray, tree)
    x = _embedded(network, tree, micro, xp)
    for block, leaves in zip(spec.blocks, tiny.layers_of(network, tree), strict=True):

        def attend(y: Any, block: Any = block, leaves: Any = leaves) -> Any:
            if isinstance(block.mixer, ConvSpec):
                return _convolution(leaves, y, micro, xp)
            return _attention(spec, block, leaves, y, micro, xp)

        def feed(y: Any, mlp: Any = block.mlp, leaves: Any = leaves) -> Any:
            return _mlp(mlp, leaves, y, xp)

        x = _block(spec, leaves, x, attend, feed, xp)
    if spec.final_norm:
        x = _norm(spec, _leaves(tree, "final_norm"), "final_norm", x, xp)
    if spec.embed_dim != spec.model_dim:
        x = _linear(_leaves(tree, "embed_out"), "embed_out", x)
    head = _leaves(tree, "head")
    if not network.has_own_head:
        head["head/kernel"] = tree["embed"]["kernel"].T
    if network.head_rows is not None:
        owner, rows = network.head_rows
        head["head/kernel"] = _with_rows(head["head/kernel"].T, rows, tree[owner]["rows"], xp).T
    if network.ties_adapters:
        head |= {"head/lora_a": tree["embed"]["lora_b"], "head/lora_b": tree["embed"]["lora_a"]}
    scores = _linear(head, "head", x) * spec.logit_scale
    return _capped(scores, spec.logit_softcap, xp)


def _table(network: Network, tree: Any, module: str, xp: Any) -> Any:
    """Return a whole table of embeddings with what is trained of it."""
    leaves, rows = tree[module], dict(network.rows).get(module)
    table = leaves["kernel"]
    if "lora_a" in leaves:
        table = table + tiny.SCALING * leaves["lora_a"].T @ leaves["lora_b"]
    return table if rows is None else _with_rows(table, rows, leaves["rows"], xp)


def _with_rows(table: Any, rows: Any, trained: Any, xp: Any) -> Any:
    by_token = dict(zip(rows, trained, strict=True))
    return xp.stack([by_token.get(token, row) for token, row in enumerate(table)])


def _embedded(network: Network, tree: Any, micro: Any, xp: Any) -> Any:
    spec = network.spec
    x = _table(network, tree, "embed", xp)[micro["input_ids"]] * spec.embed_scale
    if spec.embed_dim != spec.model_dim:
        x = _linear(_leaves(tree, "embed_in"), "embed_in", x)
    if isinstance(spec.positions, Learned):
        rows = micro["positions"] + spec.positions.offset
        x = x + _table(network, tree, "positions", xp)[rows]
    if isinstance(spec.positions, Sinusoidal):
        half = spec.model_dim // 2
        powers = 10_000.0 ** (-np.arange(half) / (half - 1))
        turns = (np.asarray(micro["positions"]) + spec.positions.offset)[..., None] * powers
        x = x + np.concatenate([np.sin(turns), np.cos(turns)], -1).astype(np.float32)
    return _norm(spec, _leaves(tree, "embed_norm"), "embed_norm", x, xp) if spec.embed_norm else x


def _block(spec: ModelSpec, leaves: Any, x: Any, attend: Any, feed: Any, xp: Any) -> Any:
    def norm(name: str, y: Any) -> Any:
        return _norm(spec, leaves, name, y, xp)

    scale = spec.residual_scale
    match spec.norm_placement, spec.parallel:
        case "pre", "one_norm":
            read = norm("attn_norm", x)
            return x + scale * attend(read) + scale * feed(read)
        case "pre", "two_norms":
            read = norm("mlp_norm", x)
            return x + scale * attend(norm("attn_norm", x)) + scale * feed(read)
        case "pre", _:
            x = x + scale * attend(norm("attn_norm", x))
            return x + scale * feed(norm("mlp_norm", x))
        case "pre_residual", _:
            read = norm("attn_norm", x)
            read = norm("mlp_norm", read + scale * attend(read))
            return read + scale * feed(read)
        case "post", _:
            x = norm("attn_norm", x + scale * attend(x))
            return norm("mlp_norm", x + scale * feed(x))
        case "output", _:
            x = x + scale * norm("attn_out_norm", attend(x))
            return x + scale * norm("mlp_out_norm", feed(x))
        case _:
            x = x + scale * norm("attn_out_norm", attend(norm("attn_norm", x)))
            return x + scale * norm("mlp_out_norm", feed(norm("mlp_norm", x)))


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


def attention(
    q: Any,
    k: Any,
    v: Any,
    seen: Any,
    scale: float,
    xp: Any = np,
    *,
    softcap: float | None = None,
    slopes: Any = None,
) -> Any:
    """Attend by the whole score matrix: q [b t g m k]; k, v [b s g k]; seen [b t s]."""
    scores = xp.einsum("btgmk,bsgk->btgms", q, k) * scale
    if slopes is not None:
        heads = np.asarray(slopes, np.float32).reshape(1, 1, *q.shape[2:4], 1)
        behind = np.arange(q.shape[1])[:, None] - np.arange(k.shape[1])[None, :]
        behind = np.maximum(behind, 0).astype(np.float32).reshape(1, q.shape[1], 1, 1, -1)
        scores = scores - heads * behind
    scores = _capped(scores, softcap, xp)
    scores = xp.where(seen[:, :, None, None, :], scores, -np.inf)
    weights = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
    weights = weights / xp.sum(weights, axis=-1, keepdims=True)
    return xp.einsum("btgms,bsgk->btgmk", weights, v)


def _capped(scores: Any, cap: float | None, xp: Any) -> Any:
    return scores if cap is None else cap * xp.tanh(scores / cap)


def rotate(x: Any, positions: Any, rope: Rope, xp: Any = np) -> Any:
    """Turn the channel pairs of x [b t h k], as complex numbers."""
    half = rope.rotary_dim // 2
    per_position = rope.theta ** (-np.arange(half) / half)
    turn = np.exp(1j * np.asarray(positions)[..., None] * per_position).astype(np.complex64)
    part, rest = x[..., : 2 * half], x[..., 2 * half :]
    if rope.interleaved:
        pairs = part[..., 0::2] + 1j * part[..., 1::2]
    else:
        pairs = part[..., :half] + 1j * part[..., half:]
    turned = pairs * turn[:, :, None, :]
    if rope.interleaved:
        part = xp.stack([turned.real, turned.imag], -1).reshape(part.shape)
    else:
        part = xp.concatenate([turned.real, turned.imag], axis=-1)
    return xp.concatenate([part, rest], axis=-1)


def alibi_slopes(num_heads: int) -> list[float]:
    """Return 2^(-8/n), 2^(-16/n), ... for n heads, n a power of two."""
    return [2.0 ** (-8.0 * (head + 1) / num_heads) for head in range(num_heads)]


def _attention(spec: ModelSpec, block: Any, leaves: Any, x: Any, micro: Any, xp: Any) -> Any:
    b, t, g, width = *x.shape[:2], spec.num_kv_heads, spec.head_dim
    q, k, v = _linears(leaves, "attn/qkv", ["attn/q", "attn/k", "attn/v"], x, xp)
    if spec.qk_norm == "full":
        q, k = (_norm(spec, leaves, f"attn/{n}_norm", y, xp) for n, y in (("q", q), ("k", k)))
    q, k, v = q.reshape(b, t, -1, width), k.reshape(b, t, g, width), v.reshape(b, t, g, width)
    if spec.qk_norm == "head":
        q, k = (_norm(spec, leaves, f"attn/{n}_norm", y, xp) for n, y in (("q", q), ("k", k)))
    if block.rope is not None:
        q = rotate(q, micro["positions"], block.rope, xp)
        k = rotate(k, micro["positions"], block.rope, xp)
    if spec.qk_norm == "turned":
        q, k = (_norm(spec, leaves, f"attn/{n}_norm", y, xp) for n, y in (("q", q), ("k", k)))
    if spec.query_scaling is not None:
        lengths = np.asarray(micro["positions"]) // spec.query_scaling.length
        growth = 1 + spec.query_scaling.beta * np.log(1 + lengths)
        q = q * growth.astype(np.float32)[:, :, None, None]
    q = q.reshape(b, t, g, -1, width)
    mixed = attention(
        q,
        k,
        v,
        visible(micro["segment_ids"], block.window),
        spec.attn_scale,
        xp,
        softcap=spec.attn_softcap,
        slopes=alibi_slopes(spec.num_heads) if isinstance(spec.positions, Alibi) else None,
    )
    mixed = mixed.reshape(b, t, -1)
    if spec.attn_gate:
        mixed = mixed / (1 + xp.exp(-_linear(leaves, "attn/gate", x)))
    return _linear(leaves, "attn/o", mixed)


def _convolution(leaves: Mapping[str, Any], x: Any, micro: Any, xp: Any) -> Any:
    """Mix each token with those just before it that are of the same segment."""
    b, c, inner = _linears(leaves, "conv/bcx", ["conv/b", "conv/c", "conv/x"], x, xp)
    kernel, inputs = leaves["conv/taps/kernel"][:, 0], b * inner
    width, segments = kernel.shape[1], np.asarray(micro["segment_ids"])
    total = xp.zeros(x.shape, np.float32)
    for token in range(x.shape[1]):
        for back in range(min(width, token + 1)):
            same = (segments[:, token] == segments[:, token - back])[:, None]
            part = inputs[:, token - back] * kernel[:, width - 1 - back]
            total = _added(total, token, xp.where(same, part, 0.0), xp)
    if "conv/taps/bias" in leaves:
        total = total + leaves["conv/taps/bias"]
    return _linear(leaves, "conv/o", c * total)


def _added(total: Any, token: int, part: Any, xp: Any) -> Any:
    if xp is not np:
        return total.at[:, token].add(part)
    total[:, token] += part
    return total


def _linear(leaves: Mapping[str, Any], module: str, x: Any) -> Any:
    kernel = leaves[f"{module}/kernel"]
    if f"{module}/lora_a" in leaves:
        kernel = kernel + tiny.SCALING * leaves[f"{module}/lora_a"].T @ leaves[f"{module}/lora_b"]
    if f"{module}/lora_a0" in leaves:
        kernel = kernel - tiny.SCALING * leaves[f"{module}/lora_a0"].T @ leaves[f"{module}/lora_b0"]
    if f"{module}/lora_magnitude" in leaves:
        norms = _constant((kernel**2).sum(axis=0) ** 0.5)
        kernel = kernel * (leaves[f"{module}/lora_magnitude"] / norms)[None, :]
    y = x @ kernel
    if f"{module}/bias" in leaves:
        y = y + leaves[f"{module}/bias"][None, None, :]
    if f"{module}/lora_bias" in leaves:
        y = y + tiny.SCALING * leaves[f"{module}/lora_bias"][None, None, :]
    return y


def _linears(leaves: Mapping[str, Any], fused: str, parts: list[str], x: Any, xp: Any) -> list[Any]:
    """Apply several modules, as the one that they are for an adapter if there is one."""
    if f"{fused}/lora_a" not in leaves:
        return [_linear(leaves, part, x) for part in parts]
    joined = {path: leaf for path, leaf in leaves.items() if path.startswith(f"{fused}/")}
    for name in ("kernel", "bias"):
        if f"{parts[0]}/{name}" in leaves:
            joined[f"{fused}/{name}"] = xp.concatenate([leaves[f"{p}/{name}"] for p in parts], -1)
    ends = np.cumsum([leaves[f"{part}/kernel"].shape[-1] for part in parts])[:-1]
    return xp.split(_linear(joined, fused, x), ends, axis=-1)


def _constant(values: Any) -> Any:
    return values if isinstance(values, np.ndarray) else jax.lax.stop_gradient(values)


def _mlp(mlp: MLPSpec, leaves: Mapping[str, Any], x: Any, xp: Any) -> Any:
    """Apply SwiGLU, or two linear maps with a ReLU or xIELU between them; nothing else."""
    if mlp.activation == "xielu":
        y = _linear(leaves, "mlp/up", x)
        p, n = (xp.log(1 + xp.exp(leaves[f"mlp/act/alpha_{sign}"])) for sign in "pn")
        beta = leaves["mlp/act/beta"]
        bent = xp.where(y > 0, p * y * y, (xp.exp(xp.minimum(y, 0)) - 1 - y) * (beta + n))
        return _linear(leaves, "mlp/down", bent + beta * y)
    if mlp.kind == "plain":
        return _linear(leaves, "mlp/down", xp.maximum(_linear(leaves, "mlp/up", x), 0))
    gate, up = _linears(leaves, "mlp/gate_up", ["mlp/gate", "mlp/up"], x, xp)
    return _linear(leaves, "mlp/down", gate / (1 + xp.exp(-gate)) * up)


def _norm(spec: ModelSpec, leaves: Mapping[str, Any], name: str, x: Any, xp: Any) -> Any:
    norm = spec.norm_of(name.rpartition("/")[2])
    if norm.kind == "layer":
        x = x - xp.mean(x, axis=-1, keepdims=True)
    x = x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + norm.eps)
    shape = (1,) * (x.ndim - 1) + (-1,)
    if norm.scale != "none":
        x = x * (leaves[f"{name}/scale"].reshape(shape) + (norm.scale == "offset"))
    return x + leaves[f"{name}/bias"].reshape(shape) if norm.bias else x


def _leaves(tree: Mapping[str, Any], module: str) -> dict[str, Any]:
    """Return the leaves of a module outside the layers, by path."""
    return {f"{module}/{name}": leaf for name, leaf in tree.get(module, {}).items()}
