"""The schedules held to transformers', and AdamW with clipping and decay to torch's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import peft
import peft.optimizers
import reference_adapters
import torch
import transformers
from jax.sharding import Mesh
from reference_models import TinyModel
from reference_runs import Record

from jaxft.adapters import peft_format
from jaxft.config import TrainConfig
from jaxft.training import optimizer
from jaxft.training import state as states

pytestmark = pytest.mark.reference

Arrays = dict[str, np.ndarray]
NUM_STEPS = 40
PEAK = 3e-4


def config(**fields: Any) -> TrainConfig:
    return TrainConfig(output_dir=Path("unused"), **{"learning_rate": PEAK, **fields})


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
    for _ in range(NUM_STEPS):
        expected.append(theirs.get_last_lr()[0])
        sgd.step()
        theirs.step()
    hyper = optimizer.hyper_of(config(lr_scheduler_type=name, **warmup), NUM_STEPS)
    rates = [float(optimizer.learning_rate(hyper, jnp.int32(step))) for step in range(NUM_STEPS)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6, atol=PEAK * 1e-6)


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0], ids=["free", "clipped"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3], ids=["plain", "decayed"])
def test_updates_equal_those_of_torch(
    weight_decay: float, max_grad_norm: float, record_property: Record
) -> None:
    run = config(
        lr_scheduler_type="cosine",
        warmup_steps=3.0,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        adam_beta1=0.8,
        adam_beta2=0.95,
        adam_epsilon=1e-3,
    )
    rng = np.random.default_rng(0)
    # Small, so that rounding the parameters themselves does not hide a difference.
    start = {"lora_a": 0.05 * rng.standard_normal((5, 7)), "scale": 0.05 * rng.standard_normal(3)}
    gradients = [
        {name: rng.standard_normal(values.shape) for name, values in start.items()}
        for _ in range(NUM_STEPS)
    ]
    ours, theirs = updated_by_us(run, start, gradients), updated_by_torch(run, start, gradients)
    distance = max(np.abs(ours[name] - theirs[name]).max() for name in start)
    record_property("difference", distance)
    assert distance < 1e-4 * min(np.abs(theirs[name] - start[name]).max() for name in start)


class Adapted(torch.nn.Module):
    """What PEFT trains of a module, under PEFT's names: A, B, a bias and DoRA's magnitudes."""

    def __init__(self) -> None:
        super().__init__()
        self.lora_A = torch.nn.ModuleDict({"default": torch.nn.Linear(7, 5, bias=False)})
        self.lora_B = torch.nn.ModuleDict({"default": torch.nn.Linear(5, 6)})
        self.lora_magnitude_vector = torch.nn.ParameterDict({"default": torch.rand(6)})


def test_lora_plus_is_that_of_peft(record_property: Record) -> None:
    ratio, model = 8.0, Adapted()
    run = config(lr_scheduler_type="constant", max_grad_norm=0.0, loraplus_lr_ratio=ratio)
    of = {"lora_a": "lora_A.default.weight", "lora_b": "lora_B.default.weight"}
    of |= {"lora_bias": "lora_B.default.bias", "lora_magnitude": "lora_magnitude_vector.default"}
    theirs = dict(model.named_parameters())
    start = {name: theirs[full].detach().numpy().copy() for name, full in of.items()}
    rng = np.random.default_rng(1)
    gradients = [
        {name: rng.standard_normal(values.shape) for name, values in start.items()}
        for _ in range(5)
    ]
    adam = {"lr": run.learning_rate, "eps": run.adam_epsilon}
    adamw = peft.optimizers.create_loraplus_optimizer(
        model, torch.optim.AdamW, loraplus_lr_ratio=ratio, **adam
    )
    for step in gradients:
        for name, full in of.items():
            theirs[full].grad = torch.tensor(step[name], dtype=torch.float32)
        adamw.step()
    ours = updated_by_us(run, start, gradients)
    moved = {name: theirs[full].detach().numpy() - start[name] for name, full in of.items()}
    for name in of:
        np.testing.assert_allclose(ours[name] - start[name], moved[name], rtol=1e-3, atol=1e-7)
    assert np.abs(moved["lora_b"]).mean() > 5 * np.abs(moved["lora_a"]).mean()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_lora_plus_is_as_fast_as_pefts_on_embeddings_and_rows(
    tiny_model: Callable[..., TinyModel], one_device: Mesh
) -> None:
    model, rate, ratio = tiny_model("llama"), 1e-3, 8.0
    chosen = {
        "trainable_token_indices": {"lm_head": [3]},
        "target_modules": ["embed_tokens", "q_proj"],
    }
    theirs = reference_adapters.peft_on(model, chosen, seed=None)
    adamw = peft.optimizers.create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=rate, loraplus_lr_ratio=ratio
    )
    rates = {id(each): group["lr"] for group in adamw.param_groups for each in group["params"]}
    expected = {
        reference_adapters.saved_name(name): rates[id(each)]
        for name, each in theirs.named_parameters()
        if each.requires_grad
    }
    ours = reference_adapters.ours_on(model, chosen, one_device, seed=1)
    run = config(learning_rate=rate, lr_scheduler_type="constant", loraplus_lr_ratio=ratio)
    adamw = states.optimizer_of(optimizer.hyper_of(run, NUM_STEPS), optimizer.make_optimizer)
    leaves = jax.tree.map(jnp.asarray, ours.adapters)
    # Adam's first step goes as far as the rate, whatever the gradient.
    steps, _ = adamw.update(jax.tree.map(jnp.ones_like, leaves), adamw.init(leaves), leaves)
    moved = peft_format.to_tensors(steps, model.family, ours.network)
    assert moved.keys() == expected.keys()
    for name, step in moved.items():
        np.testing.assert_allclose(np.abs(step), expected[name], rtol=0.01)


def updated_by_us(run: TrainConfig, start: Arrays, gradients: list[Arrays]) -> Arrays:
    adamw = states.optimizer_of(optimizer.hyper_of(run, NUM_STEPS), optimizer.make_optimizer)
    params = {"norm": {name: jnp.float32(values) for name, values in start.items()}}
    state, update = adamw.init(params), jax.jit(adamw.update)
    for step in gradients:
        grads = {"norm": {name: jnp.float32(values) for name, values in step.items()}}
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return {name: np.asarray(values) for name, values in params["norm"].items()}


def updated_by_torch(run: TrainConfig, start: Arrays, gradients: list[Arrays]) -> Arrays:
    params = {
        name: torch.nn.Parameter(torch.tensor(values, dtype=torch.float32))
        for name, values in start.items()
    }
    # As transformers' Trainer has it: the scale of a norm is not decayed.
    groups = [
        {"params": [params["lora_a"]], "weight_decay": run.weight_decay},
        {"params": [params["scale"]], "weight_decay": 0.0},
    ]
    betas = (run.adam_beta1, run.adam_beta2)
    adamw = torch.optim.AdamW(groups, lr=run.learning_rate, betas=betas, eps=run.adam_epsilon)
    schedule = transformers.get_scheduler("cosine", adamw, int(run.warmup_steps), NUM_STEPS)
    for step in gradients:
        for name, parameter in params.items():
            parameter.grad = torch.tensor(step[name], dtype=torch.float32)
        if run.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(params.values(), run.max_grad_norm)
        adamw.step()
        schedule.step()
    return {name: parameter.detach().numpy() for name, parameter in params.items()}
