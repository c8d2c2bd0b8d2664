"""The held-out loss is a mean over all targets, whatever the batches."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from jaxft import tree as trees
from jaxft.lora import init, mask, numbers
from jaxft.models import forward
from jaxft.training import evaluate, step
from jaxft.training.evaluate import Evaluation
from jaxft.training.objective import CAUSAL_LM


@pytest.fixture(scope="module")
def adapters(plan_of):
    """Random adapters: with B = 0 it would be the base that is measured."""
    plan = plan_of()
    start = init.init_adapters(plan.network, kind=True, seed=3, mesh=plan.mesh)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape, "float32"), start)


def measure(plan, frozen, adapters, is_stopped=lambda: False):
    """Evaluate, and return also how often progress was told."""
    told = []
    program = step.Program(
        plan.network, plan.mesh, plan.dtype, plan.eval.target_capacity, False, CAUSAL_LM
    )
    found = evaluate.evaluate(
        step.make_eval_step(program),
        plan.eval,
        adapters,
        frozen,
        told.append,
        is_stopped,
    )
    return found, told


def by_hand(plan, frozen, adapters):
    """Return the mean of -log p over every target of every row, and the number of them."""
    examples = [
        plan.data.eval.examples[0][index] for index in range(len(plan.data.eval.examples[0]))
    ]
    shape = (12, max(len(ids) for ids, _ in examples))  # a multiple of the devices
    ids, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for row, (tokens, _) in enumerate(examples):
        ids[row, : len(tokens)], segments[row, : len(tokens)] = tokens, 1
    positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)

    @jax.jit
    def forward_logits(tree, *batch):
        hidden = forward.hidden_states(plan.network, tree, *batch, mesh=plan.mesh, dtype=plan.dtype)
        leaves = forward.head_leaves(plan.network, tree)
        return forward.head_logits(plan.network, plan.mesh, leaves, hidden, None)

    logits = forward_logits(trees.combine(adapters, frozen), ids, segments, positions)
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = [
        -log_p[row, target - 1, tokens[target]]
        for row, (tokens, mask) in enumerate(examples)
        for target in np.flatnonzero(mask)
    ]
    return np.mean(losses), len(losses)


def test_the_loss_is_the_mean_over_all_targets_and_no_batch_size_changes_it(
    plan_of, frozen, adapters
):
    expected, num_targets = by_hand(plan_of(), frozen, adapters)
    # 9 rows: as one batch, as three, and with a last batch that is mostly padding.
    for per_device, packing, num_batches in ((3, "false", 1), (1, "false", 3), (1, "true", 2)):
        plan = plan_of(f"train.per_device_eval_batch_size={per_device}", f"data.packing={packing}")
        found, told = measure(plan, frozen, adapters)
        assert found.target_tokens == num_targets == plan.data.eval.examples[0].targets.sum()
        assert found.loss == pytest.approx(expected, rel=1e-5)
        assert told == [1] * num_batches


def test_dropout_is_off(plan_of, frozen, adapters):
    def loss(share):
        plan = plan_of(f"lora.lora_dropout={share}")
        fixed = numbers.leaves(plan.config.lora, plan.family, plan.network)
        own = mask.parts(plan.network, frozen).frozen
        return measure(plan, trees.combine(own, fixed), adapters)[0].loss

    assert loss(0.0) == loss(0.5)


def test_it_stops_when_told_to(plan_of, frozen, adapters):
    plan = plan_of("data.packing=false")
    assert measure(plan, frozen, adapters, lambda: True) == (None, [1])


def test_perplexity_is_the_exponential_and_never_overflows():
    assert Evaluation(2.0, 10).perplexity == math.exp(2.0)
    assert math.isfinite(Evaluation(1e6, 10).perplexity)
