"""Where the state lies, and that its abstract form is its concrete one."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from jaxft import tree as trees
from jaxft.config import TrainConfig
from jaxft.parallel import mesh as meshes
from jaxft.training import optimizer as optimizers
from jaxft.training import state as states

CONFIG = TrainConfig(output_dir="run", max_grad_norm=1.0, weight_decay=0.1)
HYPER, MAKE = optimizers.hyper_of(CONFIG, 10), optimizers.make_optimizer
MESH = meshes.make_mesh(1, 2, 2)
TREE = tiny.random_leaves(tiny.adapted())
TRAINABLE = tiny.split(TREE)[0]


def test_state_begins_with_the_leaves_given_zero_moments_and_step_zero():
    state = states.init_state(tiny.placed(TRAINABLE, MESH), {}, HYPER, MAKE, MESH)
    assert set(state.saved()) == {"trainable", "opt_state", "step"}
    assert (int(state.step), state.step.dtype) == (0, jnp.int32)
    before = trees.flatten(TRAINABLE)
    for path, leaf in trees.flatten(state.trainable).items():
        assert np.array_equal(leaf, before[path])
    assert not any(leaf.any() for leaf in jax.tree.leaves(state.opt_state))
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * trees.num_parameters(TRAINABLE)


def test_state_lies_as_its_shardings_say():
    state = states.init_state(tiny.placed(TRAINABLE, MESH), {}, HYPER, MAKE, MESH)
    placed = states.state_shardings(TRAINABLE, HYPER, MAKE, MESH).saved()
    saved = {**state.saved(), "began": state.started}
    assert jax.tree.structure(saved) == jax.tree.structure({**placed, "began": {}})
    for leaf, sharding in zip(
        jax.tree.leaves(saved), jax.tree.leaves({**placed, "began": {}}), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def test_moments_lie_where_their_parameter_lies():
    # Of a full tuning, whose kernels are divided: adapters are replicated either way.
    placed = states.state_shardings(TREE, HYPER, MAKE, MESH)
    moments = [
        trees.flatten(node)["groups/0/0/mlp/up/kernel"]
        for node in jax.tree.leaves(placed.opt_state, is_leaf=lambda n: isinstance(n, dict))
        if isinstance(node, dict)
    ]
    kernel = trees.flatten(placed.trainable)["groups/0/0/mlp/up/kernel"]
    assert [moment.spec for moment in moments] == [kernel.spec] * 2
    assert kernel.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")


def test_abstract_state_has_the_shapes_dtypes_and_shardings_of_the_state():
    state = states.init_state(tiny.placed(TRAINABLE, MESH), {}, HYPER, MAKE, MESH).saved()
    abstract = states.abstract_saved(TRAINABLE, {}, HYPER, MAKE, MESH)
    assert jax.tree.structure(state) == jax.tree.structure(abstract)
    for leaf, shape in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype)
        assert leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim)
