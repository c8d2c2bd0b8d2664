"""The compiled step as a whole: what it changes, what it reports, that it compiles once."""

import functools
import types

import jax
import jax.numpy as jnp
import naive
import numpy as np
import optax
import pytest
import tiny

from jaxft import tree as trees
from jaxft.config import TrainConfig
from jaxft.leaves.address import Address
from jaxft.training import optimizer as optimizers
from jaxft.training import state as states
from jaxft.training import step as steps
from jaxft.training.objective import CAUSAL_LM

ROWS, LENGTH, SEED = 4, 16, 7
NETWORK = tiny.adapted(tiny.with_windows([None] * 2), drops=True)
CONFIG = TrainConfig(
    output_dir="run", learning_rate=1e-2, lr_scheduler_type="linear", max_grad_norm=0.5
)
NUM_STEPS = 10


def batches(step):
    return tiny.make_batch(ROWS, LENGTH, seed=step)


def start(trainable, hyper):
    mesh = tiny.one_device()
    placed = tiny.placed(trainable, mesh)
    return states.init_state(placed, {}, hyper, optimizers.make_optimizer, mesh)


def fingerprint(tree):
    return {path: np.asarray(leaf).tobytes() for path, leaf in trees.flatten(tree).items()}


def narrow(base):
    """Return frozen leaves, the base's in bfloat16."""
    return trees.map_with_path(
        lambda path, leaf: leaf.astype(jnp.bfloat16) if Address.parse(path).is_own else leaf, base
    )


@pytest.fixture(scope="module")
def run():
    """Three steps on a bfloat16 base; what was seen on the way."""
    mesh = tiny.one_device()
    trainable, base = tiny.split(tiny.random_leaves(NETWORK))
    frozen = tiny.placed(narrow(base), mesh)
    hyper = optimizers.hyper_of(CONFIG, NUM_STEPS)
    program = steps.Program(NETWORK, mesh, "bfloat16", ROWS * LENGTH, False, CAUSAL_LM)
    step = steps.make_train_step(program, optimizers.make_optimizer, hyper, trainable)
    state = start(trainable, hyper)
    seen = types.SimpleNamespace(step=step, frozen=frozen, before=fingerprint(frozen))
    seen.trainable, seen.hyper, seen.program = trainable, hyper, program
    seen.states, seen.metrics, seen.donated = [], [], []
    for number in range(3):
        given = state
        state, metrics = step(state, frozen, batches(number), SEED)
        seen.donated += [leaf.is_deleted() for leaf in jax.tree.leaves(given)]
        seen.states.append(jax.tree.map(np.array, state))
        seen.metrics.append(metrics)
    seen.state = state
    return seen


def test_step_compiles_once(run):
    assert run.step._cache_size() == 1


def test_other_numbers_of_the_optimizer_do_not_compile_again(run):
    chosen = CONFIG.model_copy(
        update={"learning_rate": 3e-3, "adam_beta2": 0.9, "weight_decay": 0.1, "warmup_steps": 5}
    )
    state = start(run.trainable, optimizers.hyper_of(chosen, 20))
    state, metrics = run.step(state, run.frozen, batches(0), SEED)
    state, metrics = run.step(state, run.frozen, batches(1), SEED)
    assert run.step._cache_size() == 1
    np.testing.assert_allclose(metrics.learning_rate, 3e-3 / 5, rtol=1e-6)
    assert fingerprint(state.trainable) != fingerprint(run.states[1].trainable)


def test_base_keeps_its_bytes(run):
    assert fingerprint(run.frozen) == run.before


def test_every_adapter_leaf_moves_and_the_step_is_counted(run):
    assert [int(state.step) for state in run.states] == [1, 2, 3]
    before = trees.flatten(run.trainable)
    for path, leaf in trees.flatten(run.states[0].trainable).items():
        assert (leaf != before[path]).mean() > 0.9, path


def test_state_is_donated(run):
    assert all(run.donated)


def test_adapters_and_moments_are_float32_on_a_bfloat16_base(run):
    base = {
        leaf.dtype for path, leaf in trees.flatten(run.frozen).items() if Address.parse(path).is_own
    }
    assert base == {np.dtype(jnp.bfloat16)}
    floats = {leaf.dtype for leaf in jax.tree.leaves(run.state) if leaf.ndim}
    assert floats == {np.dtype("float32")}


def test_no_output_has_the_shape_of_a_base_leaf(run):
    outputs = jax.eval_shape(run.step, run.state, run.frozen, batches(0), SEED)
    shapes = {leaf.shape for leaf in jax.tree.leaves(outputs)}
    assert not shapes & {leaf.shape for leaf in jax.tree.leaves(run.frozen)}
    # Adapters, two moments of each, and a handful of scalars: nothing else comes out.
    size = sum(leaf.size for leaf in jax.tree.leaves(outputs))
    assert size - 3 * trees.num_parameters(run.trainable) <= 16


def test_metrics_are_those_of_the_step(run):
    program, seed = run.program, jnp.uint32(SEED)
    gradients = jax.jit(functools.partial(steps.gradients, program))
    trainable = jax.tree.map(jnp.asarray, run.trainable)
    terms, grads = gradients(trainable, run.frozen, batches(0), seed, 0)
    loss, count = terms["loss"]
    metrics = run.metrics[0]
    assert metrics.terms["loss"][1] == count == (batches(0)["labels"] != -100).sum()
    np.testing.assert_allclose(metrics.loss, loss / count, rtol=1e-5)
    norm = optax.tree.norm(grads) / count
    assert norm > CONFIG.max_grad_norm  # so that the metric is seen to be that before clipping
    np.testing.assert_allclose(metrics.grad_norm, norm, rtol=1e-3)
    rates = [float(metrics.learning_rate) for metrics in run.metrics]
    np.testing.assert_allclose(rates, [1e-2, 9e-3, 8e-3], rtol=1e-6)


def test_a_batch_of_nothing_but_padding_changes_no_adapter_and_gives_no_nan(run):
    empty = {**batches(0), "labels": np.full_like(batches(0)["labels"], -100)}
    state = start(run.trainable, run.hyper)
    state, metrics = run.step(state, run.frozen, empty, SEED)
    assert (metrics.loss, metrics.terms["loss"][1], metrics.grad_norm) == (0, 0, 0)
    assert fingerprint(state.trainable) == fingerprint(run.trainable)


def test_evaluation_is_the_plain_loss_without_dropout():
    network = tiny.adapted(tiny.with_windows([None] * 2), drops=True)
    tree, batch = tiny.random_leaves(network, dropout=0.9), batches(5)
    program = steps.Program(network, tiny.one_device(), "float32", ROWS * LENGTH, False, CAUSAL_LM)
    trainable, frozen = tiny.split(tree)
    loss, count = steps.make_eval_step(program)(trainable, frozen, batch)["loss"]
    micro = {key: value[0] for key, value in batch.items()}
    np.testing.assert_allclose(loss, naive.loss_sum(network, tree, micro), rtol=1e-5)
    assert count == (batch["labels"] != -100).sum()
