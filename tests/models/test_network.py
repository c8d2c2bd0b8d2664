"""How layers are cut into groups of repeated periods."""

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from jaxft import tree as trees
from jaxft.models import bind
from jaxft.models import network as networks
from jaxft.models.network import find_periods


@given(st.lists(st.integers(0, 2), max_size=30))
def test_runs_cover_all_items_in_order_and_repeat_their_period(items):
    covered = 0
    for start, repeats, length in find_periods(items):
        assert start == covered
        assert repeats >= 1
        assert length == 1 or repeats > 1
        period = items[start : start + length]
        covered += repeats * length
        assert items[start:covered] == period * repeats
    assert covered == len(items)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.integers(2, 8))
def test_a_repeated_pattern_is_one_run(pattern, repeats):
    ((start, found, length),) = find_periods(pattern * repeats)
    assert (start, found * length) == (0, len(pattern) * repeats)
    assert len(pattern) % length == 0


def test_layers_that_are_all_alike_are_one_group_of_period_one():
    assert find_periods("a" * 30) == [(0, 30, 1)]


def test_alternating_layers_are_one_group_of_period_two():
    assert find_periods("ab" * 9) == [(0, 9, 2)]
    assert find_periods("ab" * 3 + "a") == [(0, 3, 2), (6, 1, 1)]


def test_five_local_layers_and_a_global_one_are_a_period_of_six_and_a_tail():
    assert find_periods("lllllg" * 4 + "ll") == [(0, 4, 6), (24, 2, 1)]


def test_dense_layers_before_others_are_a_group_of_their_own():
    assert find_periods("d" + "e" * 11) == [(0, 1, 1), (1, 11, 1)]


def test_layers_without_a_pattern_are_runs_of_one():
    assert find_periods("abcdefghijklm") == [(layer, 1, 1) for layer in range(13)]


def test_adapters_on_the_upper_layers_cut_the_group():
    network = tiny.adapted(tiny.with_windows([None] * 8), layers=range(5, 8))
    assert [(group.first_layer, group.repeats) for group in network.groups] == [(0, 5), (5, 3)]
    assert network.groups[0].period[0].adapters == ()
    assert [name for name, _ in network.groups[1].period[0].adapters] == sorted(tiny.MODULES)


def test_adapters_on_every_other_layer_make_a_longer_period():
    network = tiny.adapted(tiny.with_windows([None] * 8), layers=range(1, 8, 2))
    (group,) = network.groups
    assert (group.repeats, len(group.period)) == (4, 2)
    assert [bool(layer.adapters) for layer in group.period] == [False, True]


def test_ranks_cut_no_group_and_the_largest_is_the_width():
    network = tiny.adapted(modules=["attn/q"], ranks=[2, 5, 3])
    ((path, adapter),) = network.groups[0].period[0].adapters
    assert (path, adapter.ranks, adapter.width) == ("attn/q", (2, 5, 3), 5)
    assert bind.abstract_tree(network)["groups"]["0"]["0"]["attn"]["q"]["lora_b"].shape == (
        3,
        5,
        80,
    )
    places = network.places()
    assert [places[layer].adapters["attn/q"].ranks for layer in range(3)] == [(2,), (5,), (3,)]


def test_a_rank_of_0_is_no_adapter_of_that_layer():
    network = tiny.adapted(modules=["attn/q"], ranks=[2, 0, 3])
    assert len(network.groups) == 1
    assert [bool(network.places()[layer].adapters) for layer in range(3)] == [True, False, True]
    assert not tiny.adapted(modules=["attn/q"], ranks=[0, 0, 0]).groups[0].period[0].adapters


def test_trained_leaves_cut_the_group_as_adapters_do():
    network = tiny.adapted(
        tiny.with_windows([None] * 4), modules=(), layers=[1], trained=["mlp/up/kernel"]
    )
    cut = [(group.first_layer, group.repeats) for group in network.groups]
    assert cut == [(0, 1), (1, 1), (2, 2)]
    assert network.trained_leaves() == {"groups/1/0/mlp/up/kernel"}


def test_leaves_trained_outside_the_layers_cut_nothing():
    network = tiny.adapted(modules=(), outer_trained=["final_norm/scale"])
    assert len(network.groups) == 1
    assert network.trained_leaves() == {"final_norm/scale"}
    assert not network.has_own_head


@pytest.mark.parametrize("leaf", ["head/kernel", "embed/kernel"])
def test_a_tied_head_is_a_leaf_of_its_own_once_it_or_the_embedding_is_trained(leaf):
    network = tiny.adapted(outer_trained=[leaf])
    assert network.has_own_head
    leaves = bind.abstract_tree(network)
    assert leaves["head"]["kernel"].shape == (64, 112)
    assert "head" not in bind.abstract_tree(tiny.adapted())
    assert trees.flatten(tiny.split(leaves, network)[0]).keys() > {leaf}
    assert leaf not in trees.flatten(tiny.split(leaves)[0])


@given(st.lists(st.sampled_from([None, 4, 8]), min_size=1, max_size=20))
def test_stacked_blocks_name_every_layer_once_with_its_own_window(windows):
    spec = tiny.with_windows(windows)
    seen = {}
    for prefix, layer, indices in networks.base_network(spec).stacked_blocks():
        assert prefix.startswith("groups/")
        for index in indices:
            assert index not in seen
            seen[index] = layer.block.window
    assert [seen[index] for index in range(len(windows))] == windows


def test_equal_descriptions_are_equal_and_hash_alike():
    assert tiny.adapted() == tiny.adapted()
    assert hash(tiny.adapted()) == hash(tiny.adapted())
    assert tiny.adapted() != tiny.adapted(drops=True)
    assert tiny.adapted() != tiny.adapted(head=True)
