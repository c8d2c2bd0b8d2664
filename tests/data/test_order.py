from __future__ import annotations

import collections
import itertools
from fractions import Fraction

import hypothesis
import numpy as np
import pytest
from batch_builders import make_examples, uniform_rows
from hypothesis import strategies as st

from jaxft.data.batches import loader, order
from jaxft.data.batches.order import Epochs
from jaxft.errors import ConfigError

COUNTS = st.lists(st.integers(1, 12), min_size=1, max_size=4)
WEIGHTS = st.floats(0.01, 100)


def epochs_of(*counts, **changes) -> Epochs:
    options = {"weights": None, "seed": 0, "shuffle": True, "lengths": None, "global_batch": 4}
    return Epochs(counts=counts, **(options | changes))


MIXTURES = st.tuples(
    st.lists(st.tuples(st.integers(1, 12), WEIGHTS), min_size=1, max_size=4),
    st.integers(0, 9),
    st.booleans(),
)


def mixture(drawn, **changes) -> Epochs:
    """Return epochs of weighted sources, in which each has a share."""
    pairs, seed, shuffle = drawn
    counts, weights = zip(*pairs, strict=True)
    hypothesis.assume(all(order.quotas(sum(counts), weights)))
    return epochs_of(*counts, **{"weights": weights, "seed": seed, "shuffle": shuffle} | changes)


def source_of(epochs: Epochs, sequences) -> list[int]:
    return np.searchsorted(np.cumsum(epochs.counts), sequences, side="right").tolist()


def test_shuffles_have_the_values_that_earlier_runs_were_trained_on():
    # Golden: a change here means that no run can be resumed across it.
    assert order.shuffled(10, 0, 0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert order.shuffled(10, 42, 3).tolist() == [1, 6, 3, 4, 5, 9, 2, 8, 0, 7]
    assert order.shuffled(5, 7, -1).tolist() == [1, 4, 0, 2, 3]
    assert order.shuffled(6, 7, 2, use=1).tolist() == [1, 3, 0, 4, 5, 2]
    assert order.shuffled(6, 7, 2, use=order.BLOCKS).tolist() == [0, 5, 1, 2, 4, 3]


@hypothesis.given(
    st.integers(0, 200),
    st.integers(-(2**63), 2**64),
    st.integers(-1, 2**40),
    st.integers(-2, 100),
)
def test_a_shuffle_is_a_permutation(count, seed, stream, use):
    assert sorted(order.shuffled(count, seed, stream, use)) == list(range(count))


def test_shuffles_of_other_seeds_streams_and_uses_are_others():
    cases = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, -1)]
    assert len({tuple(order.shuffled(20, *case)) for case in cases}) == len(cases)


@hypothesis.given(COUNTS, st.integers(0, 5), st.booleans())
def test_without_weights_an_epoch_is_every_sequence_once(counts, epoch, shuffle):
    found = epochs_of(*counts, shuffle=shuffle).order(epoch).tolist()
    assert sorted(found) == list(range(sum(counts)))
    assert shuffle or found == sorted(found)


@hypothesis.given(st.integers(0, 1000), st.lists(WEIGHTS, min_size=1, max_size=6))
def test_quotas_are_the_exact_shares_rounded_to_a_whole_sum(total, weights):
    found = order.quotas(total, weights)
    exact = [total * Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
    assert sum(found) == total
    assert all(abs(own - share) < 1 for own, share in zip(found, exact, strict=True))
    # No other division is nearer: a part that was rounded up has no smaller remainder than one
    # that was rounded down.
    up = [share % 1 for own, share in zip(found, exact, strict=True) if own > share]
    down = [share % 1 for own, share in zip(found, exact, strict=True) if own <= share]
    assert min(up, default=1) >= max(down, default=0)


def test_shares_are_what_a_recipe_says():
    assert order.quotas(10, [0.7, 0.3]) == [7, 3]
    assert order.quotas(10, [1.0, 1.0, 1.0]) == [4, 3, 3]
    assert order.quotas(1000, [3.0, 1.0]) == [750, 250]


@hypothesis.given(MIXTURES, st.integers(0, 6))
def test_each_source_gives_its_exact_share_of_every_epoch(drawn, epoch):
    epochs = mixture(drawn)
    found = epochs.order(epoch)
    assert len(found) == len(epochs)
    given = collections.Counter(source_of(epochs, found))
    assert [given[k] for k in range(len(epochs.counts))] == epochs.quotas


@hypothesis.given(MIXTURES, st.integers(1, 6))
def test_the_rows_of_a_source_are_used_equally_often(drawn, num_epochs):
    epochs = mixture(drawn)
    found = np.concatenate([epochs.order(epoch) for epoch in range(num_epochs)])
    uses = np.bincount(found, minlength=len(epochs))
    first = 0
    for count, quota in zip(epochs.counts, epochs.quotas, strict=True):
        own = uses[first : first + count]
        assert own.sum() == quota * num_epochs
        assert own.max() - own.min() <= 1
        first += count


def test_sources_of_one_size_have_orders_of_their_own():
    epochs = epochs_of(10, 10, 20, weights=[1.0, 1.0, 6.0])
    assert epochs.quotas == [5, 5, 30]
    found = epochs.order(0)
    assert {i for i in found if i < 10} != {i - 10 for i in found if 10 <= i < 20}


def test_a_weighted_source_goes_on_where_its_last_epoch_ended():
    epochs = epochs_of(10, 10, weights=[1.0, 3.0])
    assert epochs.quotas == [5, 15]
    own = [[i for i in epochs.order(epoch) if i < 10] for epoch in range(4)]
    assert sorted(own[0] + own[1]) == sorted(own[2] + own[3]) == list(range(10))
    assert set(own[0]) != set(own[2])


@hypothesis.given(MIXTURES)
def test_without_shuffling_weighted_sources_take_even_turns(drawn):
    epochs = mixture(drawn, shuffle=False)
    found = source_of(epochs, epochs.order(0))
    for k, quota in enumerate(epochs.quotas):
        given = np.cumsum(np.array(found) == k)
        even = np.arange(1, len(found) + 1) * quota / len(found)
        assert np.abs(given - even).max() < len(epochs.counts)
    own = [i for i in epochs.order(0) if i < epochs.counts[0]]
    assert own == [i % epochs.counts[0] for i in range(epochs.quotas[0])]


def test_a_weight_too_small_for_a_single_sequence_is_refused():
    with pytest.raises(ConfigError, match=r"Source 2 of data.train has the weight 0.01"):
        epochs_of(3, 3, weights=[1.0, 0.01])


@hypothesis.given(MIXTURES, st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_an_epoch_does_not_depend_on_what_was_asked_before(drawn, asked):
    epochs = mixture(drawn)
    for epoch in asked:
        assert epochs.order(epoch).tolist() == mixture(drawn).order(epoch).tolist()


@hypothesis.given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    global_batch=st.integers(1, 5),
    epoch=st.integers(0, 3),
    shuffle=st.booleans(),
)
def test_grouping_keeps_every_row_and_sorts_what_fills_batches(
    lengths, global_batch, epoch, shuffle
):
    options = {"lengths": np.array(lengths), "global_batch": global_batch, "shuffle": shuffle}
    found = epochs_of(len(lengths), **options).order(epoch)
    assert sorted(found) == list(range(len(lengths)))
    num_full = len(lengths) // global_batch
    batches = found[: num_full * global_batch].reshape(num_full, global_batch)
    # All of so few rows are in one window, so that two batches share one length at most.
    spans = sorted((min(own), max(own)) for own in np.array(lengths)[batches])
    assert all(low[1] <= high[0] for low, high in itertools.pairwise(spans))
    # What fills no batch is a random part, not the shortest rows.
    plain = epochs_of(len(lengths), shuffle=shuffle).order(epoch)
    assert found[num_full * global_batch :].tolist() == plain[num_full * global_batch :].tolist()


def test_batches_of_like_length_come_in_a_random_order_and_with_others_each_epoch():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 1000, 4000)
    epochs = epochs_of(len(lengths), lengths=lengths, global_batch=8)
    one, two = (epochs.order(epoch).reshape(-1, 8) for epoch in (0, 1))
    longest = lengths[one].max(1)
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.2
    assert not {frozenset(batch) for batch in one.tolist()} & set(map(frozenset, two.tolist()))


def test_grouping_pads_less_and_makes_few_shapes():
    # Log-normal, as the lengths of answers are.
    lengths = np.random.default_rng(0).lognormal(4.0, 0.6, 800).astype(int).clip(2, 512)
    examples = make_examples(uniform_rows(*lengths))
    plain, grouped = (
        loader.make_batches(
            [examples],
            weights=None,
            max_length=512,
            packing=False,
            group_by_length=grouping,
            shuffle=True,
            seed=0,
            global_batch=8,
            accumulation=2,
            shards=1,
            drop_last=False,
        )
        for grouping in (False, True)
    )
    assert grouped.fill > 0.65 > 0.25 > plain.fill
    shapes = {grouped.batch(step)["input_ids"].shape for step in range(200)}
    assert {shape[:2] for shape in shapes} == {(2, 4)}
    assert 2 <= len(shapes) <= 4
    assert max(shape[2] for shape in shapes) <= grouped.sequence_length == plain.sequence_length
