"""The optimizer and its schedule, built from optax, with the names of TrainingArguments.

Their numbers are in a `Hyper`: scalars on the device that the compiled step takes as operands. So
another learning rate needs no compilation, and each member of a sweep may have its own.

The schedules are those of transformers (`optimization.py: get_scheduler`): step k, counted from 0,
uses the rate of k. All numbers of AdamW are passed, since optax decays weights by 1e-4 by default.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxft import tree as trees
from jaxft.config import TrainConfig
from jaxft.leaves.address import Address
from jaxft.models.network import EMBED, POSITIONS

# The learning rate of LoRA+ for A and B of an adapter on a table, its `loraplus_lr_embedding`.
# Source: `peft/optimizers/loraplus.py: create_loraplus_optimizer`.
_TABLE_RATE = 1e-6


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "learning_rate",
        "warmup_steps",
        "num_steps",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "max_grad_norm",
        "loraplus_lr_ratio",
        "adapters",
    ],
    meta_fields=["lr_scheduler_type"],
)
@dataclasses.dataclass(frozen=True)
class Hyper:
    """The numbers of a run, each a scalar; one that is `None` is not part of the program.

    Attributes:
        learning_rate: The highest rate of the schedule, float32.
        warmup_steps: The number of steps of linear warm-up, int32.
        num_steps: The number of steps of the whole run, at which linear and cosine schedules reach
            0, int32.
        weight_decay: The weight decay of AdamW, float32.
        adam_beta1: The decay rate of the first moment, float32.
        adam_beta2: The decay rate of the second moment, float32.
        adam_epsilon: The number added to the root of the second moment, float32.
        max_grad_norm: The norm to which gradients are clipped, float32; `None` for no clipping.
        loraplus_lr_ratio: The ratio of B's learning rate to A's, float32; `None` without LoRA+.
        lr_scheduler_type: The shape of the schedule, static: "linear", "cosine" and so on.
        adapters: The scaling and dropout of the adapters, leaves of the model (`lora/numbers.py`),
            unless they are among the frozen leaves.
    """

    learning_rate: Any
    warmup_steps: Any
    num_steps: Any
    weight_decay: Any
    adam_beta1: Any
    adam_beta2: Any
    adam_epsilon: Any
    max_grad_norm: Any
    loraplus_lr_ratio: Any
    lr_scheduler_type: str
    adapters: trees.Tree = dataclasses.field(default_factory=dict)


# (numbers, learning rate by step) -> optimizer
MakeOptimizer = Callable[[Hyper, optax.Schedule], optax.GradientTransformation]


def hyper_of(config: TrainConfig, num_steps: int) -> Hyper:
    """Return the numbers for a run of `num_steps` steps with the options of a recipe."""
    ratio = config.loraplus_lr_ratio
    return Hyper(
        learning_rate=np.float32(config.learning_rate),
        warmup_steps=np.int32(config.warmup(num_steps)),
        num_steps=np.int32(num_steps),
        weight_decay=np.float32(config.weight_decay),
        adam_beta1=np.float32(config.adam_beta1),
        adam_beta2=np.float32(config.adam_beta2),
        adam_epsilon=np.float32(config.adam_epsilon),
        max_grad_norm=np.float32(config.max_grad_norm) if config.max_grad_norm else None,
        loraplus_lr_ratio=None if ratio is None else np.float32(ratio),
        lr_scheduler_type=config.lr_scheduler_type,
    )


def learning_rate(hyper: Hyper, step: Any) -> jax.Array:
    """Return the learning rate of a step, counted from 0, float32."""
    warmup = hyper.warmup_steps
    decay = jnp.maximum(hyper.num_steps - warmup, 1)
    done = jnp.clip((step - warmup) / decay, 0.0, 1.0)
    shape = {
        "linear": 1.0 - done,
        "cosine": 0.5 * (1.0 + jnp.cos(jnp.pi * done)),
        "constant": jnp.ones_like(done),
        "constant_with_warmup": jnp.ones_like(done),
    }[hyper.lr_scheduler_type]
    if hyper.lr_scheduler_type == "constant":
        return hyper.learning_rate * shape
    rising = step / jnp.maximum(warmup, 1)
    return hyper.learning_rate * jnp.where(step < warmup, rising, shape)


def make_optimizer(hyper: Hyper, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return AdamW after clipping by global norm; with LoRA+, B has its own learning rate.

    Weight decay does not apply to norms, biases and DoRA's magnitudes. Transformers' Trainer does
    decay the magnitudes, but that pulls them to 0, which switches a module off, and not to the
    magnitudes of the base.

    Args:
        hyper: The numbers, which may be traced.
        schedule: The learning rate by the number of updates made.
    """
    parts = [
        optax.adamw(
            schedule,
            b1=hyper.adam_beta1,
            b2=hyper.adam_beta2,
            eps=hyper.adam_epsilon,
            weight_decay=hyper.weight_decay,
            mask=_decay_mask,
        )
    ]
    if hyper.max_grad_norm is not None:
        parts = [optax.clip_by_global_norm(hyper.max_grad_norm), *parts]
    if hyper.loraplus_lr_ratio is not None:
        parts = [*parts, _faster(hyper.loraplus_lr_ratio, hyper.learning_rate)]
    return optax.chain(*parts) if len(parts) > 1 else parts[0]


def _faster(ratio: Any, peak: Any) -> optax.GradientTransformation:
    """Scale the updates of B, as in LoRA+ (Hayou et al. 2024): `lr_B = ratio * lr_A`."""

    def scale(path: str, update: Any) -> Any:
        address = Address.parse(path)
        if address.module in (EMBED, POSITIONS) and address.part in ("lora_a", "lora_b"):
            return update * (_TABLE_RATE / peak)
        return update * ratio if address.is_faster else update

    return optax.stateless(lambda updates, params: trees.map_with_path(scale, updates))


def _decay_mask(params: trees.Tree) -> trees.Tree:
    return trees.map_with_path(lambda path, _: Address.parse(path).is_decayed, params)
