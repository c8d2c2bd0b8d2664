"""The optimizer and its schedule, from optax, under TrainingArguments' names.

The schedules are transformers' (`optimization.py: get_scheduler`): step k, counted from 0, runs
at the rate of k. AdamW's numbers are all passed: optax's own default decays weights by 1e-4.
"""

import re
from typing import Any

import jax.numpy as jnp
import optax

from jaxft import tree as trees
from jaxft.config import TrainConfig

_NOT_DECAYED = re.compile(r".*/(bias|scale|lora_bias|lora_magnitude)")
# What LoRA+ trains faster: all that is not the A of an adapter, or a matrix of the model's own.
# Source: `peft/optimizers/loraplus.py: create_loraplus_optimizer`.
_FASTER = re.compile(r".*/(lora_b|lora_bias|lora_magnitude|bias|scale)")
# And the rate of both sides of an adapter on an embedding, its `loraplus_lr_embedding`.
_OF_TABLE, _TABLE_RATE = re.compile(r"(embed|positions)/lora_(a|b)"), 1e-6


def make_schedule(config: TrainConfig, num_steps: int) -> optax.Schedule:
    """Return the learning rate as a function of the step.

    Args:
        config: `learning_rate`, `lr_scheduler_type` and the warm-up.
        num_steps: Length of the whole run, where linear and cosine reach 0.
    """
    peak, warmup = config.learning_rate, config.warmup(num_steps)
    decay = max(num_steps - warmup, 1)

    def schedule(step: Any) -> Any:
        done = jnp.clip((step - warmup) / decay, 0.0, 1.0)
        shape = {
            "linear": 1.0 - done,
            "cosine": 0.5 * (1.0 + jnp.cos(jnp.pi * done)),
            "constant": jnp.ones_like(done),
            "constant_with_warmup": jnp.ones_like(done),
        }[config.lr_scheduler_type]
        if config.lr_scheduler_type == "constant":
            return peak * shape
        return peak * jnp.where(step < warmup, step / max(warmup, 1), shape)

    return schedule


def make_optimizer(config: TrainConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return AdamW behind clipping by global norm, with another rate for B if LoRA+ is asked for.

    Norms and biases are not decayed, nor are DoRA's magnitudes, though transformers' Trainer does:
    decay would draw them to 0, where a module is switched off, not to where it is the base's.
    """
    adamw = optax.adamw(
        schedule,
        b1=config.adam_beta1,
        b2=config.adam_beta2,
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
        mask=_decay_mask,
    )
    parts = [adamw]
    if config.max_grad_norm:
        parts = [optax.clip_by_global_norm(config.max_grad_norm), *parts]
    if config.loraplus_lr_ratio is not None:
        parts = [*parts, _faster(config.loraplus_lr_ratio, config.learning_rate)]
    return optax.chain(*parts) if len(parts) > 1 else adamw


def _faster(ratio: float, peak: float) -> optax.GradientTransformation:
    """Multiply the updates of B: LoRA+ (Hayou et al. 2024), `lr_B = ratio * lr_A`."""

    def scale(path: str, update: Any) -> Any:
        if _OF_TABLE.fullmatch(path):
            return update * (_TABLE_RATE / peak)
        return update * ratio if _FASTER.fullmatch(path) else update

    return optax.stateless(lambda updates, params: trees.map_with_path(scale, updates))


def _decay_mask(params: trees.Tree) -> trees.Tree:
    return trees.map_with_path(lambda path, _: not _NOT_DECAYED.fullmatch(path), params)
