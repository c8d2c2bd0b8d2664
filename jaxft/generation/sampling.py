"""How the next token is picked from the logits: the likeliest, or a draw.

Separate from decoding because it knows rows of logits and no network. The invariant: a draw is a
pure function of (seed, step, row) and the row's logits, so a row's text does not depend on which
other rows are decoded with it.

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

_GENERATOR = "threefry2x32"  # named, since jax's default can be changed from outside


class Draw(NamedTuple):
    """What a compiled program needs to draw; all traced, so that no choice compiles anew.

    Attributes:
        key: uint32 [2], the halves of the seed.
        first_row: int32, the number of the first row, by which its draws are keyed.
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
    """How a compiled program picks tokens.

    Attributes:
        penalty: float32, of the tokens that a text has already; `None` for none.
        draw: How to draw; `None` takes the likeliest token.
    """

    penalty: Any
    draw: Draw | None


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are picked, in the names of transformers' `GenerationConfig`.

    Attributes:
        temperature: What logits are divided by; 0 takes the likeliest token and draws nothing.
        top_k: Draw from so many of the likeliest tokens; 0 from all.
        top_p: Draw from the fewest of the likeliest tokens that together have this probability.
        min_p: Draw from tokens that have this share of the likeliest one's probability; 0 from all.
        repetition_penalty: What logits above 0 are divided by, and those below 0 multiplied with,
            of tokens that the prompt or the answer has already; 1 leaves them.
        seed: Of the draws, from 0 to 2**64 - 1.

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
        """Whether some tokens are not drawn from."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    def choice(self, first_row: int) -> Choice:
        """Return the arguments of the programs, for rows that are counted from `first_row`."""
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
    """Return each row's next token; of equals the likeliest is the first.

    Args:
        logits: Of the next token.
        seen: Which tokens the row's text has already.
        step: How many tokens were picked before.
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
    """Return the logits of the tokens that are drawn from, and minus infinity for the others."""
    scaled = logits / draw.temperature
    highest = jnp.max(scaled, axis=-1, keepdims=True)
    # The highest is always kept: rounded, the sum of it and log 1 could lie above it.
    cutoff = jnp.minimum(highest + jnp.log(draw.min_p), highest)
    # Sorting a vocabulary takes longer than the rest together, and often nothing asks for it.
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
    """Return the smallest logit that top-k and then top-p leave in each row."""
    ordered = jnp.sort(logits, axis=-1, descending=True)
    rank = jnp.arange(logits.shape[-1])[None, :]
    is_among_k = (rank < top_k) | (top_k == 0)
    shares = jax.nn.softmax(jnp.where(is_among_k, ordered, -jnp.inf), axis=-1)
    likelier = jnp.cumsum(shares, axis=-1) - shares  # 0 for the first, which is always kept
    kept = is_among_k & ((likelier < top_p) | (rank == 0))
    return jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
