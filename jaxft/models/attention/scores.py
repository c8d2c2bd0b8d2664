"""How a query and a key make a score: everything in attention that models differ in.

`Scores` is static, so an implementation can be chosen by it before anything is traced.

Dimension letters in this folder: `b` batch, `t` query position, `s` key position, `g` kv heads,
`m` query heads a kv head, `k` head width.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from jaxft.models.spec import QueryScaling

MASKED = -1e30  # the score of a key that is not seen; finite, so a row without a key is not NaN


@dataclasses.dataclass(frozen=True)
class Scores:
    """How a query and a key make a score: ``softcap(scale * q k - slope * distance)``.

    Attributes:
        window: Number of positions seen, itself included; `None` for all before it.
        scale: Factor on the product.
        softcap: Scores s become ``cap * tanh(s / cap)``; `None` leaves them.
        slopes: For each query head the penalty on distance (ALiBi); `None` for none.
    """

    window: int | None
    scale: float
    softcap: float | None
    slopes: tuple[float, ...] | None

    def of_products(self, products: Any, distance: Any) -> Float[Array, "b g m t s"]:
        """Return the scores before any masking.

        Args:
            products: float32 [b g m t s], of queries and keys.
            distance: int32 [t s], how many positions each key lies behind each query.
        """
        scores = products * self.scale
        if self.slopes is not None:
            _, groups, members, _, _ = products.shape
            slopes = np.asarray(self.slopes, np.float32).reshape(groups, members, 1, 1)
            scores = scores - (slopes * distance[None, None].astype(jnp.float32))[None]
        if self.softcap is not None:
            scores = self.softcap * jnp.tanh(scores / self.softcap)
        return scores


def alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """Return the slope of each head: a geometric series, for powers of two.

    Other counts take the series of the power of two below, then every other term of the next.

    Source: Press et al. 2022; transformers `modeling_bloom.py: _get_alibi_slopes`.
    """
    whole = 2 ** math.floor(math.log2(num_heads))
    base, finer = (2 ** -(2 ** -(math.log2(n) - 3)) for n in (whole, 2 * whole))
    slopes = [base**n for n in range(1, whole + 1)]
    extra = [finer**n for n in range(1, 2 * (num_heads - whole) + 1, 2)]
    return tuple(slopes + extra)


def grown(
    q: Float[Array, "b t h k"], positions: Int32[Array, "b t"], scaling: QueryScaling
) -> Float[Array, "b t h k"]:
    """Multiply queries by the factor of their positions, which is computed in float32."""
    lengths = jnp.floor(positions.astype(jnp.float32) / scaling.length)
    factors = 1 + scaling.beta * jnp.log1p(lengths)
    return q * factors[:, :, None, None].astype(q.dtype)


def sum_f32(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return an einsum whose products are added in float32."""
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)
