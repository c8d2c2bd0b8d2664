"""DoRA in training, with dropout: PEFT's module under our mask, output and gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import peft
import torch
from flax import nnx
from jax.sharding import Mesh
from reference_runs import Record

from jaxft.models import dropout, layers
from jaxft.models.attention.layout import WholeRows
from jaxft.models.network import Adapter

pytestmark = pytest.mark.reference

B, T, N, M, R, ALPHA, RATE = 2, 7, 12, 20, 3, 6, 0.25
TOLERANCE = 1e-5  # norm of the difference over the norm


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


def test_dropped_inputs_give_the_output_and_gradients_of_peft(
    one_device: Mesh, record_property: Record
) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=R, lora_alpha=ALPHA, lora_dropout=RATE, use_dora=True, target_modules=["q"]
    )
    theirs = peft.get_peft_model(Model(), config).train()
    module = theirs.base_model.model.q
    tokens = dropout.token_seeds(0, 0, jnp.arange(B), T)
    seeds = dropout.module_seeds(tokens, 1, "attn/q")
    factors = np.asarray(dropout.apply(jnp.ones((B, T, N)), dropout.threshold(RATE), seeds))
    module.lora_dropout["default"] = Masked(factors)
    leaves = {
        "kernel": module.base_layer.weight,
        "bias": module.base_layer.bias,
        "lora_a": module.lora_A["default"].weight,
        "lora_b": module.lora_B["default"].weight,
        "lora_magnitude": module.lora_magnitude_vector["default"].weight,
    }
    leaves["lora_b"].data.normal_()
    leaves["lora_magnitude"].data.mul_(torch.rand(M) + 0.5)
    x, dy = torch.randn(B, T, N, requires_grad=True), torch.randn(B, T, M)
    expected = theirs(x)
    expected.backward(dy)

    def turned(name: str, tensor: torch.Tensor | None) -> jax.Array:
        assert tensor is not None
        values = tensor.detach().numpy()
        return jnp.asarray(values.T if name in ("kernel", "lora_b") else values)

    ours = {name: turned(name, leaf) for name, leaf in leaves.items()}

    def apply(x: jax.Array, trained: dict[str, jax.Array]) -> jax.Array:
        adapter = Adapter((R,), bias=False, subtracts_start=False, is_dora=True, drops=True)
        linear = layers.Linear("attn/q", (N, M), True, adapter, nnx.Rngs(0))
        numbers = {
            "lora_scaling": jnp.float32(ALPHA / R),
            "lora_dropout": jnp.asarray(dropout.threshold(RATE)),
        }
        for name, leaf in {**ours, **trained, **numbers}.items():
            setattr(linear, name, nnx.Param(leaf))
        empty = jnp.zeros((B, T), jnp.int32)
        return linear(x, layers.Context(one_device, empty, {}, WholeRows(empty), tokens, None), 1)

    trained = {name: leaf for name, leaf in ours.items() if name.startswith("lora_")}
    found, pull = jax.vjp(apply, jnp.asarray(x.detach().numpy()), trained)
    dx, grads = pull(jnp.asarray(dy.numpy()))
    pairs = [(found, expected.detach().numpy()), (dx, x.grad)]
    pairs += [(grads[name], turned(name, leaves[name].grad)) for name in trained]
    distances = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in map(_arrays, pairs)]
    record_property("difference", max(distances))
    assert max(distances) < TOLERANCE


def _arrays(pair: tuple[object, object]) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(pair[0]), np.asarray(pair[1])
