"""Gradients of the whole loss: against autodiff of the plain decoder, and what computes them.

The sizes are distinct (2 x 13 tokens, width 64, heads 80 and 40 wide, MLP 160, vocabulary 112),
so a product that has a kernel's shape is a kernel's gradient.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import naive
import numpy as np
import programs
import pytest
import tiny
import tiny_specs

from jaxft import tree as trees
from jaxft.lora import mask
from jaxft.models.network import base_network
from jaxft.models.untuned import base_tree
from jaxft.training import step as steps
from jaxft.training.objective import CAUSAL_LM

ROWS, LENGTH = 2, 13
NETWORK = tiny.adapted(tiny.with_windows([4] * 3))
TRAINABLE, FROZEN = tiny.split(tiny.random_leaves(NETWORK))
BATCH = tiny.make_batch(ROWS, LENGTH, seed=6)  # both texts of a row have targets
KERNELS = {(64, 80), (64, 40), (80, 64), (64, 160), (160, 64), (112, 64)}


def gradient_function(network=NETWORK, remat=False, length=LENGTH):
    program = steps.Program(network, tiny.one_device(), "float32", ROWS * length, remat, CAUSAL_LM)

    def gradients(*arguments):
        terms, grads = steps.gradients(program, *arguments)
        return *terms["loss"], grads

    return jax.jit(gradients)


FULL = trees.combine(TRAINABLE, FROZEN)


def everything(network, tree):
    """Split leaves into those that can be trained, and the numbers of adapters."""
    parts = mask.parts(network, tree)
    return trees.combine(parts.trainable, parts.started, parts.frozen), parts.numbers


@functools.cache
def compiled(remat=False, everything_trained=False):
    arguments = everything(NETWORK, FULL) if everything_trained else (TRAINABLE, FROZEN)
    return gradient_function(remat=remat).lower(*arguments, BATCH, 0, 0).compile()


@functools.cache
def oracle():
    """Return the plain decoder's loss sum and its gradients of all leaves."""
    micro = {key: value[0] for key, value in BATCH.items()}
    loss = functools.partial(naive.loss_sum, NETWORK, micro=micro, xp=jnp)
    return jax.jit(jax.value_and_grad(loss))(trees.combine(TRAINABLE, FROZEN))


def assert_close(found, expected, bound):
    """Compare per leaf: the norm of the difference over the norm."""
    found, expected = trees.flatten(found), trees.flatten(expected)
    assert found.keys() <= expected.keys()
    for path, leaf in found.items():
        error = np.linalg.norm(leaf - expected[path]) / np.linalg.norm(expected[path])
        assert error < bound, (path, error)


def test_adapter_gradients_are_those_of_the_plain_decoder():
    loss, count, grads = compiled()(TRAINABLE, FROZEN, BATCH, 0, 0)
    expected_loss, expected = oracle()
    np.testing.assert_allclose(loss, expected_loss, rtol=2e-6)
    assert count == (BATCH["labels"] != -100).sum()
    assert trees.flatten(grads).keys() == trees.flatten(TRAINABLE).keys()
    assert_close(grads, expected, 1e-5)


def test_with_everything_trained_all_gradients_are_those_of_the_plain_decoder():
    full, numbers = everything(NETWORK, FULL)
    _, _, grads = compiled(everything_trained=True)(full, numbers, BATCH, 0, 0)
    assert trees.flatten(grads).keys() == trees.flatten(full).keys()
    assert_close(grads, oracle()[1], 1e-5)


OTHERS = {
    "post": tiny.adapted(tiny.POST, modules=["attn/qkv", "mlp/up"], outside=["embed_in"]),
    "own head": tiny.adapted(
        tiny.with_windows([None]), trained=["mlp_norm/scale"], outer_trained=["embed/kernel"]
    ),
    "sandwich": tiny.adapted(tiny_specs.SANDWICH, modules=["mlp/gate_up"], head=True),
    "minus a start": tiny.adapted(modules=["attn/qkv", "mlp/down"], head=True, start=True),
    "parallel": tiny.adapted(tiny_specs.PARALLEL, modules=["attn/q"], bias=True),
    "dora": tiny.adapted(modules=["attn/k", "mlp/gate_up", "mlp/down"], dora=True, head=True),
    "dora, fused": tiny.adapted(
        tiny.POST, modules=["attn/qkv"], outside=["embed_out"], dora=True, trained=["attn/o/bias"]
    ),
    "tied adapter": tiny.adapted(
        tiny.with_windows([None]), outside=["embed"], head=True, follows=True
    ),
    # Rows that are trained are not the table's, whose own gradient there is 0.
    "tied rows": tiny.adapted(
        tiny.with_windows([None]), rows={"embed": (5, 0, 90)}, head=True, follows=True
    ),
    "rows": tiny.adapted(
        tiny.with_windows([None], tied_head=False), rows={"embed": (9, 5), "head": (5, 0, 90)}
    ),
}


@pytest.mark.parametrize("network", OTHERS.values(), ids=OTHERS)
def test_gradients_of_other_networks_are_those_of_the_plain_decoder(network):
    tree = tiny.random_leaves(network)
    micro = {key: value[0] for key, value in BATCH.items()}
    loss = functools.partial(naive.loss_sum, network, micro=micro, xp=jnp)
    expected = jax.jit(jax.grad(loss))(tree)
    full, numbers = everything(network, tree)
    _, _, grads = gradient_function(network)(full, numbers, BATCH, 0, 0)
    assert trees.flatten(grads).keys() == trees.flatten(full).keys()
    if network.spec.qkv_bias and network.spec.blocks[0].rope is None:
        # Under the softmax the bias of the keys has no effect, and a gradient of rounding alone.
        for found in (grads, expected):
            del found["groups"]["0"]["0"]["attn"]["k"]["bias"]
    assert_close(grads, expected, 2e-5)
    trainable, frozen = tiny.split(tree, network)
    _, _, of_trained = gradient_function(network)(trainable, frozen, BATCH, 0, 0)
    assert trees.flatten(of_trained).keys() == trees.flatten(trainable).keys()
    assert_close(of_trained, expected, 2e-5)


def test_recomputing_gives_the_same_loss_and_gradients_in_less_memory():
    plain, remat = compiled(), compiled(remat=True)
    loss, _, grads = plain(TRAINABLE, FROZEN, BATCH, 0, 0)
    again, _, grads_again = remat(TRAINABLE, FROZEN, BATCH, 0, 0)
    np.testing.assert_allclose(again, loss, rtol=1e-6)
    assert_close(grads_again, grads, 2e-6)
    plain_bytes, remat_bytes = (
        program.memory_analysis().temp_size_in_bytes for program in (plain, remat)
    )
    assert remat_bytes < 0.8 * plain_bytes


def test_no_product_is_the_gradient_of_a_frozen_kernel():
    forbidden = programs.either_way(KERNELS)
    function = gradient_function().__wrapped__
    traced = jax.make_jaxpr(function)(TRAINABLE, FROZEN, BATCH, 0, 0).jaxpr
    assert not forbidden & programs.traced_products(traced)
    assert not forbidden & programs.compiled_products(compiled().as_text())
    assert not forbidden & programs.compiled_products(compiled(remat=True).as_text())


def test_the_search_for_such_products_finds_all_where_everything_is_trained():
    full = trees.combine(TRAINABLE, FROZEN)
    traced = jax.make_jaxpr(gradient_function().__wrapped__)(full, {}, BATCH, 0, 0).jaxpr
    in_hlo = programs.compiled_products(compiled(everything_trained=True).as_text())
    for products in (programs.traced_products(traced), in_hlo):
        assert programs.either_way(products) >= KERNELS


def bytes_a_layer(remat):
    """Return by how much a layer more enlarges the compiled program's scratch memory."""
    sizes = []
    for depth in (3, 9):
        network = tiny.adapted(tiny.with_windows([None] * depth))
        trainable, frozen = tiny.split(tiny.random_leaves(network))
        function = gradient_function(network, remat, length=16)
        batch = tiny.make_batch(ROWS, 16)
        program = function.lower(trainable, frozen, batch, 0, 0).compile()
        sizes.append(program.memory_analysis().temp_size_in_bytes)
    return (sizes[1] - sizes[0]) / 6


def test_a_layer_keeps_what_its_backward_pass_reads_and_nothing_else():
    model, q_width, kv_width, heads, mlp = 64, 80, 40, 4, 160
    floats_a_token = (
        2 * model  # the input of either norm
        + 2 * q_width + 2 * kv_width + heads  # q, output, k, v, log of the softmax's sum
        + 2 * mlp  # gate and up
        + model + mlp  # the adapters' inputs: of q and v together, and of down
        + 3 * tiny.RANK  # the adapters' inner products
    )  # fmt: skip
    kept = bytes_a_layer(remat=False)
    assert 0.95 < kept / (4 * ROWS * 16 * floats_a_token) < 1.02


def test_recomputing_a_layer_keeps_its_input_alone():
    kept = bytes_a_layer(remat=True)
    assert 0.95 < kept / (4 * ROWS * 16 * 64) < 1.02


def unpacked(batch, segment):
    """Return the batch in which each row holds its text number `segment` alone, from the start."""
    alone = {key: np.zeros_like(value) for key, value in batch.items()}
    alone["labels"][:] = -100
    alone["row_ids"] = batch["row_ids"]
    for row in range(ROWS):
        places = np.flatnonzero(batch["segment_ids"][0, row] == segment)
        for key in ("input_ids", "positions", "labels"):
            alone[key][0, row, : len(places)] = batch[key][0, row, places]
        alone["segment_ids"][0, row, : len(places)] = 1
    return alone


def test_packed_texts_have_the_losses_and_gradients_that_each_has_alone():
    packed = compiled()(TRAINABLE, FROZEN, BATCH, 0, 0)
    alone = [compiled()(TRAINABLE, FROZEN, unpacked(BATCH, s), 0, 0) for s in (1, 2)]
    assert min(int(count) for _, count, _ in alone) > 0
    assert packed[1] == sum(int(count) for _, count, _ in alone)
    np.testing.assert_allclose(packed[0], alone[0][0] + alone[1][0], rtol=2e-6)
    assert_close(packed[2], jax.tree.map(jnp.add, alone[0][2], alone[1][2]), 1e-5)


def test_other_texts_in_the_row_do_not_reach_a_texts_loss():
    other = {key: value.copy() for key, value in BATCH.items()}
    second = other["segment_ids"] == 2
    other["input_ids"][second] = (other["input_ids"][second] + 1) % 112
    other["labels"][second] = -100
    changed = compiled()(TRAINABLE, FROZEN, other, 0, 0)
    alone = compiled()(TRAINABLE, FROZEN, unpacked(BATCH, 1), 0, 0)
    np.testing.assert_allclose(changed[0], alone[0], rtol=2e-6)


def with_zero_b(tree):
    def zero(path, leaf):
        return np.zeros_like(leaf) if path.endswith("lora_b") else leaf

    return trees.map_with_path(zero, tree)


def test_zero_b_gives_exactly_the_logits_of_the_base():
    micro = {key: value[0] for key, value in BATCH.items()}
    adapted = tiny.forward_logits(NETWORK, trees.combine(with_zero_b(TRAINABLE), FROZEN), micro)
    base = base_network(NETWORK.spec)
    of_base = base_tree(NETWORK, FROZEN, {})
    np.testing.assert_array_equal(adapted, tiny.forward_logits(base, of_base, micro))


def test_zero_b_has_gradients_in_b_alone():
    _, _, grads = compiled()(with_zero_b(TRAINABLE), FROZEN, BATCH, 0, 0)
    for path, leaf in trees.flatten(grads).items():
        assert bool(leaf.any()) == path.endswith("lora_b"), path


def test_layers_without_an_adapter_get_no_leaf_and_nothing_runs_backward_below_the_first():
    network = tiny.adapted(tiny.with_windows([None] * 5), layers=[3, 4])
    trainable, frozen = tiny.split(tiny.random_leaves(network))
    assert {path.split("/")[1] for path in trees.flatten(trainable)} == {"1"}
    function = gradient_function(network, length=16).__wrapped__
    jaxpr = jax.make_jaxpr(function)(trainable, frozen, tiny.make_batch(ROWS, 16), 0, 0).jaxpr
    scans = [
        equation.params["length"]
        for equation in jaxpr.eqns
        if equation.primitive.name == "scan" and equation.params["length"] in (2, 3)
    ]
    assert scans == [3, 2, 2]  # forward below, forward above, backward above


def test_dropout_reaches_the_gradients_and_depends_on_seed_and_step():
    dropped = dataclasses.replace(NETWORK.spec, blocks=NETWORK.spec.blocks[:2])
    network = tiny.adapted(dropped, drops=True)
    trainable, frozen = tiny.split(tiny.random_leaves(network))
    function, batch = gradient_function(network, length=16), tiny.make_batch(ROWS, 16)
    losses = {
        (seed, step): float(function(trainable, frozen, batch, seed, step)[0])
        for seed, step in [(0, 0), (1, 0), (0, 1)]
    }
    assert len(set(losses.values())) == 3
    assert losses[0, 0] == float(function(trainable, frozen, batch, 0, 0)[0])
