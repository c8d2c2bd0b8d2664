"""Decoding with a cache, held to a forward pass over the whole text for every token."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_specs

from jaxft import tree as trees
from jaxft.errors import DataError
from jaxft.generation import decoding
from jaxft.generation.decoding import CHUNK, CachedDecoder
from jaxft.generation.sampling import GREEDY, Sampling
from jaxft.models.network import Network, base_network
from jaxft.models.untuned import base_tree
from jaxft.parallel import mesh as meshes

# More than a chunk, a chunk, and far less; none a multiple of a window.
LENGTHS = (CHUNK + 22, CHUNK, 7)
NEW = 14
NO_STOP = (tiny.SPEC.vocab_size + 1,)
WINDOWS = {"full": (None,) * 3, "mixed": (5, None, 3), "longer-than-padding": (140, 140, None)}


def prompts(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, tiny.SPEC.vocab_size, length).tolist() for length in lengths]


@functools.cache
def decoder(network: Network, stop_ids: tuple[int, ...] = NO_STOP) -> CachedDecoder:
    return CachedDecoder(network, stop_ids=stop_ids, mesh=tiny.one_device(), dtype="float32")


def greedy(network: Network, tree: Any, rows: list[list[int]]) -> list[list[int]]:
    return decoder(network).rows(tree, rows, max_new_tokens=NEW, how=GREEDY)


def recomputed(network: Network, tree: Any, prompt: list[int], num_new: int) -> list[int]:
    """Continue greedily, running the whole text again for every token."""
    width = max(LENGTHS) + NEW
    ids = list(prompt)
    for _ in range(num_new):
        where = np.arange(width, dtype=np.int32)[None]
        micro = {
            "input_ids": np.array([ids + [0] * (width - len(ids))], np.int32),
            "segment_ids": (where < len(ids)).astype(np.int32),
            "positions": where,
        }
        ids.append(int(tiny.forward_logits(network, tree, micro)[0, len(ids) - 1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("windows", WINDOWS.values(), ids=WINDOWS)
def test_greedy_rows_are_those_of_recomputing_the_whole_text(windows):
    check_greedy(tiny.adapted(tiny.with_windows(windows), head=True))


def test_convolutions_go_on_from_their_last_inputs_whatever_the_prompts_length():
    check_greedy(tiny.adapted(tiny_specs.CONVOLUTIONS, modules=["conv/bcx", "conv/o"], head=True))


def check_greedy(network):
    tree = tiny.random_leaves(network)
    got = greedy(network, tree, prompts())
    assert got == [recomputed(network, tree, prompt, NEW) for prompt in prompts()]
    assert len({tuple(row) for row in got}) == len(got)
    assert all(len(set(row)) > 2 for row in got)


@pytest.mark.parametrize(
    "how", [GREEDY, Sampling(1.5, 0, 0.9, 0.0, 1.0, 7)], ids=["greedy", "drawn"]
)
def test_a_row_does_not_depend_on_those_beside_it(how):
    network = tiny.adapted()
    tree = tiny.random_leaves(network)
    together = decoder(network).rows(tree, prompts(), max_new_tokens=NEW, how=how)
    # Row 0, since a draw is keyed by the row. It is padded beside a longer one, and alone not.
    longer = [prompts()[2], *prompts()[:2]]
    beside = decoder(network).rows(tree, longer, max_new_tokens=NEW, how=how)
    for row, expected in ((prompts()[0], together[0]), (prompts()[2], beside[0])):
        alone = decoder(network).rows(tree, [row], max_new_tokens=NEW, how=how)
        assert alone == [expected]


def test_each_program_compiles_once_for_all_prompts_and_trees():
    network = tiny.adapted()
    decoding.programs.cache_clear()
    fresh = CachedDecoder(network, stop_ids=NO_STOP, mesh=tiny.one_device(), dtype="float32")
    seen = set()
    for seed, lengths in enumerate([(3, 90), (CHUNK + 92, 1), (CHUNK - 32, 9)]):
        tree = tiny.placed(tiny.random_leaves(network, seed), tiny.one_device())
        rows = fresh.rows(tree, prompts(lengths), max_new_tokens=NEW + seed, how=GREEDY)
        seen.add(tuple(map(tuple, rows)))
    assert len(seen) == 3
    sizes = [program._cache_size() for program in (fresh._start, fresh._fill, fresh._advance)]
    assert sizes == [2, 3, 2]  # of two sizes of the cache; one of them is read in two chunks
    # Nor does another decoder of the same network compile them again, whatever ends its rows.
    again = CachedDecoder(network, stop_ids=(1,), mesh=tiny.one_device(), dtype="float32")
    assert again._advance is fresh._advance


def test_the_cache_is_updated_in_place():
    network = tiny.adapted()
    fresh = decoder(network)
    tree = tiny.placed(tiny.random_leaves(network), tiny.one_device())
    state = fresh._start(batch=2, slots=4096, count=np.int32(0))
    num_bytes = trees.num_bytes({"cache": list(state.cache.layers)})
    memory = fresh._advance.lower(tree, state, GREEDY.choice(0)).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= num_bytes
    # A layer's slice, extended and in both halves; a second cache would be three layers of them.
    assert memory.temp_size_in_bytes < num_bytes
    following, _ = fresh._advance(tree, state, GREEDY.choice(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.cache.layers))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(following))


def test_the_next_step_is_under_way_before_a_token_is_read(monkeypatch):
    network = tiny.adapted()
    tree, calls = tiny.random_leaves(network), []
    fresh = CachedDecoder(network, stop_ids=NO_STOP, mesh=tiny.one_device(), dtype="float32")
    advance = fresh._advance
    monkeypatch.setattr(fresh, "_advance", lambda *given: calls.append(0) or advance(*given))
    steps = fresh.steps(tree, prompts((3,)), max_new_tokens=4, how=GREEDY)
    assert [len(calls) for _ in steps] == [1, 2, 3, 3]


def test_a_row_ends_before_its_stop_token_and_then_repeats_it():
    network = tiny.adapted()
    tree = tiny.random_leaves(network)
    free = greedy(network, tree, prompts())
    stop = free[0][3]
    ends = [row.index(stop) if stop in row else NEW for row in free]
    assert ends[0] == 3
    assert max(ends) == NEW
    stopping = decoder(network, (stop, *NO_STOP))
    got = stopping.rows(tree, prompts(), max_new_tokens=NEW, how=GREEDY)
    assert got == [row[:end] for row, end in zip(free, ends, strict=True)]
    steps = stopping.steps(tree, prompts(), max_new_tokens=NEW, how=GREEDY)
    assert [int(step.tokens[0]) for step in steps] == free[0][:3] + [stop] * (NEW - 3)


def test_decoding_ends_when_every_row_has_stopped():
    network = tiny.adapted()
    tree = tiny.random_leaves(network)
    free = greedy(network, tree, prompts())
    stopping = decoder(network, tuple({row[2] for row in free}))
    steps = list(stopping.steps(tree, prompts(), max_new_tokens=NEW, how=GREEDY))
    assert len(steps) <= 3
    assert stopping.rows(tree, prompts(), max_new_tokens=1, how=GREEDY) == [
        row[:1] if row[0] not in stopping.stop_ids else [] for row in free
    ]


def test_with_b_zero_the_answer_is_the_bases():
    network, base = tiny.adapted(), base_network(tiny.SPEC)
    trained, frozen = tiny.split(tiny.random_leaves(network))
    plain = greedy(base, base_tree(network, frozen, {}), prompts())
    untrained = jax.tree.map(jnp.zeros_like, trained)
    assert greedy(network, trees.combine(frozen, untrained), prompts()) == plain
    assert greedy(network, trees.combine(frozen, trained), prompts()) != plain


def test_divided_weights_give_the_same_rows():
    network = tiny.adapted()
    tree = tiny.random_leaves(network)
    mesh = meshes.make_mesh(1, 2, 2)
    divided = CachedDecoder(network, stop_ids=NO_STOP, mesh=mesh, dtype="float32")
    got = divided.rows(tiny.placed(tree, mesh), prompts(), max_new_tokens=NEW, how=GREEDY)
    assert got == greedy(network, tree, prompts())
    assert [program._cache_size() for program in (divided._fill, divided._advance)] == [2, 1]


def test_an_empty_prompt_is_refused():
    network = tiny.adapted()
    with pytest.raises(DataError, match="no token"):
        greedy(network, tiny.random_leaves(network), [[1], []])


@pytest.mark.parametrize("token", [tiny.SPEC.vocab_size, -1])
def test_a_token_that_the_model_has_no_embedding_for_is_refused(token):
    network = tiny.adapted()
    last = tiny.SPEC.vocab_size - 1
    with pytest.raises(DataError, match=f"token {token}, and the model's go from 0 to {last}"):
        greedy(network, tiny.random_leaves(network), [[1, 2], [3, token]])
    assert len(greedy(network, tiny.random_leaves(network), [[1, 2], [3, last]])) == 2


def test_caches_have_few_sizes_and_room():
    sizes = [decoding.num_slots(needed) for needed in range(1, 5000)]
    assert all(size >= needed for needed, size in enumerate(sizes, start=1))
    assert sorted(set(sizes)) == [128, 256, 512, 1024, 2048, 4096, 8192]


@pytest.mark.parametrize("spec", [tiny.LEARNED, tiny.POST], ids=["pre", "post"])
def test_learned_positions_count_on_from_the_prompts_and_end_the_rows(spec):
    network = base_network(spec)
    tree = tiny.random_leaves(network)
    longest = spec.max_tokens - 5
    rows = prompts((longest, 7))
    got = greedy(network, tree, rows)  # 14 are wanted; the last of the six needs no position
    assert got == [recomputed(network, tree, row, 6) for row in rows]
    with pytest.raises(DataError, match=f"{longest + 6} tokens, and the model {longest + 5}"):
        greedy(network, tree, prompts((longest + 6,)))
