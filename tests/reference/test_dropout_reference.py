"""Dropout in training: PEFT's module under our mask, output and gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import peft
import tiny
import torch
from flax import nnx
from jax.sharding import Mesh
from reference_runs import Record

from jaxft.models import dropout, forward, layers
from jaxft.models.attention.layout import WholeRows
from jaxft.models.network import OUTSIDE, Adapter

pytestmark = pytest.mark.reference

B, T, N, M, R, ALPHA, RATE = 2, 7, 64, 112, 3, 6, 0.25  # N and M are the tiny head's
TOLERANCE = 1e-5  # norm of the difference over the norm
TOKENS = dropout.token_seeds(0, 0, jnp.arange(B), T)

Leaves = dict[str, jax.Array]


class Masked(torch.nn.Module):
    """Dropout by a mask that is given."""

    def __init__(self, factors: np.ndarray) -> None:
        super().__init__()
        self.factors = torch.tensor(factors)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factors


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = torch.nn.Linear(N, M)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.q(x)


def of_a_layer(mesh: Mesh, adapter: Adapter, leaves: Leaves, x: jax.Array) -> jax.Array:
    """Apply a linear module of the second layer."""
    linear = layers.Linear("attn/q", (N, M), True, adapter, nnx.Rngs(0))
    for name, leaf in leaves.items():
        setattr(linear, name, nnx.Param(leaf))
    empty = jnp.zeros((B, T), jnp.int32)
    return linear(x, layers.Context(mesh, empty, {}, WholeRows(empty), TOKENS, None), 1)


def of_the_head(mesh: Mesh, adapter: Adapter, leaves: Leaves, x: jax.Array) -> jax.Array:
    """Apply the head, which stands apart from the layers."""
    spec = dataclasses.replace(tiny.SPEC, tied_head=False, head_bias=True)
    network = tiny.adapted(spec, head=True, dora=adapter.is_dora, drops=adapter.drops)
    of_head = {f"head/{name}": leaf for name, leaf in leaves.items()}
    return forward.head_logits(network, mesh, of_head, x, TOKENS)


@pytest.mark.parametrize("is_dora", [False, True], ids=["plain", "dora"])
@pytest.mark.parametrize(
    ("apply", "place"),
    [(of_a_layer, (1, "attn/q")), (of_the_head, (OUTSIDE, "head"))],
    ids=["layer", "head"],
)
def test_dropped_inputs_give_the_output_and_gradients_of_peft(
    apply: Callable[..., jax.Array],
    place: tuple[int, str],
    is_dora: bool,
    one_device: Mesh,
    record_property: Record,
) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=R, lora_alpha=ALPHA, lora_dropout=RATE, use_dora=is_dora, target_modules=["q"]
    )
    theirs = peft.get_peft_model(Model(), config).train()
    module = theirs.base_model.model.q
    seeds = dropout.module_seeds(TOKENS, *place)
    factors = np.asarray(dropout.apply(jnp.ones((B, T, N)), dropout.threshold(RATE), seeds))
    module.lora_dropout["default"] = Masked(factors)
    leaves = {
        "kernel": module.base_layer.weight,
        "bias": module.base_layer.bias,
        "lora_a": module.lora_A["default"].weight,
        "lora_b": module.lora_B["default"].weight,
    }
    leaves["lora_b"].data.normal_()
    if is_dora:
        leaves["lora_magnitude"] = module.lora_magnitude_vector["default"].weight
        leaves["lora_magnitude"].data.mul_(torch.rand(M) + 0.5)
    x, dy = torch.randn(B, T, N, requires_grad=True), torch.randn(B, T, M)
    expected = theirs(x)
    expected.backward(dy)

    def turned(name: str, tensor: torch.Tensor | None) -> jax.Array:
        assert tensor is not None
        values = tensor.detach().numpy()
        return jnp.asarray(values.T if name in ("kernel", "lora_b") else values)

    ours = {name: turned(name, leaf) for name, leaf in leaves.items()}
    numbers = {
        "lora_scaling": jnp.float32(ALPHA / R),
        "lora_dropout": jnp.asarray(dropout.threshold(RATE)),
    }
    adapter = Adapter((R,), bias=False, subtracts_start=False, is_dora=is_dora, drops=True)

    def apply_ours(x: jax.Array, trained: Leaves) -> jax.Array:
        return apply(one_device, adapter, {**ours, **trained, **numbers}, x)

    trained = {name: leaf for name, leaf in ours.items() if name.startswith("lora_")}
    found, pull = jax.vjp(apply_ours, jnp.asarray(x.detach().numpy()), trained)
    dx, grads = pull(jnp.asarray(dy.numpy()))
    pairs = [(found, expected.detach().numpy()), (dx, x.grad)]
    pairs += [(grads[name], turned(name, leaves[name].grad)) for name in trained]
    distances = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in map(_arrays, pairs)]
    record_property("difference", max(distances))
    assert max(distances) < TOLERANCE


def _arrays(pair: tuple[object, object]) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(pair[0]), np.asarray(pair[1])
