"""Prompts to new tokens: two compiled programs, and the loop that keeps the device ahead of it.

`fill` takes a chunk of the prompts into the cache, `advance` adds a token to every row. There are
few of both: the sizes of caches are powers of two, the widths of chunks multiples of 8. Weights are
arguments, so base and tuned model run the same programs. The invariants: nothing is read from the
device before the next step is under way; and a row's tokens do not depend on the rows beside it,
which is why a rotary embedding that depends on the length of a text goes by each row's own
(transformers, in a batch, by the longest).
"""

import functools
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int32

from jaxft.errors import DataError
from jaxft.generation import sampling
from jaxft.models import forward, rope
from jaxft.models.network import Network
from jaxft.parallel import mesh as meshes

CHUNK = 128  # prompt tokens a call of `fill`, at most: enough to fill the machine
_WIDTH_MULTIPLE = 8  # of a row of prompt tokens
_MIN_SLOTS = 128  # of a cache

# Of a row and all that was picked for it: whether it ends there.
Ends = Callable[[int, Sequence[int]], bool]


class State(NamedTuple):
    """Where decoding stands, on the device; every program consumes one and makes the next.

    Attributes:
        cache: What the layers keep of all tokens but the last picked.
        seen: bool [b v], which tokens each row's text has; the last picked are not yet among them.
        tokens: int32 [b], the last picked.
        step: int32, how many tokens were picked.
    """

    cache: forward.Cache
    seen: Bool[Array, "b v"]
    tokens: Int32[Array, " b"]
    step: Int32[Array, ""]


class Step(NamedTuple):
    """One token of every row.

    Attributes:
        tokens: int32 [b]; a row that has ended repeats its last token.
        is_new: bool [b]: whether the row had not ended before.
    """

    tokens: Int32[np.ndarray, " b"]
    is_new: Bool[np.ndarray, " b"]


class CachedDecoder:
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
        self._spec = network.spec
        self._start, self._fill, self._advance = programs(network, mesh, dtype)

    def steps(
        self,
        tree: Mapping[str, Any],
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        how: sampling.Sampling,
        first_row: int = 0,
        ends: Ends | None = None,
    ) -> Iterator[Step]:
        """Yield the next token of every row until all rows have ended.

        Args:
            tree: All leaves of the network.
            prompts: The tokens of each row.
            max_new_tokens: The most that a row gets; fewer where the model has no more positions.
            how: How tokens are picked.
            first_row: The number of the first row: draws are keyed by it, so that a list of prompts
                is answered the same way in batches of any size.
            ends: What ends a row beside its stop token.

        Raises:
            DataError: If a prompt has no token, more than the model has positions, or one that the
                model has no embedding for.
            WeightsError: If the tree does not fit the network.
        """
        for prompt in prompts:
            check_below(prompt, self._spec.vocab_size, "token")
        max_new_tokens = min(max_new_tokens, self._room(prompts, max_new_tokens))
        choice = how.choice(first_row)
        picked: list[list[int]] = [[] for _ in prompts]
        goes_on = np.ones(len(prompts), bool)
        count = 0
        while count < max_new_tokens and goes_on.any():
            texts = [[*prompt, *new] for prompt, new in zip(prompts, picked, strict=True)]
            num_new = min(self._until_new_angles(texts, goes_on), max_new_tokens - count)
            for tokens in self._stretch(tree, texts, count, num_new, choice):
                last = [new[-1] if new else 0 for new in picked]
                step = Step(np.where(goes_on, tokens, last).astype(np.int32), goes_on.copy())
                for row in map(int, np.flatnonzero(goes_on)):
                    picked[row].append(int(tokens[row]))
                    is_stop = picked[row][-1] in self.stop_ids
                    goes_on[row] = not (is_stop or (ends is not None and ends(row, picked[row])))
                yield step
                if not goes_on.any():
                    return
            count += num_new

    def rows(
        self,
        tree: Mapping[str, Any],
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        how: sampling.Sampling,
        first_row: int = 0,
        ends: Ends | None = None,
    ) -> list[list[int]]:
        """Return the new tokens of every row, up to its stop token; arguments as of `steps`."""
        steps = list(
            self.steps(
                tree,
                prompts,
                max_new_tokens=max_new_tokens,
                how=how,
                first_row=first_row,
                ends=ends,
            )
        )
        return [list(self.row(steps, index)) for index in range(len(prompts))]

    def row(self, steps: Iterable[Step], index: int) -> Iterator[int]:
        """Yield the tokens of one row as they come, and end before its stop token."""
        for step in steps:
            token = int(step.tokens[index])
            if not step.is_new[index] or token in self.stop_ids:
                return
            yield token

    def _room(self, prompts: Sequence[Sequence[int]], wanted: int) -> int:
        """Return how many tokens may follow the longest prompt; the last needs no position.

        Raises:
            DataError: If there is no position for its own.
        """
        longest, limit = max(map(len, prompts), default=0), self._spec.max_tokens
        if limit is None:
            return wanted
        if longest > limit:
            raise DataError(
                f"A prompt has {longest} tokens, and the model {limit} positions.",
                "Shorten the prompt.",
            )
        return limit - longest + 1

    def _until_new_angles(self, texts: Sequence[Sequence[int]], goes_on: np.ndarray) -> int:
        """Return how many tokens can be picked with one cache of these texts.

        Where one of them grows past the length that its rotary embedding's angles hold for, keys in
        the cache are those of another rotation, and all texts are read anew.
        """
        ropes = {block.rope for block in self._spec.blocks if block.rope is not None}
        longest = [rope.longest_before_new_angles(each) for each in ropes]
        left = [
            limit + 1 - len(text)
            for limit in longest
            for text, is_going in zip(texts, goes_on, strict=True)
            if limit is not None and is_going and len(text) <= limit
        ]
        return min(left, default=sys.maxsize)

    def _stretch(
        self,
        tree: Mapping[str, Any],
        texts: Sequence[Sequence[int]],
        count: int,
        num_new: int,
        choice: sampling.Choice,
    ) -> Iterator[Int32[np.ndarray, " b"]]:
        """Read texts, of which `count` tokens were picked, and yield the next `num_new`."""
        input_ids, valid = left_padded(texts)
        batch, length = input_ids.shape
        lengths = np.array([len(text) for text in texts], np.int32)
        state = self._start(batch=batch, slots=num_slots(length + num_new), count=np.int32(count))
        # The first chunk is what is left of whole ones, so that little of it is padding.
        ends = range((length - 1) % CHUNK + 1, length + 1, CHUNK)
        for start, end in itertools.pairwise([0, *ends]):
            chunk = slice(start, end)
            part = (input_ids[:, chunk], valid[:, chunk], lengths)
            state, tokens = self._fill(tree, state, *part, choice)
        for _ in range(num_new - 1):
            # Before the wait for the tokens, so that the device has work while they are read.
            state, following = self._advance(tree, state, choice)
            yield np.asarray(tokens)
            tokens = following
        yield np.asarray(tokens)


def check_below(numbers: Any, limit: int | None, what: str) -> None:
    """Raise unless the model has a row for every number; JAX would read the nearest one.

    Args:
        numbers: Tokens or positions.
        limit: How many there are; `None` for any number.
        what: What they are, "token" or "position".

    Raises:
        DataError: If it has none.
    """
    found = np.asarray(numbers)
    if limit is not None and found.size and not 0 <= found.min() <= found.max() < limit:
        wrong = found.min() if found.min() < 0 else found.max()
        raise DataError(
            f"There is a {what} {wrong}, and the model's go from 0 to {limit - 1}.",
            "Use the tokenizer that belongs to the model."
            if what == "token"
            else "Shorten the text.",
        )


def left_padded(
    prompts: Sequence[Sequence[int]],
) -> tuple[Int32[np.ndarray, "b t"], Bool[np.ndarray, "b t"]]:
    """Return the prompts as rows, padded on the left, and what is no padding.

    Rows have one of 16 widths, or some chunks more: there is a program for each.

    Raises:
        DataError: If a prompt has no token.
    """
    if not all(map(len, prompts)):
        raise DataError("A prompt has no token.", "Write something for the model to go on from.")
    longest = max(map(len, prompts))
    length = -(-longest // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE
    input_ids = np.zeros((len(prompts), length), np.int32)
    valid = np.zeros((len(prompts), length), bool)
    for row, prompt in enumerate(prompts):
        input_ids[row, -len(prompt) :] = prompt
        valid[row, -len(prompt) :] = True
    return input_ids, valid


def num_slots(needed: int) -> int:
    """Return the size of the cache that has room for `needed` tokens: a power of two."""
    return max(_MIN_SLOTS, 1 << (needed - 1).bit_length())


@functools.lru_cache(maxsize=16)
def programs(network: Network, mesh: Mesh, dtype: Any) -> tuple[Any, Any, Any]:
    """Return `start`, `fill` and `advance` of a network; a second decoder compiles nothing anew."""
    # Pinned, so that the state that a program returns is the state that it takes.
    compiled = functools.partial(jax.jit, out_shardings=meshes.replicated(mesh))
    start = functools.partial(_start, network, dtype)
    fill = functools.partial(_fill, network, mesh, dtype)
    advance = functools.partial(_advance, network, mesh, dtype)
    return (
        compiled(start, static_argnames=("batch", "slots")),
        compiled(fill, donate_argnames="state"),
        compiled(advance, donate_argnames="state"),
    )


def _start(
    network: Network, dtype: Any, *, batch: int, slots: int, count: Int32[Array, ""]
) -> State:
    cache = forward.empty_cache(network, batch, slots, dtype)
    seen = jnp.zeros((batch, network.spec.vocab_size), bool)
    return State(cache, seen, jnp.zeros(batch, jnp.int32), count)


def _fill(
    network: Network,
    mesh: Mesh,
    dtype: Any,
    tree: Mapping[str, Any],
    state: State,
    input_ids: Int32[Array, "b t"],
    valid: Bool[Array, "b t"],
    lengths: Int32[Array, " b"],
    choice: sampling.Choice,
) -> tuple[State, Int32[Array, " b"]]:
    """Take in a chunk, and pick a token, which is the answer's if the chunk is the last."""
    hidden, cache = forward.extend(
        network, tree, state.cache, input_ids, valid, lengths, mesh=mesh, dtype=dtype
    )
    rows = jnp.arange(input_ids.shape[0])[:, None]
    seen = state.seen.at[rows, input_ids].max(valid)
    tokens = sampling.pick(_logits(network, mesh, tree, hidden), seen, state.step, choice)
    return State(cache, seen, tokens, state.step), tokens


def _advance(
    network: Network,
    mesh: Mesh,
    dtype: Any,
    tree: Mapping[str, Any],
    state: State,
    choice: sampling.Choice,
) -> tuple[State, Int32[Array, " b"]]:
    """Take in the last token of every row and pick the next."""
    batch = state.tokens.shape[0]
    every, lengths = jnp.ones((batch, 1), bool), state.cache.next_position + 1
    new = state.tokens[:, None]
    hidden, cache = forward.extend(
        network, tree, state.cache, new, every, lengths, mesh=mesh, dtype=dtype
    )
    seen = state.seen.at[jnp.arange(batch), state.tokens].set(True)
    logits = _logits(network, mesh, tree, hidden)
    tokens = sampling.pick(logits, seen, state.step + 1, choice)
    return State(cache, seen, tokens, state.step + 1), tokens


def _logits(
    network: Network, mesh: Mesh, tree: Mapping[str, Any], hidden: Float[Array, "b t d"]
) -> Float[Array, "b v"]:
    """Return the logits after each row's last token: no other position is multiplied."""
    leaves = forward.head_leaves(network, tree)
    last = hidden[:, -1:]
    if hidden.shape[0] == 1 and hidden.dtype == jnp.bfloat16:
        # Twice: for a product with one single row, XLA on CPUs first casts the whole bf16 table.
        last = jnp.repeat(last, 2, axis=1)
    return forward.head_logits(network, mesh, leaves, last, None)[:, 0]
