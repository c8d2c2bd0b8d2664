"""The choice of the next token from the logits: the likeliest token, or a random draw.

A draw is a pure function of (seed, step, row) and the logits of the row. A row is one text of a
batch; its text does not depend on the other texts that are decoded with it.

Source: transformers `generation/logits_process.py`, in the order of
`generation/utils.py: GenerationMixin._get_logits_processor`: repetition penalty, temperature,
top-k, top-p, min-p.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, UInt32

from jaxft.errors import ConfigError

_GENERATOR = "threefry2x32"  # explicit, because jax's default can be changed by the environment


class Draw(NamedTuple):
    """The arguments of a random draw. All are traced, so that new values need no compilation.

    Attributes:
        key: uint32 [2], the halves of the seed.
        first_row: int32, the number of the first row of the batch.
        temperature: float32.
        top_k: int32, 0 for all.
        top_p: float32.
        min_p: float32.
    """

    key: Any
    first_row: Any
    temperature: Any
    top_k: Any
    top_p: Any
    min_p: Any


class Choice(NamedTuple):
    """The arguments with which a compiled program picks tokens.

    Attributes:
        penalty: float32, the penalty on tokens that a text has already; `None` for none.
        draw: The arguments of a draw; `None` takes the likeliest token.
    """

    penalty: Any
    draw: Draw | None


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are picked, in the names of transformers' `GenerationConfig`.

    Attributes:
        temperature: Logits are divided by it; 0 takes the likeliest token and draws nothing.
        top_k: Draw from this many of the likeliest tokens; 0 draws from all.
        top_p: Draw from the smallest set of likeliest tokens whose probabilities sum to this.
        min_p: Draw from tokens with at least this share of the likeliest token's probability; 0
            draws from all.
        repetition_penalty: For tokens that the prompt or the answer has already, logits above 0 are
            divided by it and logits below 0 multiplied by it; 1 changes nothing.
        seed: The random seed, from 0 to 2**64 - 1.

    Raises:
        ConfigError: If a value is out of its range.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int

    def __post_init__(self) -> None:
        """Check the values."""
        for name, is_right, expected in (
            ("temperature", 0 <= self.temperature < np.inf, "0 or more"),
            ("top_k", 0 <= self.top_k < 2**31, "0 for all tokens, or their number"),
            ("top_p", 0 <= self.top_p <= 1, "a share from 0 to 1"),
            ("min_p", 0 <= self.min_p <= 1, "a share from 0 to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < np.inf, "more than 0, 1 for none"),
            ("seed", 0 <= self.seed < 2**64, "a whole number from 0 to 2**64 - 1"),
        ):
            if not is_right:
                raise ConfigError(f"{name} is {getattr(self, name)}.", f"Expected {expected}.")

    @property
    def limits_draws(self) -> bool:
        """Whether some tokens are excluded from draws."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    def choice(self, first_row: int) -> Choice:
        """Return the arguments for a program whose first row has the number `first_row`."""
        penalty = self.repetition_penalty
        return Choice(None if penalty == 1 else np.float32(penalty), self._draw(first_row))

    def _draw(self, first_row: int) -> Draw | None:
        if self.temperature == 0:
            return None
        return Draw(
            np.array([self.seed >> 32 & 0xFFFFFFFF, self.seed & 0xFFFFFFFF], np.uint32),
            np.int32(first_row),
            np.float32(self.temperature),
            np.int32(self.top_k),
            np.float32(self.top_p),
            np.float32(self.min_p),
        )


GREEDY = Sampling(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, seed=0)


def pick(
    logits: Float[Array, "b v"],
    seen: Bool[Array, "b v"],
    step: Int32[Array, ""],
    choice: Choice,
) -> Int32[Array, " b"]:
    """Return the next token of each row. Without a draw, ties go to the lowest token.

    Args:
        logits: The logits of the next token.
        seen: Which tokens the text of the row has already.
        step: The number of tokens that were picked before.
        choice: How to pick.
    """
    logits = penalised(logits, seen, choice)
    if choice.draw is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    keys = _row_keys(choice.draw, step, logits.shape[0])
    allowed = drawn_from(logits, choice.draw)
    return jax.vmap(jax.random.categorical)(keys, allowed).astype(jnp.int32)


def penalised(
    logits: Float[Array, "b v"], seen: Bool[Array, "b v"], choice: Choice
) -> Float[Array, "b v"]:
    """Return the logits after the penalty on tokens that a text has already."""
    if choice.penalty is None:
        return logits
    changed = jnp.where(logits < 0, logits * choice.penalty, logits / choice.penalty)
    return jnp.where(seen, changed, logits)


def drawn_from(logits: Float[Array, "b v"], draw: Draw) -> Float[Array, "b v"]:
    """Return the scaled logits, with minus infinity for tokens that are excluded from the draw."""
    scaled = logits / draw.temperature
    highest = jnp.max(scaled, axis=-1, keepdims=True)
    # The minimum keeps the highest logit: with rounding its sum with log 1 could lie above it.
    cutoff = jnp.minimum(highest + jnp.log(draw.min_p), highest)
    # Sorting a vocabulary takes longer than all the rest, and often it is not needed.
    cutoff = jax.lax.cond(
        (draw.top_k > 0) | (draw.top_p < 1),
        lambda: jnp.maximum(cutoff, _cutoff(scaled, draw.top_k, draw.top_p)),
        lambda: cutoff,
    )
    return jnp.where(scaled < cutoff, -jnp.inf, scaled)


def _row_keys(draw: Draw, step: Int32[Array, ""], num_rows: int) -> Any:
    halves: UInt32[Array, " two"] = draw.key
    key = jax.random.fold_in(jax.random.wrap_key_data(halves, impl=_GENERATOR), step)
    rows = draw.first_row + jnp.arange(num_rows)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def _cutoff(logits: Float[Array, "b v"], top_k: Any, top_p: Any) -> Float[Array, "b 1"]:
    """Return the smallest logit of each row that is left by top-k and then top-p."""
    ordered = jnp.sort(logits, axis=-1, descending=True)
    rank = jnp.arange(logits.shape[-1])[None, :]
    is_among_k = (rank < top_k) | (top_k == 0)
    shares = jax.nn.softmax(jnp.where(is_among_k, ordered, -jnp.inf), axis=-1)
    likelier = jnp.cumsum(shares, axis=-1) - shares  # the total share of likelier tokens
    kept = is_among_k & ((likelier < top_p) | (rank == 0))
    return jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
