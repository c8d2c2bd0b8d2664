"""Decodes prompts to new tokens with two compiled programs, in a loop that keeps the device busy.

`fill` adds a chunk of the prompts to the cache, and `advance` adds a token to every row. Few
variants of them are compiled: the sizes of caches are powers of two, the widths of chunks multiples
of 8. Weights are arguments, so the base and the tuned model run the same programs. The invariants:
nothing is read from the device before the next step was dispatched; and a row's tokens do not
depend on the other rows. So a rotary embedding that depends on the length of a text uses the length
of each row (transformers uses that of the longest row in the batch).
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

CHUNK = 128  # the largest number of prompt tokens per call of `fill`: enough to use the device well
_WIDTH_MULTIPLE = 8  # the length of a padded prompt is a multiple of this
_MIN_SLOTS = 128  # the smallest size of a cache, in tokens

# (number of a row, all tokens picked for it) -> whether the row ends there
Ends = Callable[[int, Sequence[int]], bool]


class State(NamedTuple):
    """The state of decoding, on the device; each program consumes a state and returns the next.

    Attributes:
        cache: The cache of the layers, for all tokens except the last picked one of each row.
        seen: bool [b v], which tokens each row's text has, except the last picked one.
        tokens: int32 [b], the last picked token of each row.
        step: int32, the number of tokens that were picked before `tokens`.
    """

    cache: forward.Cache
    seen: Bool[Array, "b v"]
    tokens: Int32[Array, " b"]
    step: Int32[Array, ""]


class Step(NamedTuple):
    """One token for every row.

    Attributes:
        tokens: int32 [b], the token of each row; a row that has ended repeats its last token.
        is_new: bool [b], whether the token is new, because the row had not ended before.
    """

    tokens: Int32[np.ndarray, " b"]
    is_new: Bool[np.ndarray, " b"]


class CachedDecoder:
    """Decodes with one network; compiles on first use, once for each size of the cache."""

    def __init__(self, network: Network, *, stop_ids: Sequence[int], mesh: Mesh, dtype: Any):
        """Prepare the programs.

        Args:
            network: The network of the trees that are passed later.
            stop_ids: The tokens that end a row.
            mesh: The devices that hold those trees. Rows are not sharded: every device decodes all
                of them.
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
            prompts: The tokens of the prompt of each row.
            max_new_tokens: The largest number of new tokens of a row; the positions of the model
                are a further limit.
            how: How tokens are picked.
            first_row: The number of the first row. Random draws are keyed by it, so that a list of
                prompts gets the same answers in batches of any size.
            ends: Says whether a row ends for another reason than a stop token.

        Raises:
            DataError: If a prompt has no token, more tokens than the model has positions, or a
                token without an embedding.
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
        """Return the new tokens of every row before its stop token; the arguments of `steps`."""
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
        """Yield the tokens of one row from the steps, and end before its stop token."""
        for step in steps:
            token = int(step.tokens[index])
            if not step.is_new[index] or token in self.stop_ids:
                return
            yield token

    def _room(self, prompts: Sequence[Sequence[int]], wanted: int) -> int:
        """Return how many tokens may follow the longest prompt; the last one needs no position.

        Raises:
            DataError: If the longest prompt has more tokens than the model has positions.
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
        """Return how many tokens can be picked before the cache of these texts becomes invalid.

        Some rotary embeddings change their angles beyond a certain length of the text. When a text
        grows past it, its cached keys have the old rotation, and all texts must be read again.
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
        """Read texts in which `count` tokens were picked, and yield the next `num_new` tokens."""
        input_ids, valid = left_padded(texts)
        batch, length = input_ids.shape
        lengths = np.array([len(text) for text in texts], np.int32)
        state = self._start(batch=batch, slots=num_slots(length + num_new), count=np.int32(count))
        # The first chunk is the shorter one, so that it has little padding.
        ends = range((length - 1) % CHUNK + 1, length + 1, CHUNK)
        for start, end in itertools.pairwise([0, *ends]):
            chunk = slice(start, end)
            part = (input_ids[:, chunk], valid[:, chunk], lengths)
            state, tokens = self._fill(tree, state, *part, choice)
        for _ in range(num_new - 1):
            # Dispatched before waiting for the tokens, so that the device is busy meanwhile.
            state, following = self._advance(tree, state, choice)
            yield np.asarray(tokens)
            tokens = following
        yield np.asarray(tokens)


def check_below(numbers: Any, limit: int | None, what: str) -> None:
    """Check that the model has all of these tokens or positions; JAX would read the nearest row.

    Args:
        numbers: The tokens or positions.
        limit: The number of them that the model has; `None` for no limit.
        what: What the numbers are, "token" or "position".

    Raises:
        DataError: If a number is negative, or not below the limit.
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
    """Return the prompts as rows padded on the left, and a mask of the tokens.

    The length is a multiple of 8, so that chunks have one of 16 widths; each needs its own program.

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
    """Return the size of a cache that has room for `needed` tokens: a power of two."""
    return max(_MIN_SLOTS, 1 << (needed - 1).bit_length())


@functools.lru_cache(maxsize=16)
def programs(network: Network, mesh: Mesh, dtype: Any) -> tuple[Any, Any, Any]:
    """Return `start`, `fill` and `advance` for a network, which all its decoders share."""
    # The shardings are fixed, so that the programs can take the states that they return.
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
    """Add a chunk to the cache, and pick a token; it is used only after the last chunk."""
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
    """Add the last token of every row to the cache, and pick the next token."""
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
    """Return the logits after the last token of each row, without those of other positions."""
    leaves = forward.head_leaves(network, tree)
    last = hidden[:, -1:]
    if hidden.shape[0] == 1 and hidden.dtype == jnp.bfloat16:
        # Repeated, because for a single row XLA on CPUs first casts the whole bf16 table.
        last = jnp.repeat(last, 2, axis=1)
    return forward.head_logits(network, mesh, leaves, last, None)[:, 0]
