"""The schedules held to transformers', and AdamW with clipping and decay to torch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("torch")

import torch
import transformers
from reference_runs import Record

from jaxft.config import TrainConfig
from jaxft.training import optimizer

pytestmark = pytest.mark.reference

NUM_STEPS = 40
PEAK = 3e-4


def config(**fields: Any) -> TrainConfig:
    return TrainConfig(output_dir=Path("unused"), learning_rate=PEAK, **fields)


@pytest.mark.parametrize(
    ("name", "warmup", "warmup_steps"),
    [
        ("linear", {}, 0),
        ("linear", {"warmup_steps": 7.0}, 7),
        ("linear", {"warmup_ratio": 0.11}, 5),
        ("linear", {"warmup_steps": 40.0}, 40),
        ("cosine", {}, 0),
        ("cosine", {"warmup_steps": 7.0}, 7),
        ("cosine", {"warmup_steps": 0.11}, 5),
        ("constant", {}, 0),
        ("constant_with_warmup", {"warmup_steps": 7.0}, 7),
    ],
)
def test_the_learning_rate_equals_transformers_at_every_step(
    name: str, warmup: dict[str, float], warmup_steps: int
) -> None:
    arguments = transformers.TrainingArguments(
        output_dir="unused", warmup_steps=warmup.get("warmup_steps", warmup.get("warmup_ratio", 0))
    )
    assert arguments.get_warmup_steps(NUM_STEPS) == warmup_steps
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    theirs = transformers.get_scheduler(name, sgd, warmup_steps, NUM_STEPS)
    expected = []
    for _ in range(NUM_STEPS + 1):
        expected.append(theirs.get_last_lr()[0])
        sgd.step()
        theirs.step()
    schedule = optimizer.make_schedule(config(lr_scheduler_type=name, **warmup), NUM_STEPS)
    rates = [float(schedule(jnp.int32(step))) for step in range(NUM_STEPS + 1)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6, atol=PEAK * 1e-6)


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0], ids=["free", "clipped"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3], ids=["plain", "decayed"])
def test_updates_equal_those_of_torch(
    weight_decay: float, max_grad_norm: float, record_property: Record
) -> None:
    fields = {"adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-3}
    run = config(
        lr_scheduler_type="cosine",
        warmup_steps=3.0,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        **fields,
    )
    schedule = optimizer.make_schedule(run, NUM_STEPS)
    ours = optimizer.make_optimizer(run, schedule)
    rng = np.random.default_rng(0)
    # Under their names in our trees: torch's Trainer, too, does not decay norms and biases.
    start = {"attn/lora_a": rng.standard_normal((5, 7)), "norm/scale": rng.standard_normal(7)}
    leaves = {name: jnp.float32(values) for name, values in start.items()}
    tensors = {name: torch.nn.Parameter(torch.tensor(leaves[name].tolist())) for name in start}
    groups = [
        {"params": [tensors["attn/lora_a"]], "weight_decay": weight_decay},
        {"params": [tensors["norm/scale"]], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=PEAK, betas=(0.8, 0.95), eps=1e-3)
    theirs = transformers.get_scheduler("cosine", adamw, 3, NUM_STEPS)
    params = {"attn": {"lora_a": leaves["attn/lora_a"]}, "norm": {"scale": leaves["norm/scale"]}}
    state = ours.init(params)
    for _ in range(NUM_STEPS):
        drawn = {name: rng.standard_normal(value.shape) for name, value in leaves.items()}
        grads = {
            "attn": {"lora_a": jnp.float32(drawn["attn/lora_a"])},
            "norm": {"scale": jnp.float32(drawn["norm/scale"])},
        }
        updates, state = ours.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for name, parameter in tensors.items():
            parameter.grad = torch.tensor(drawn[name], dtype=torch.float32)
        if max_grad_norm:
            torch.nn.utils.clip_grad_norm_(tensors.values(), max_grad_norm)
        adamw.step()
        theirs.step()
    moved = np.asarray(params["attn"]["lora_a"] - leaves["attn/lora_a"])
    expected = (
        tensors["attn/lora_a"].detach() - torch.tensor(leaves["attn/lora_a"].tolist())
    ).numpy()
    record_property("difference", np.abs(moved - expected).max())
    np.testing.assert_allclose(moved, expected, atol=1e-6)
    scale = tensors["norm/scale"].detach().numpy()
    np.testing.assert_allclose(params["norm"]["scale"], scale, atol=1e-6)
