"""Laws of the operations on parameter trees."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxft import tree as trees

KEYS = st.sampled_from(["a", "b", "0", "2", "10", "kernel", "a_b"])
TREES = st.dictionaries(
    KEYS,
    st.recursive(
        st.integers(), lambda nodes: st.dictionaries(KEYS, nodes, min_size=1), max_leaves=12
    ),
)


@settings(max_examples=40)
@given(TREES)
def test_unflatten_undoes_flatten(tree):
    assert trees.unflatten(trees.flatten(tree)) == tree


@settings(max_examples=40)
@given(TREES)
def test_paths_spell_the_way_to_their_leaf(tree):
    for path, leaf in trees.flatten(tree).items():
        node = tree
        for key in path.split("/"):
            node = node[key]
        assert node == leaf


@settings(max_examples=40)
@given(TREES, st.randoms(use_true_random=False))
def test_combine_undoes_partition(tree, random):
    marks = trees.map_with_path(lambda path, leaf: random.random() < 0.5, tree)
    selected, rest = trees.partition(tree, marks)
    assert trees.combine(selected, rest) == trees.combine(rest, selected) == tree
    flat = trees.flatten(marks)
    assert set(trees.flatten(selected)) == {path for path in flat if flat[path]}
    assert set(trees.flatten(rest)) == {path for path in flat if not flat[path]}


def test_a_leaf_that_is_a_sequence_stays_whole():
    assert trees.flatten({"a": {"b": (1, 2)}}) == {"a/b": (1, 2)}


def test_order_of_insertion_does_not_show():
    forth, back = {"x": {"a": 1, "b": 2}, "y": 3}, {"y": 3, "x": {"b": 2, "a": 1}}
    assert list(trees.flatten(forth).items()) == list(trees.flatten(back).items())


def test_mask_of_other_paths_raises_naming_one():
    with pytest.raises(ValueError, match=r"differ in 2 paths, first 'a/b'"):
        trees.partition({"a": {"b": 1}}, {"a": {"c": True}})


def test_combining_trees_that_overlap_raises_naming_the_path():
    with pytest.raises(ValueError, match="'a/b' is in more than one tree"):
        trees.combine({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}})


@pytest.mark.parametrize("paths", [("a", "a/b"), ("a/b", "a"), ("a/b/c", "a/b"), ("a/b", "a/b/c")])
def test_a_path_below_a_leaf_raises(paths):
    with pytest.raises(ValueError, match=f"{max(paths, key=len)!r}|{min(paths, key=len)!r}"):
        trees.unflatten(dict.fromkeys(paths, 1))


def test_sizes_are_summed_over_leaves():
    tree = {"a": {"b": np.zeros((3, 5), np.float32)}, "c": jnp.zeros(7, jnp.bfloat16)}
    assert trees.num_parameters(tree) == 22
    assert trees.num_bytes(tree) == 3 * 5 * 4 + 7 * 2
