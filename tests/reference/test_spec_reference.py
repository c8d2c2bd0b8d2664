"""Every field of a spec matters: changed alone, it moves the logits, or the weights do not fit.

A field that moved nothing would be one that the decoder forgot to read. Fields are taken from the
dataclasses themselves, so a new one fails here until it has a value to change to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import reference_runs
import reference_texts
from jax.sharding import Mesh
from reference_models import TinyModel
from reference_runs import TOLERANCE, Record

from jaxft.errors import WeightsError
from jaxft.models.network import base_network
from jaxft.models.spec import BlockSpec, ModelSpec, Rope

pytestmark = pytest.mark.reference

# The case whose rope has all of its fields in use.
CASE = "llama-rope-llama3"
PLAIN_ROPE = Rope(10_000.0, "default", 1.0, 1.0, 1.0, 0)

OTHER_VALUES: dict[type, dict[str, Any]] = {
    ModelSpec: {
        "activation": "gelu",
        "norm_eps": 2e-2,
        "rope": PLAIN_ROPE,
        "blocks": (BlockSpec(window=None), BlockSpec(window=9), BlockSpec(window=None)),
    },
    Rope: {
        "theta": 8_000.0,
        "scaling": "linear",
        "factor": 6.0,
        "low_freq_factor": 1.5,
        "high_freq_factor": 5.0,
        "original_max_positions": 96,
    },
    BlockSpec: {"window": 9},
}
# These say which tensors there are, and of what shape: other values do not fit the checkpoint.
MISFITS: dict[str, Any] = {
    "vocab_size": 113,
    "model_dim": 65,
    "num_heads": 6,
    "num_kv_heads": 4,
    "head_dim": 24,
    "mlp_dim": 89,
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
    "tied_head": True,
    "blocks": (BlockSpec(window=None),) * 2,
}
PARTS = (ModelSpec, Rope, BlockSpec)
FIELDS = [(part, field.name) for part in PARTS for field in dataclasses.fields(part)]


@pytest.fixture(scope="module")
def moved(tiny_model: Callable[..., TinyModel], one_device: Mesh) -> Callable[[ModelSpec], float]:
    """Return a function from another spec for the same weights to how far its logits differ."""
    model = tiny_model(CASE)
    text = reference_texts.draw((53, 53), "right", model.spec.vocab_size, seed=11)

    def logits(spec: ModelSpec) -> np.ndarray:
        network = base_network(spec)
        tree = model.load(network, one_device)
        return reference_runs.our_logits(network, tree, text, one_device)

    original = logits(model.spec)
    return lambda spec: reference_runs.difference(logits(spec), original, text)


def changed(spec: ModelSpec, part: type, **fields: Any) -> ModelSpec:
    if part is Rope:
        return dataclasses.replace(spec, rope=dataclasses.replace(spec.rope, **fields))
    if part is BlockSpec:
        blocks = tuple(dataclasses.replace(block, **fields) for block in spec.blocks)
        return dataclasses.replace(spec, blocks=blocks)
    return dataclasses.replace(spec, **fields)


def test_the_spec_is_made_of_the_parts_listed_here(tiny_model: Callable[..., TinyModel]) -> None:
    spec = tiny_model(CASE).spec
    values = [getattr(spec, field.name) for field in dataclasses.fields(spec)]
    flat = [item for value in values for item in (value if isinstance(value, tuple) else (value,))]
    assert {type(item) for item in flat if dataclasses.is_dataclass(item)} == set(PARTS[1:])


@pytest.mark.parametrize(
    ("part", "field"), FIELDS, ids=lambda part: getattr(part, "__name__", part)
)
def test_every_field_moves_the_logits_or_breaks_the_fit(
    part: type,
    field: str,
    moved: Callable[[ModelSpec], float],
    tiny_model: Callable[..., TinyModel],
    record_property: Record,
) -> None:
    spec = tiny_model(CASE).spec
    values, misfits = OTHER_VALUES[part], MISFITS if part is ModelSpec else {}
    assert field in values or field in misfits, f"{field} needs another value in this file"
    if field in values:
        distance = moved(changed(spec, part, **{field: values[field]}))
        record_property("difference", distance)
        assert distance > 100 * TOLERANCE
    if field in misfits:
        with pytest.raises(WeightsError):
            moved(changed(spec, part, **{field: misfits[field]}))


def test_heads_cut_otherwise_from_the_same_matrices_move_the_logits(
    moved: Callable[[ModelSpec], float], tiny_model: Callable[..., TinyModel]
) -> None:
    spec = tiny_model(CASE).spec
    heads = {"num_heads": 8, "num_kv_heads": 4, "head_dim": 8}
    assert moved(changed(spec, ModelSpec, **heads)) > 100 * TOLERANCE


@pytest.mark.parametrize("field", ["qkv_bias", "out_bias", "mlp_bias", "tied_head"])
def test_weights_that_the_spec_does_not_want_do_not_load(
    field: str, tiny_model: Callable[..., TinyModel], one_device: Mesh
) -> None:
    names = {"mlp_bias": "llama-mlp-bias-gelu-tanh", "tied_head": "llama"}
    model = tiny_model(names.get(field, "llama-attention-bias-gelu"))
    spec = dataclasses.replace(model.spec, **{field: not getattr(model.spec, field)})
    with pytest.raises(WeightsError):
        model.load(base_network(spec), one_device)
