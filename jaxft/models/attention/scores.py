"""How a score is computed from a query and a key: all differences in attention between models.

`Scores` is static, so it can select an implementation before anything is traced.

Dimension letters in this folder: `b` batch, `t` query position, `s` key position, `g` kv heads,
`m` query heads per kv head, `k` head width.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from jaxft.models.spec import QueryScaling

MASKED = -1e30  # the score of an unseen key; finite, so a query that sees no key is not NaN


@dataclasses.dataclass(frozen=True)
class Scores:
    """The function from query and key to score: ``softcap(scale * q k - slope * distance)``.

    Attributes:
        window: Number of positions that a query sees, including its own; `None` for all before it.
        scale: Factor on the product.
        softcap: Scores s become ``cap * tanh(s / cap)``; `None` for no cap.
        slopes: The penalty on distance (ALiBi) for each query head; `None` for no penalty.
    """

    window: int | None
    scale: float
    softcap: float | None
    slopes: tuple[float, ...] | None

    def of_products(self, products: Any, distance: Any) -> Float[Array, "b g m t s"]:
        """Return the scores before any masking.

        Args:
            products: float32 [b g m t s], the products of queries and keys.
            distance: int32 [t s], how many positions each key is behind each query.
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
    """Return the slope of each head, a geometric series if the number of heads is a power of two.

    Other numbers use the series of the next lower power of two, followed by every other term of the
    series of the next higher one.

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
    """Multiply each query by the factor for its position, which is computed in float32."""
    lengths = jnp.floor(positions.astype(jnp.float32) / scaling.length)
    factors = 1 + scaling.beta * jnp.log1p(lengths)
    return q * factors[:, :, None, None].astype(q.dtype)


def sum_f32(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return an einsum whose products are added in float32."""
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)
