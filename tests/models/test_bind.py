"""A tree meets the modules by path, whatever the order of its keys, or not at all."""

import jax
import jax.numpy as jnp
import naive
import numpy as np
import pytest
import tiny
from flax import nnx

from jaxft import tree as trees
from jaxft.errors import WeightsError
from jaxft.models import bind, forward

# Twelve layers of which no two are alike: groups/10 sorts before groups/2 as a string.
TWELVE = tiny.adapted(tiny.with_windows(range(3, 15)), modules=("attn/q",))


def reversed_keys(tree):
    """Return the same tree with every dict's keys inserted the other way round."""
    if not isinstance(tree, dict):
        return tree
    return {key: reversed_keys(tree[key]) for key in sorted(tree, reverse=True)}


def bound_leaves(decoder):
    state = nnx.to_flat_state(nnx.state(decoder))
    return {"/".join(map(str, path)): variable.get_value() for path, variable in state}


@pytest.mark.parametrize("order", [lambda tree: tree, reversed_keys])
def test_every_leaf_of_twelve_groups_is_bound_at_its_own_path(order):
    leaves = trees.flatten(tiny.random_leaves(TWELVE))
    assert len(TWELVE.groups) == 12
    bound = bound_leaves(bind.bind(TWELVE, order(trees.unflatten(leaves))))
    assert bound.keys() == leaves.keys()
    for path, leaf in leaves.items():
        assert bound[path] is leaf, path


def test_twelve_groups_give_the_logits_of_their_layers_one_after_another():
    tree, micro = tiny.random_leaves(TWELVE), tiny.micro_batch(2, 16)
    logits = tiny.forward_logits(TWELVE, reversed_keys(tree), micro)
    expected = naive.logits(TWELVE, tree, micro)
    real = micro["segment_ids"] > 0
    np.testing.assert_allclose(logits[real], expected[real], rtol=1e-4, atol=1e-4)
    # What a binding by order would do: two layers change places.
    layers = tree["groups"]
    wrong = {**tree, "groups": {**layers, "2": layers["10"], "10": layers["2"]}}
    assert np.abs(naive.logits(TWELVE, wrong, micro) - expected)[real].max() > 0.1


def without(tree, path):
    return {p: leaf for p, leaf in trees.flatten(tree).items() if p != path}


def test_renamed_leaf_raises_naming_both_names():
    tree = bind.abstract_tree(TWELVE)
    leaves = without(tree, "groups/10/0/attn/q/kernel")
    leaves["groups/10/0/attn/q/weight"] = jax.ShapeDtypeStruct((1, 64, 80), jnp.float32)
    with pytest.raises(WeightsError) as raised:
        bind.bind(TWELVE, trees.unflatten(leaves))
    assert "1 missing (groups/10/0/attn/q/kernel)" in raised.value.found
    assert "1 unexpected (groups/10/0/attn/q/weight)" in raised.value.found


def test_missing_adapter_raises_naming_it():
    leaves = without(bind.abstract_tree(TWELVE), "groups/11/0/attn/q/lora_b")
    with pytest.raises(WeightsError, match=r"1 missing \(groups/11/0/attn/q/lora_b\)"):
        bind.bind(TWELVE, trees.unflatten(leaves))


def test_base_without_any_adapter_raises_counting_them():
    with pytest.raises(WeightsError, match=r"24 missing \(.*, \.\.\.\)"):
        bind.bind(TWELVE, tiny.split(bind.abstract_tree(TWELVE))[1])


def test_added_adapter_raises_naming_it():
    tree = trees.flatten(bind.abstract_tree(TWELVE))
    tree["groups/3/0/attn/k/lora_a"] = jax.ShapeDtypeStruct((1, 6, 64), jnp.float32)
    with pytest.raises(WeightsError, match=r"1 unexpected \(groups/3/0/attn/k/lora_a\)"):
        bind.bind(TWELVE, trees.unflatten(tree))


def test_misshapen_leaf_raises_with_both_shapes():
    tree = trees.flatten(bind.abstract_tree(TWELVE))
    tree["groups/7/0/mlp/up/kernel"] = jax.ShapeDtypeStruct((1, 160, 64), jnp.float32)
    message = r"groups/7/0/mlp/up/kernel \(1, 160, 64\) instead of \(1, 64, 160\)"
    with pytest.raises(WeightsError, match=message):
        bind.bind(TWELVE, trees.unflatten(tree))


def test_a_tree_for_other_groups_of_the_same_layers_raises():
    network = tiny.adapted()
    with pytest.raises(WeightsError, match=r"misshapen|unexpected"):
        bind.bind(tiny.ungrouped(network), bind.abstract_tree(network))


def test_binding_works_on_tracers_and_shapes():
    network = tiny.adapted()
    micro = {key: jnp.asarray(value) for key, value in tiny.micro_batch(2, 16).items()}

    def hidden(tree):
        return forward.hidden_states(
            network,
            tree,
            micro["input_ids"],
            micro["segment_ids"],
            micro["positions"],
            mesh=tiny.one_device(),
            dtype="float32",
        )

    assert jax.eval_shape(hidden, bind.abstract_tree(network)).shape == (2, 16, 64)


def test_random_tree_binds_and_begins_like_its_base():
    network = tiny.adapted(tiny.with_windows([None] * 2), modules=("attn/q",))
    tree = bind.random_tree(network, seed=3)
    bind.bind(network, tree)
    flat = trees.flatten(tree)
    assert not any(leaf.any() for path, leaf in flat.items() if path.endswith("lora_b"))
    kernel = flat["groups/0/0/mlp/up/kernel"]
    assert 0.9 < np.std(kernel) * 8 < 1.1  # 8 is the root of the width
    assert not np.array_equal(kernel[0], kernel[1])
