"""The mathematics of a linear layer: the weight's product and the LoRA branch beside it.

Both are primitives with their own backward pass, for the sake of what they keep:

- `product` keeps the weight as it is stored (divided, perhaps narrower than the activations),
  never a gathered or cast copy; and it keeps its input only if the weight is being trained.
- `lora` keeps its input and ``x A^T``, if A or B is being trained; the dropout mask is computed
  again, not kept.

Which operands are trained is not a flag: JAX says at trace time which ones carry a tangent
(`symbolic_zeros`), so the mask over the parameter tree is the only place where it is decided.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, UInt32

from jaxft.models import dropout

Materialise = Callable[[Any, Any], jax.Array]  # (stored weight, dtype) -> weight as used


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product(
    x: Float[Array, "... n"], weight: Any, materialise: Materialise, out_dtype: Any
) -> Float[Array, "... m"]:
    """Return ``x @ W``, W being ``materialise(weight, x.dtype)`` of shape [n, m].

    Args:
        x: Activations; their dtype is the one computed in, sums are in float32.
        weight: The weight as stored.
        materialise: Static function from the stored weight to W.
        out_dtype: dtype of the result.
    """
    return _dot(x, materialise(weight, x.dtype), out_dtype)


def _product_fwd(x: Any, weight: Any, materialise: Materialise, out_dtype: Any) -> Any:
    stored = jax.tree.map(lambda leaf: leaf.value, weight, is_leaf=_is_primal)
    trained = any(leaf.perturbed for leaf in jax.tree.leaves(weight, is_leaf=_is_primal))
    y = _dot(x.value, materialise(stored, x.value.dtype), out_dtype)
    return y, (x.value if trained else None, stored, jnp.zeros((), x.value.dtype))


def _product_bwd(materialise: Materialise, out_dtype: Any, kept: Any, dy: Any) -> Any:
    x, weight, like = kept
    if isinstance(dy, SymbolicZero):
        return None, None
    dy = dy.astype(like.dtype)
    contract_out = (((dy.ndim - 1,), (1,)), ((), ()))
    if x is None:
        return jax.lax.dot_general(dy, materialise(weight, like.dtype), contract_out), None
    matrix, pull_back = jax.vjp(lambda w: materialise(w, like.dtype), weight)
    dx = jax.lax.dot_general(dy, matrix, contract_out)
    return dx, pull_back(_outer(x, dy).astype(matrix.dtype))[0]


product.defvjp(_product_fwd, _product_bwd, symbolic_zeros=True)


@jax.custom_vjp
def lora(
    x: Float[Array, "b t n"],
    a: Float[Array, "r n"],
    b: Float[Array, "r m"],
    scaling: Float[Array, ""],
    threshold: UInt32[Array, ""] | None,
    seeds: UInt32[Array, "b t"] | None,
) -> Float[Array, "b t m"]:
    """Return ``scaling * dropout(x) A^T B`` in float32.

    Args:
        x: Activations.
        a: Down projection, in PEFT's layout.
        b: Up projection, the transpose of PEFT's.
        scaling: Factor on the output, float32; it has no gradient.
        threshold: Of dropout, see `dropout.threshold`; `None` for an adapter without dropout.
        seeds: One hash a token, see `dropout.module_seeds`; `None` outside training.

    Source: Hu et al. 2021, eq. 3; `peft/tuners/lora/layer.py: Linear.forward`.
    """
    return _lora_fwd_arrays(x, a, b, scaling, threshold, seeds)[0]


def _lora_fwd_arrays(x: Any, a: Any, b: Any, scaling: Any, threshold: Any, seeds: Any) -> Any:
    dropped = dropout.apply(x, threshold, seeds)
    # [b t r], float32: cheap at this width, and what B is multiplied with in PEFT.
    inner = jax.lax.dot_general(
        dropped,
        a.astype(x.dtype),
        (((x.ndim - 1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    return _dot(inner * scaling, b.astype(jnp.float32), jnp.float32), inner


def _lora_fwd(x: Any, a: Any, b: Any, scaling: Any, threshold: Any, seeds: Any) -> Any:
    operands = (x, a, b, scaling, threshold, seeds)
    values = tuple(None if each is None else each.value for each in operands)
    y, inner = _lora_fwd_arrays(*values)
    trained = a.perturbed or b.perturbed
    kept = (x.value, inner) if trained else (None, None)
    return y, (*kept, *values[1:], jnp.zeros((), x.value.dtype))


def _lora_bwd(kept: Any, dy: Any) -> Any:
    x, inner, a, b, scaling, threshold, seeds, like = kept
    if isinstance(dy, SymbolicZero):
        return (None,) * 6
    dy = dy * scaling
    contract_out = (((dy.ndim - 1,), (1,)), ((), ()))
    d_inner = jax.lax.dot_general(dy, b.astype(dy.dtype), contract_out)
    dx = _dot(d_inner, a.astype(d_inner.dtype), jnp.float32)
    dx = dropout.apply(dx, threshold, seeds).astype(like.dtype)
    if x is None:
        return dx, None, None, None, None, None
    da = _outer(d_inner.astype(x.dtype), dropout.apply(x, threshold, seeds))
    db = _outer(inner, dy)
    return dx, da.astype(a.dtype), db.astype(b.dtype), None, None, None


lora.defvjp(_lora_fwd, _lora_bwd, symbolic_zeros=True)


def minus_start(
    out: Float[Array, "b t m"],
    x: Float[Array, "b t n"],
    a: Float[Array, "r n"],
    b: Float[Array, "r m"],
    scaling: Float[Array, ""],
) -> Float[Array, "b t m"]:
    """Return what `lora` gave less what it gives for the A and B that it began with.

    There is no dropout: the start stands for a part of the weight. Both are computed apart, so that
    nothing, not even rounding, is left of them before the first step: fused with the subtraction,
    one of them would be rounded otherwise.
    """
    out, start = jax.lax.optimization_barrier((out, lora(x, a, b, scaling, None, None)))
    return out - start


def _dot(x: jax.Array, matrix: jax.Array, out_dtype: Any) -> jax.Array:
    contract_last = (((x.ndim - 1,), (0,)), ((), ()))
    return jax.lax.dot_general(x, matrix, contract_last, preferred_element_type=out_dtype)


def _outer(x: jax.Array, y: jax.Array) -> Float[Array, "n m"]:
    """Sum ``x^T y`` over all leading dimensions, in float32."""
    leading = tuple(range(x.ndim - 1))
    return jax.lax.dot_general(
        x, y, ((leading, leading), ((), ())), preferred_element_type=jnp.float32
    )


def _is_primal(node: Any) -> bool:
    return hasattr(node, "perturbed")
