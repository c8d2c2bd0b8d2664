"""The hash that dropout is: what it depends on, and that it is well mixed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxft.models import dropout

ROWS, LENGTH, WIDTH = 8, 64, 96
ONES = jnp.ones((ROWS, LENGTH, WIDTH))


def seeds(seed=0, step=0, layer=0, module="attn/q", rows=None):
    rows = jnp.arange(ROWS, dtype=jnp.int32) if rows is None else jnp.asarray(rows, jnp.int32)
    return dropout.module_seeds(dropout.token_seeds(seed, step, rows, LENGTH), layer, module)


def kept(rate, **where):
    return np.asarray(dropout.apply(ONES, dropout.threshold(rate), seeds(**where))) > 0


def test_hash_has_its_recorded_values():
    # A change of these numbers changes every run with dropout: a resumed one would not be
    # the same any more.
    tokens = dropout.token_seeds(42, 7, jnp.array([0, 3], jnp.int32), 2)
    assert tokens.tolist() == [[2463651545, 505252086], [847367666, 1798537288]]
    down = dropout.module_seeds(tokens, 5, "mlp/down")
    assert down.tolist() == [[2404159320, 1651308853], [2620513098, 1087862837]]
    mask = dropout.apply(jnp.ones((2, 2, 8)), dropout.threshold(0.5), down).astype(int)
    assert mask[:, 0].tolist() == [[0, 2, 2, 0, 0, 0, 2, 2], [2, 0, 0, 2, 2, 2, 0, 2]]


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 0.9])
def test_rate_is_met_within_five_sigma(rate):
    mask = kept(rate)
    sigma = np.sqrt(rate * (1 - rate) / mask.size)
    assert abs((1 - mask.mean()) - rate) < 5 * sigma
    # And along each dimension by itself: no row, position or channel has a rate of its own.
    for axes in [(1, 2), (0, 2), (0, 1)]:
        share = 1 - mask.mean(axis=axes)
        sigma = np.sqrt(rate * (1 - rate) * share.size / mask.size)
        assert np.abs(share - rate).max() < 5 * sigma


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"step": 1}, {"layer": 1}, {"module": "attn/v"}, {"rows": range(8, 16)}],
    ids=lambda other: next(iter(other)),
)
def test_masks_of_different_places_are_independent(other):
    rate = 0.5
    agreement = (kept(rate) == kept(rate, **other)).mean()
    assert abs(agreement - 0.5) < 5 * np.sqrt(0.25 / ONES.size)


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["row", "position", "channel"])
def test_neighbours_are_independent(axis):
    mask = kept(0.5)
    ahead, behind = np.delete(mask, 0, axis), np.delete(mask, -1, axis)
    agreement = (ahead == behind).mean()
    assert abs(agreement - 0.5) < 5 * np.sqrt(0.25 / ahead.size)


def test_step_seed_and_layer_do_not_trade_places():
    drawn = [
        tuple(seeds(seed=seed, step=step, layer=layer)[0, :4].tolist())
        for seed in range(3)
        for step in range(3)
        for layer in range(3)
    ]
    assert len(set(drawn)) == 27


def test_survivors_are_scaled_so_that_the_mean_stays():
    dropped = np.asarray(dropout.apply(ONES, dropout.threshold(0.2), seeds()))
    assert set(np.unique(dropped)) == {0.0, np.float32(1.25)}
    assert abs(dropped.mean() - 1) < 5 * np.sqrt(0.2 / 0.8 / ONES.size)


def test_without_dropout_and_in_evaluation_it_is_the_identity():
    x = jax.random.normal(jax.random.key(0), ONES.shape)
    assert dropout.apply(x, None, seeds()) is x
    assert dropout.apply(x, dropout.threshold(0.5), None) is x
    # A member of a sweep may have a rate of 0 where another has not.
    assert np.array_equal(dropout.apply(x, dropout.threshold(0.0), seeds()), x)


@settings(max_examples=20)
@given(st.permutations(range(ROWS)))
def test_a_row_is_masked_alike_wherever_it_lies(order):
    assert np.array_equal(seeds(rows=order), np.asarray(seeds())[list(order)])


def test_mapping_over_seeds_equals_looping_over_them():
    many = jnp.arange(4, dtype=jnp.uint32)
    rows = jnp.arange(ROWS, dtype=jnp.int32)

    def drop(seed):
        tokens = dropout.module_seeds(dropout.token_seeds(seed, 3, rows, LENGTH), 1, "attn/q")
        return dropout.apply(ONES, dropout.threshold(0.3), tokens)

    mapped = jax.vmap(drop)(many)
    for index, seed in enumerate(many):
        assert np.array_equal(mapped[index], drop(seed))


def test_bfloat16_stays_bfloat16():
    assert (
        dropout.apply(ONES.astype(jnp.bfloat16), dropout.threshold(0.1), seeds()).dtype
        == jnp.bfloat16
    )
