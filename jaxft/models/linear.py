"""The functions of a linear layer: the product with the weight, and the LoRA branch.

Both have a backward pass of their own, in order to keep less for it:

- `product` keeps the weight as it is stored (divided, perhaps narrower than the activations),
  never a gathered or cast copy. It keeps its input only if the weight is trained.
- `lora` keeps its input and ``x A^T`` if A or B is trained. The dropout mask is computed again.

No flag says which operands are trained: JAX says at trace time which ones carry a tangent
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
        x: Activations; the product is computed in their dtype, with sums in float32.
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
        threshold: The result of `dropout.threshold`; `None` for an adapter without dropout.
        seeds: One hash per token, from `dropout.module_seeds`; `None` outside training.

    Source: Hu et al. 2021, eq. 3; `peft/tuners/lora/layer.py: Linear.forward`.
    """
    return _lora_fwd_arrays(x, a, b, scaling, threshold, seeds)[0]


def _lora_fwd_arrays(x: Any, a: Any, b: Any, scaling: Any, threshold: Any, seeds: Any) -> Any:
    dropped = dropout.apply(x, threshold, seeds)
    # [b t r], float32 as in PEFT, which is cheap at this width.
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
    """Return `out`, the result of `lora`, minus the result of `lora` for the initial A and B.

    The latter has no dropout, because the start stands for a part of the weight. A barrier keeps
    XLA from fusing one of the two with the subtraction, which would round it differently: so the
    difference is exactly 0 before the first step.

    Args:
        out: The result of `lora` for the trained A and B.
        x: Activations.
        a: The initial A, A0.
        b: The initial B, B0.
        scaling: Factor on the output.
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
