"""Which token is picked: the likeliest, or a draw that its seed, step and row determine."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxft.generation import sampling
from jaxft.generation.sampling import GREEDY, Sampling

WARM = dataclasses.replace(GREEDY, temperature=1.0)
LOGITS = np.random.default_rng(0).standard_normal((5, 37)).astype(np.float32) * 3
_pick = jax.jit(sampling.pick)


def pick(how: Sampling, logits: np.ndarray = LOGITS, step: int = 0) -> np.ndarray:
    seen = np.zeros(logits.shape, bool)
    return np.asarray(_pick(logits, seen, jnp.int32(step), how.choice(0)))


def drawn(how: Sampling) -> np.ndarray:
    """Return 20,000 draws from the first row of `LOGITS`."""
    return pick(how, np.repeat(LOGITS[:1], 20_000, axis=0))


def shares(tokens: np.ndarray) -> np.ndarray:
    return np.bincount(tokens, minlength=LOGITS.shape[1]) / len(tokens)


@pytest.mark.parametrize(
    "how",
    [
        GREEDY,
        dataclasses.replace(WARM, temperature=1e-4),
        dataclasses.replace(WARM, top_k=1),
        dataclasses.replace(WARM, top_p=1e-6),
        dataclasses.replace(WARM, top_p=0.0),
    ],
    ids=["greedy", "cold", "top-k", "top-p", "top-p-zero"],
)
def test_each_limit_is_the_likeliest_token(how):
    np.testing.assert_array_equal(pick(how), LOGITS.argmax(axis=-1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_have_the_probabilities_of_the_softmax(temperature):
    expected = np.asarray(jax.nn.softmax(LOGITS[0] / temperature))
    got = shares(drawn(dataclasses.replace(WARM, temperature=temperature)))
    assert np.abs(got - expected).max() < 4 * 0.5 / 20_000**0.5


@pytest.mark.parametrize(("change", "kept"), [({"top_k": 4}, 4), ({"top_p": 0.6}, None)])
def test_only_the_likeliest_are_drawn(change, kept):
    chances = np.sort(np.asarray(jax.nn.softmax(LOGITS[0])))[::-1]
    if kept is None:
        kept = int(np.searchsorted(np.cumsum(chances), 0.6)) + 1
    assert 1 < kept < 20
    got = shares(drawn(dataclasses.replace(WARM, **change)))
    likeliest = np.argsort(LOGITS[0])[::-1][:kept]
    assert set(np.flatnonzero(got)) == set(likeliest)
    expected = chances[:kept] / chances[:kept].sum()
    assert np.abs(got[likeliest] - expected).max() < 4 * 0.5 / 20_000**0.5


@given(
    top_k=st.integers(0, 40),
    percent=st.integers(1, 100),
    seed=st.integers(0, 1000),
)
def test_the_cutoff_is_that_of_a_plain_loop(top_k, percent, seed):
    top_p = percent / 100
    logits = np.random.default_rng(seed).standard_normal((1, 37)).astype(np.float32) * 2
    got = _cutoff(logits, np.int32(top_k), np.float32(top_p))
    ordered = np.sort(logits[0])[::-1][: top_k or None].astype(np.float64)
    chances = np.exp(ordered) / np.exp(ordered).sum()
    sums = np.concatenate([[0.0], np.cumsum(chances)])[:-1]
    if np.abs(sums - top_p).min() > 1e-5:  # too close to call between float32 and float64
        assert got == np.float32(ordered[sums < top_p][-1])


@jax.jit
def _cutoff(logits, top_k, top_p):
    return sampling._cutoff(logits, top_k, top_p)[0, 0]


def test_a_draw_is_a_function_of_seed_step_and_row():
    same = np.repeat(LOGITS[:1], 64, axis=0)
    first = pick(WARM, same)
    np.testing.assert_array_equal(first, pick(WARM, same))
    np.testing.assert_array_equal(first[:7], pick(WARM, same[:7]))
    for other in (
        pick(dataclasses.replace(WARM, seed=1), same),
        pick(dataclasses.replace(WARM, seed=2**32), same),
        pick(WARM, same, step=1),
        np.roll(first, 1),
    ):
        assert np.mean(first == other) < 0.7


def test_choices_compile_nothing_anew():
    fresh = jax.jit(lambda *given: sampling.pick(*given))
    for how in (WARM, Sampling(0.3, 5, 0.9, 0.1, 1.0, 2**64 - 1)):
        fresh(LOGITS, np.zeros(LOGITS.shape, bool), jnp.int32(0), how.choice(4))
    assert fresh._cache_size() == 1
