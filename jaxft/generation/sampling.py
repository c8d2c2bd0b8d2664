"""How the next token is picked from the logits: the likeliest, or a draw.

Separate from decoding because it knows rows of logits and no network. The invariant: a draw is a
pure function of (seed, step, row) and the row's logits, so a row's text does not depend on which
other rows are decoded with it.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, UInt32

_GENERATOR = "threefry2x32"  # named, since jax's default can be changed from outside


class Draw(NamedTuple):
    """What a compiled program needs to draw; all traced, so that no choice compiles anew.

    Attributes:
        key: uint32 [2], the halves of the seed.
        temperature: float32.
        top_k: int32, 0 for all.
        top_p: float32.
    """

    key: Any
    temperature: Any
    top_k: Any
    top_p: Any


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are picked, in the names of transformers' `GenerationConfig`.

    Attributes:
        temperature: What logits are divided by; 0 takes the likeliest token and draws nothing.
        top_k: Draw from so many of the likeliest tokens; 0 from all.
        top_p: Draw from the fewest of the likeliest tokens that together have this probability.
        seed: Of the draws, from 0 to 2**64 - 1.
    """

    temperature: float
    top_k: int
    top_p: float
    seed: int

    def draw(self) -> Draw | None:
        """Return the arguments of a draw, or `None` when there is nothing to draw."""
        if self.temperature == 0:
            return None
        halves = np.array([self.seed >> 32 & 0xFFFFFFFF, self.seed & 0xFFFFFFFF], np.uint32)
        return Draw(
            halves, np.float32(self.temperature), np.int32(self.top_k), np.float32(self.top_p)
        )


GREEDY = Sampling(temperature=0.0, top_k=0, top_p=1.0, seed=0)


def pick(
    logits: Float[Array, "b v"], step: Int32[Array, ""], draw: Draw | None
) -> Int32[Array, " b"]:
    """Return each row's next token.

    Args:
        logits: Of the next token.
        step: How many tokens were picked before.
        draw: How to draw; `None` takes the likeliest, the first of equals.
    """
    if draw is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    scaled = logits / draw.temperature
    allowed = jnp.where(scaled < _cutoff(scaled, draw.top_k, draw.top_p), -jnp.inf, scaled)
    keys = _row_keys(draw.key, step, logits.shape[0])
    return jax.vmap(jax.random.categorical)(keys, allowed).astype(jnp.int32)


def _row_keys(halves: UInt32[Array, " two"], step: Int32[Array, ""], num_rows: int) -> Any:
    key = jax.random.fold_in(jax.random.wrap_key_data(halves, impl=_GENERATOR), step)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(num_rows))


def _cutoff(logits: Float[Array, "b v"], top_k: Any, top_p: Any) -> Float[Array, "b 1"]:
    """Return the smallest logit that may be drawn in each row.

    Source: transformers `generation/logits_process.py: TopKLogitsWarper`, `TopPLogitsWarper`,
    in that order.
    """
    ordered = jnp.sort(logits, axis=-1, descending=True)
    rank = jnp.arange(logits.shape[-1])[None, :]
    is_among_k = (rank < top_k) | (top_k == 0)
    shares = jax.nn.softmax(jnp.where(is_among_k, ordered, -jnp.inf), axis=-1)
    likelier = jnp.cumsum(shares, axis=-1) - shares  # 0 for the first, which is always kept
    kept = is_among_k & ((likelier < top_p) | (rank == 0))
    return jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
