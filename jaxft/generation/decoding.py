"""Prompts to new tokens: two compiled programs, and the loop that keeps the device ahead of it.

`fill` takes a chunk of the prompts into the cache, `advance` adds a token to every row. Both
serve every prompt, whatever its length, that needs a cache of the same size; sizes are powers of
two. Weights are arguments, so base and tuned model run the same programs. The invariant: nothing
is read from the device before the next step is under way.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int32

from jaxft.errors import DataError
from jaxft.generation import sampling
from jaxft.models import forward
from jaxft.models.network import Network
from jaxft.parallel import mesh as meshes

CHUNK = 128  # prompt tokens a call of `fill`: enough to fill the machine, little to pad
_MIN_SLOTS = 256  # of a cache


class State(NamedTuple):
    """Where decoding stands, on the device; every program consumes one and makes the next.

    Attributes:
        cache: Keys and values of all tokens but the last picked.
        tokens: int32 [b], the last picked; a row that has stopped repeats its stop token.
        step: int32, how many tokens were picked.
    """

    cache: forward.Cache
    tokens: Int32[Array, " b"]
    step: Int32[Array, ""]


class Decoder:
    """Decodes with one network; compiles on first use, and once for each size of the cache."""

    def __init__(self, network: Network, *, stop_ids: Sequence[int], mesh: Mesh, dtype: Any):
        """Prepare the programs.

        Args:
            network: What the trees given later are bound to.
            stop_ids: Tokens that end a row.
            mesh: Where those trees live. Rows are not divided: every device decodes all of them.
            dtype: The dtype of activations, matrix products and the cache.
        """
        self.stop_ids = tuple(stop_ids)
        self._max_tokens = network.spec.max_tokens
        where = meshes.replicated(mesh)
        # Pinned, so that the state that a program returns is the state that it takes.
        compiled = functools.partial(jax.jit, out_shardings=where)
        start = functools.partial(_start, network, dtype)
        fill = functools.partial(_fill, network, mesh, dtype, self.stop_ids)
        advance = functools.partial(_advance, network, mesh, dtype, self.stop_ids)
        self._start = compiled(start, static_argnames=("batch", "slots"))
        self._fill = compiled(fill, donate_argnames="state")
        self._advance = compiled(advance, donate_argnames="state")

    def steps(
        self,
        tree: Mapping[str, Any],
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        how: sampling.Sampling,
    ) -> Iterator[Int32[np.ndarray, " b"]]:
        """Yield the next token of every row until all rows have stopped.

        A row that has stopped repeats its stop token.

        Args:
            tree: All leaves of the network.
            prompts: The tokens of each row.
            max_new_tokens: The most that a row gets; fewer where the model has no more positions.
            how: How tokens are picked.

        Raises:
            DataError: If a prompt has no token, or more than the model has positions.
            WeightsError: If the tree does not fit the network.
        """
        max_new_tokens = min(max_new_tokens, self._room(prompts, max_new_tokens))
        draw = how.draw()
        state, tokens = self._read_prompts(tree, prompts, max_new_tokens, draw)
        for _ in range(max_new_tokens - 1):
            # Before the wait for the tokens, so that the device has work while they are read.
            state, following = self._advance(tree, state, draw)
            picked = np.asarray(tokens)
            yield picked
            if np.isin(picked, self.stop_ids).all():
                return
            tokens = following
        yield np.asarray(tokens)

    def rows(
        self,
        tree: Mapping[str, Any],
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        how: sampling.Sampling,
    ) -> list[list[int]]:
        """Return the new tokens of every row, up to its stop token; arguments as of `steps`."""
        steps = self.steps(tree, prompts, max_new_tokens=max_new_tokens, how=how)
        return [list(self.until_stop(row)) for row in np.stack(list(steps), axis=1)]

    def until_stop(self, tokens: Any) -> Iterator[int]:
        """Yield the tokens of one row as they come, and end before its stop token."""
        for token in tokens:
            if int(token) in self.stop_ids:
                return
            yield int(token)

    def _room(self, prompts: Sequence[Sequence[int]], wanted: int) -> int:
        """Return how many tokens may follow the longest prompt; the last needs no position.

        Raises:
            DataError: If there is no position for its own.
        """
        longest = max(map(len, prompts), default=0)
        if self._max_tokens is None:
            return wanted
        if longest > self._max_tokens:
            raise DataError(
                f"A prompt has {longest} tokens, and the model {self._max_tokens} positions.",
                "Shorten the prompt.",
            )
        return self._max_tokens - longest + 1

    def _read_prompts(
        self,
        tree: Mapping[str, Any],
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        draw: sampling.Draw | None,
    ) -> tuple[State, jax.Array]:
        input_ids, valid = left_padded(prompts)
        batch, length = input_ids.shape
        state = self._start(batch=batch, slots=num_slots(length + max_new_tokens))
        for start in range(0, length, CHUNK):
            chunk = slice(start, start + CHUNK)
            state, tokens = self._fill(tree, state, input_ids[:, chunk], valid[:, chunk], draw)
        return state, tokens


def left_padded(
    prompts: Sequence[Sequence[int]],
) -> tuple[Int32[np.ndarray, "b t"], Bool[np.ndarray, "b t"]]:
    """Return the prompts as rows of whole chunks, padded on the left, and what is no padding.

    Raises:
        DataError: If a prompt has no token.
    """
    if not all(map(len, prompts)):
        raise DataError("A prompt has no token.", "Write something for the model to go on from.")
    length = -(-max(map(len, prompts)) // CHUNK) * CHUNK
    input_ids = np.zeros((len(prompts), length), np.int32)
    valid = np.zeros((len(prompts), length), bool)
    for row, prompt in enumerate(prompts):
        input_ids[row, -len(prompt) :] = prompt
        valid[row, -len(prompt) :] = True
    return input_ids, valid


def num_slots(needed: int) -> int:
    """Return the size of the cache that has room for `needed` tokens: a power of two."""
    return max(_MIN_SLOTS, 1 << (needed - 1).bit_length())


def _start(network: Network, dtype: Any, *, batch: int, slots: int) -> State:
    cache = forward.empty_cache(network, batch, slots, dtype)
    return State(cache, jnp.zeros(batch, jnp.int32), jnp.int32(0))


def _fill(
    network: Network,
    mesh: Mesh,
    dtype: Any,
    stop_ids: tuple[int, ...],
    tree: Mapping[str, Any],
    state: State,
    input_ids: Int32[Array, "b t"],
    valid: Bool[Array, "b t"],
    draw: sampling.Draw | None,
) -> tuple[State, Int32[Array, " b"]]:
    """Take in a chunk, and pick a first token, which is the answer's if the chunk is the last."""
    hidden, cache = forward.extend(
        network, tree, state.cache, input_ids, valid, mesh=mesh, dtype=dtype
    )
    logits = _logits(network, mesh, tree, hidden)
    tokens = sampling.pick(logits, jnp.int32(0), draw)
    return State(cache, tokens, jnp.int32(1)), tokens


def _advance(
    network: Network,
    mesh: Mesh,
    dtype: Any,
    stop_ids: tuple[int, ...],
    tree: Mapping[str, Any],
    state: State,
    draw: sampling.Draw | None,
) -> tuple[State, Int32[Array, " b"]]:
    """Take in the last token of every row and pick the next."""
    valid = jnp.ones((state.tokens.shape[0], 1), bool)
    hidden, cache = forward.extend(
        network, tree, state.cache, state.tokens[:, None], valid, mesh=mesh, dtype=dtype
    )
    picked = sampling.pick(_logits(network, mesh, tree, hidden), state.step, draw)
    tokens = jnp.where(_is_stop(state.tokens, stop_ids), state.tokens, picked)
    return State(cache, tokens, state.step + 1), tokens


def _logits(
    network: Network, mesh: Mesh, tree: Mapping[str, Any], hidden: Float[Array, "b t d"]
) -> Float[Array, "b v"]:
    """Return the logits after each row's last token: no other position is multiplied."""
    leaves = forward.head_leaves(network, tree)
    # Twice: for a product with one single row, XLA on CPUs first casts the whole bf16 table.
    twice = jnp.repeat(hidden[:, -1:], 2, axis=1)
    return forward.head_logits(network, mesh, leaves, twice)[:, 0]


def _is_stop(tokens: Int32[Array, " b"], stop_ids: tuple[int, ...]) -> Bool[Array, " b"]:
    return jnp.isin(tokens, jnp.array(stop_ids, jnp.int32))
