"""The step on four devices, and cut into micro-batches, is the step on one."""

import functools

import jax
import numpy as np
import optax
import programs
import pytest
import tiny

from jaxft import tree as trees
from jaxft.config import TrainConfig
from jaxft.parallel import mesh as meshes
from jaxft.training import optimizer as optimizers
from jaxft.training import state as states
from jaxft.training import step as steps
from jaxft.training.objective import CAUSAL_LM, batch_shardings

ROWS, LENGTH, NUM_STEPS = 8, 16, 20
# Windows, packed texts, ragged targets and dropout: all that could depend on where a row lies.
NETWORK = tiny.adapted(tiny.with_windows([5] * 2), drops=True)
DORA = tiny.adapted(
    tiny.with_windows([5] * 2), modules=("attn/qkv", "mlp/down"), drops=True, dora=True, head=True
)
LEARNING_RATE = 1e-3
# `trace` without decay keeps the last gradient, so one compiled step shows gradients and losses.
HYPER = optimizers.hyper_of(
    TrainConfig(output_dir="run", learning_rate=LEARNING_RATE, lr_scheduler_type="constant"),
    NUM_STEPS,
)


def make_optimizer(hyper, schedule):
    return optax.chain(optax.trace(0.0), optax.adamw(schedule))


@functools.cache
def run(shape=(1, 1, 1), accumulation=1, network=NETWORK):
    """Return the first step's gradients, every step's loss, and how often the step compiled."""
    mesh = meshes.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
    capacity = ROWS * LENGTH // accumulation // meshes.row_shards(mesh)
    trainable, frozen = tiny.split(tiny.random_leaves(network))
    program = steps.Program(network, mesh, "float32", capacity, False, CAUSAL_LM)
    step = steps.make_train_step(program, make_optimizer, HYPER, trainable)
    state = states.init_state(tiny.placed(trainable, mesh), {}, HYPER, make_optimizer, mesh)
    frozen, losses, gradients = tiny.placed(frozen, mesh), [], None
    for number in range(NUM_STEPS):
        batch = tiny.make_batch(ROWS, LENGTH, seed=number, accumulation=accumulation)
        state, metrics = step(state, frozen, batch, 3)
        losses.append(float(metrics.loss))
        if number == 0:
            gradients = jax.tree.map(np.array, state.opt_state[0].trace)
    return trees.flatten(gradients), losses, step._cache_size()


def assert_same_run(found, expected):
    gradients, losses, compilations = found
    assert compilations == 1
    for path, leaf in expected[0].items():
        error = np.linalg.norm(gradients[path] - leaf) / np.linalg.norm(leaf)
        assert error < 1e-5, (path, error)
    np.testing.assert_allclose(losses, expected[1], rtol=1e-5)
    assert losses[-1] != losses[0]


@pytest.mark.parametrize("shape", [(4, 1, 1), (2, 2, 1), (1, 2, 2), (2, 1, 2)])
def test_four_devices_equal_one(shape):
    assert_same_run(run(shape), run())


def test_dora_on_four_devices_equals_one():
    assert_same_run(run((1, 2, 2), network=DORA), run(network=DORA))


def test_four_micro_batches_equal_one():
    counts = (tiny.make_batch(ROWS, LENGTH, accumulation=4)["labels"] != -100).sum(axis=(1, 2))
    assert counts.max() > 3 * counts.min()  # a mean of their means would be far off
    assert_same_run(run(accumulation=4), run())


FSDP_ROWS, FSDP_LENGTH = 8, 13
KERNELS = {(64, 80), (64, 40), (80, 64), (64, 160), (160, 64), (112, 64)}


@functools.cache
def gathering():
    """Return the gradients compiled for weights divided by four, and for one device."""
    network = tiny.adapted(tiny.with_windows([None] * 3))
    trainable, frozen = tiny.split(tiny.random_leaves(network))
    compiled = []
    for shape in [(1, 4, 1), (1, 1, 1)]:
        mesh = meshes.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
        program = steps.Program(network, mesh, "float32", FSDP_ROWS * FSDP_LENGTH, False, CAUSAL_LM)
        batch = {
            key: jax.device_put(value, batch_shardings(CAUSAL_LM, mesh)[key])
            for key, value in tiny.make_batch(FSDP_ROWS, FSDP_LENGTH).items()
        }
        arguments = (tiny.placed(trainable, mesh), tiny.placed(frozen, mesh), batch)
        gradients = jax.jit(functools.partial(steps.gradients, program))
        compiled.append(gradients.lower(*arguments, 0, 0).compile())
    return compiled


def squeezed(shape):
    return tuple(size for size in shape if size != 1)


def test_weights_divided_over_fsdp_are_gathered_one_layer_at_a_time():
    found = programs.collectives(gathering()[0].as_text())
    gathered = {squeezed(shape) for kind, shape in found if kind == "all-gather"}
    assert programs.either_way(gathered) >= KERNELS
    stacked = {shape for _, shape in found if len(shape) == 3 and shape[1:] in KERNELS}
    assert not {shape for shape in stacked if shape[0] > 1}


def test_under_fsdp_no_activation_travels_and_only_small_sums_are_reduced():
    found = programs.collectives(gathering()[0].as_text())
    positions = {FSDP_LENGTH, FSDP_ROWS * FSDP_LENGTH, FSDP_ROWS * FSDP_LENGTH // 4}
    for kind, shape in found:
        assert not positions & set(shape), (kind, shape)
        if kind != "all-gather":
            # Adapter gradients, the loss and the count.
            assert kind == "all-reduce"
            assert tiny.RANK in shape or shape == (), (kind, shape)


def test_under_fsdp_a_device_holds_a_quarter_of_the_base():
    divided, whole = (program.memory_analysis() for program in gathering())
    base = trees.num_bytes(tiny.split(tiny.random_leaves(tiny.adapted()))[1])
    saved = whole.argument_size_in_bytes - divided.argument_size_in_bytes
    # Norms are not divided; the batch is.
    assert 0.98 * 0.75 * base < saved < 1.05 * 0.75 * base


def test_gathered_weights_are_not_kept_for_the_backward_pass():
    divided, whole = (program.memory_analysis() for program in gathering())
    layer = sum(rows * columns for rows, columns in KERNELS) * 4
    # A quarter of the rows, and room for the layer at hand; three layers kept would not fit.
    assert divided.temp_size_in_bytes < whole.temp_size_in_bytes / 4 + 2 * layer
