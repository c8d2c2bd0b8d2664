"""AdamW, its clipping and its schedules, against their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxft.config import TrainConfig
from jaxft.training import optimizer as optimizers
from jaxft.training import state as states

PARAMS = {
    "groups": {"0": {"0": {"attn": {"q": {"kernel": jnp.full((2, 3), 2.0)}}}}},
    "final_norm": {"scale": jnp.full(3, 2.0)},
    "o": {"bias": jnp.full(3, 2.0), "lora_a": jnp.full((2, 3), 2.0)},
    "dora": {"lora_magnitude": jnp.full(3, 2.0)},
}


def config(**fields):
    return TrainConfig(output_dir="run", **fields)


def rates(num_steps, **fields):
    hyper = optimizers.hyper_of(config(learning_rate=2e-3, **fields), num_steps)
    return [float(optimizers.learning_rate(hyper, step)) for step in range(num_steps + 1)]


def optimizer_of(chosen):
    return states.optimizer_of(optimizers.hyper_of(chosen, 10), optimizers.make_optimizer)


def first_update(grads, **fields):
    fields = {"learning_rate": 0.1, "lr_scheduler_type": "constant", **fields}
    chosen = config(**fields)
    optimizer = optimizer_of(chosen)
    return optimizer.update(grads, optimizer.init(PARAMS), PARAMS)[0]


def test_linear_falls_from_its_peak_to_zero():
    np.testing.assert_allclose(rates(4), [2e-3, 1.5e-3, 1e-3, 5e-4, 0], rtol=1e-5)


def test_cosine_falls_from_its_peak_to_zero_along_half_a_wave():
    found = rates(4, lr_scheduler_type="cosine")
    expected = [1e-3 * (1 + math.cos(math.pi * step / 4)) for step in range(5)]
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant_with_warmup"])
def test_warm_up_rises_from_zero_to_the_peak(kind):
    found = rates(10, lr_scheduler_type=kind, warmup_steps=4)
    np.testing.assert_allclose(found[:5], [0, 5e-4, 1e-3, 1.5e-3, 2e-3], rtol=1e-5)
    assert (found[10] == pytest.approx(2e-3)) == (kind == "constant_with_warmup")
    assert (found[10] == 0) == (kind != "constant_with_warmup")


def test_a_warm_up_below_one_is_a_share_of_the_run():
    assert rates(10, warmup_steps=0.4) == rates(10, warmup_steps=4)
    assert rates(10, warmup_ratio=0.4) == rates(10, warmup_steps=4)


def test_constant_stays():
    assert rates(5, lr_scheduler_type="constant") == [pytest.approx(2e-3)] * 6


@given(
    st.sampled_from(["linear", "cosine", "constant_with_warmup"]),
    st.integers(1, 60),
    st.integers(0, 60),
)
def test_rates_are_never_negative_nor_above_the_peak(kind, num_steps, warmup):
    hyper = optimizers.hyper_of(
        config(learning_rate=1.0, lr_scheduler_type=kind, warmup_steps=warmup), num_steps
    )
    # One length, so that it compiles once.
    found = np.asarray(optimizers.learning_rate(hyper, jnp.arange(150)))
    assert (found >= 0).all()
    assert (found <= 1).all()


def test_gradients_are_clipped_by_their_global_norm():
    grads = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 3.0), PARAMS)
    chosen = config(max_grad_norm=0.5)
    optimizer = optimizer_of(chosen)
    _, state = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    (first,) = [node.mu for node in jax.tree.leaves(state, is_leaf=has_mu) if has_mu(node)]
    # The first moment is a tenth of the gradient that Adam saw.
    seen = math.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(first))) / 0.1
    assert seen == pytest.approx(0.5, rel=1e-4)


def has_mu(node):
    return hasattr(node, "mu")


def test_clipping_at_zero_means_none():
    grads = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 3e3), PARAMS)
    chosen = config(max_grad_norm=0.0)
    optimizer = optimizer_of(chosen)
    _, state = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    (first,) = [node.mu for node in jax.tree.leaves(state, is_leaf=has_mu) if has_mu(node)]
    np.testing.assert_allclose(first["o"]["bias"], 3e2, rtol=1e-5)


def test_weights_do_not_decay_unless_asked():
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    assert not any(leaf.any() for leaf in jax.tree.leaves(first_update(zeros)))


def test_kernels_and_adapters_decay_and_norms_and_biases_do_not():
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    update = first_update(zeros, weight_decay=0.25)
    decayed = -0.1 * 0.25 * 2.0  # rate times decay times weight, whatever the gradient
    np.testing.assert_allclose(
        update["groups"]["0"]["0"]["attn"]["q"]["kernel"], decayed, rtol=1e-6
    )
    np.testing.assert_allclose(update["o"]["lora_a"], decayed, rtol=1e-6)
    assert not update["o"]["bias"].any()
    assert not update["dora"]["lora_magnitude"].any()
    assert not update["final_norm"]["scale"].any()


def test_betas_and_epsilon_are_those_of_the_recipe():
    grads = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1e-3), PARAMS)
    chosen = config(
        learning_rate=0.1,
        lr_scheduler_type="constant",
        adam_beta1=0.5,
        adam_beta2=0.75,
        adam_epsilon=1e-2,
    )
    optimizer = optimizer_of(chosen)
    state = optimizer.init(PARAMS)
    _, state = optimizer.update(grads, state, PARAMS)
    update, _ = optimizer.update(jax.tree.map(lambda g: 3 * g, grads), state, PARAMS)
    first = (0.5 * 0.5e-3 + 0.5 * 3e-3) / (1 - 0.5**2)
    second = (0.75 * 0.25e-6 + 0.25 * 9e-6) / (1 - 0.75**2)
    expected = -0.1 * first / (math.sqrt(second) + 1e-2)
    np.testing.assert_allclose(update["o"]["bias"], expected, rtol=1e-5)
