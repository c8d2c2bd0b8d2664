"""Every field of a spec matters: changed alone, it moves the logits, or the weights do not fit.

A field that moved nothing would be one that the decoder forgot to read. Fields are taken from the
dataclasses themselves, so a new one fails here until it has a value to change to.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import reference_models
import reference_runs
import reference_texts
from jax.sharding import Mesh
from reference_models import TinyModel
from reference_runs import TOLERANCE, Record

from jaxft.errors import WeightsError
from jaxft.models.network import base_network
from jaxft.models.spec import BlockSpec, Learned, ModelSpec, Rope

pytestmark = pytest.mark.reference

PLAIN_ROPE = Rope(10_000.0, "default", 1.0, 1.0, 1.0, 0)
WINDOWS = (BlockSpec(window=None), BlockSpec(window=9), BlockSpec(window=None))

# By case, other values that move its logits. The first case's rope has all of its fields in use.
OTHER_VALUES: dict[str, dict[type, dict[str, Any]]] = {
    "llama-rope-llama3": {
        ModelSpec: {
            "activation": "gelu",
            "norm_eps": 2e-2,
            "norm_placement": "post",
            "positions": PLAIN_ROPE,
            "blocks": WINDOWS,
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
    },
    "gpt2": {
        ModelSpec: {
            "activation": "silu",
            "norm_eps": 2e-2,
            "norm_placement": "post",
            "blocks": WINDOWS,
        },
        Learned: {"offset": 2},
        BlockSpec: {"window": 9},
    },
}
# These say which tensors there are, and of what shape: other values do not fit the checkpoint.
SIZES: dict[str, Any] = {
    "vocab_size": 113,
    "embed_dim": 65,
    "model_dim": 65,
    "num_heads": 6,
    "head_dim": 24,
    "mlp_dim": 89,
    "final_norm": False,
    "blocks": (BlockSpec(window=None),) * 2,
}
MISFITS: dict[str, dict[type, dict[str, Any]]] = {
    "llama-rope-llama3": {
        ModelSpec: SIZES
        | {
            "num_kv_heads": 4,
            "mlp": "plain",
            "norm": "layer",
            "positions": Learned(rows=256, offset=0),
            "qkv_bias": True,
            "out_bias": True,
            "mlp_bias": True,
            "tied_head": True,
        },
    },
    "gpt2": {
        ModelSpec: SIZES
        | {
            "num_kv_heads": 2,
            "mlp": "gated",
            "norm": "rms",
            "positions": PLAIN_ROPE,
            "qkv_bias": False,
            "out_bias": False,
            "mlp_bias": False,
            "tied_head": False,
        },
        Learned: {"rows": 95},
    },
}
PARTS = (ModelSpec, Rope, Learned, BlockSpec)
FIELDS = [
    (case, part, field.name)
    for case, parts in OTHER_VALUES.items()
    for part in parts
    for field in dataclasses.fields(part)
]


@pytest.fixture(scope="module")
def moved(
    tiny_model: Callable[..., TinyModel], one_device: Mesh
) -> Callable[[str, ModelSpec], float]:
    """Return a function from a case, and another spec for it, to how far its logits differ."""

    def logits(case: str, spec: ModelSpec) -> np.ndarray:
        network = base_network(spec)
        tree = tiny_model(case).load(network, one_device)
        return reference_runs.our_logits(network, tree, text, one_device)

    text = reference_texts.draw((53, 53), "right", reference_models.VOCAB_SIZE, seed=11)
    original = functools.cache(lambda case: logits(case, tiny_model(case).spec))
    return lambda case, spec: reference_runs.difference(logits(case, spec), original(case), text)


def changed(spec: ModelSpec, part: type, **fields: Any) -> ModelSpec:
    if part in (Rope, Learned):
        return dataclasses.replace(spec, positions=dataclasses.replace(spec.positions, **fields))
    if part is BlockSpec:
        blocks = tuple(dataclasses.replace(block, **fields) for block in spec.blocks)
        return dataclasses.replace(spec, blocks=blocks)
    return dataclasses.replace(spec, **fields)


def test_the_specs_are_made_of_the_parts_listed_here(tiny_model: Callable[..., TinyModel]) -> None:
    found = set()
    for case in OTHER_VALUES:
        spec = tiny_model(case).spec
        values = [getattr(spec, field.name) for field in dataclasses.fields(spec)]
        flat = [each for value in values for each in (value if type(value) is tuple else (value,))]
        found |= {type(each) for each in flat if dataclasses.is_dataclass(each)}
    assert found == set(PARTS[1:])
    assert {part for _, part, _ in FIELDS} == set(PARTS)


@pytest.mark.parametrize(
    ("case", "part", "field"), FIELDS, ids=lambda part: getattr(part, "__name__", part)
)
def test_every_field_moves_the_logits_or_breaks_the_fit(
    case: str,
    part: type,
    field: str,
    moved: Callable[[str, ModelSpec], float],
    tiny_model: Callable[..., TinyModel],
    record_property: Record,
) -> None:
    spec = tiny_model(case).spec
    values, misfits = (table[case].get(part, {}) for table in (OTHER_VALUES, MISFITS))
    assert field in values or field in misfits, f"{field} needs another value in this file"
    if field in values:
        distance = moved(case, changed(spec, part, **{field: values[field]}))
        record_property("moved", distance)
        assert distance > 100 * TOLERANCE
    if field in misfits:
        with pytest.raises(WeightsError):
            moved(case, changed(spec, part, **{field: misfits[field]}))


def test_heads_cut_otherwise_from_the_same_matrices_move_the_logits(
    moved: Callable[[str, ModelSpec], float], tiny_model: Callable[..., TinyModel]
) -> None:
    case = "llama-rope-llama3"
    spec = tiny_model(case).spec
    heads = {"num_heads": 8, "num_kv_heads": 4, "head_dim": 8}
    assert moved(case, changed(spec, ModelSpec, **heads)) > 100 * TOLERANCE


@pytest.mark.parametrize("field", ["qkv_bias", "out_bias", "mlp_bias", "tied_head"])
def test_weights_that_the_spec_does_not_want_do_not_load(
    field: str, tiny_model: Callable[..., TinyModel], one_device: Mesh
) -> None:
    names = {"mlp_bias": "llama-mlp-bias-gelu-tanh", "tied_head": "llama"}
    model = tiny_model(names.get(field, "llama-attention-bias-gelu"))
    spec = dataclasses.replace(model.spec, **{field: not getattr(model.spec, field)})
    with pytest.raises(WeightsError):
        model.load(base_network(spec), one_device)
