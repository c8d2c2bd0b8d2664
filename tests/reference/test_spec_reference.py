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

import cases
import reference_runs
import reference_texts
from jax.sharding import Mesh
from reference_models import TinyModel
from reference_runs import TOLERANCE, Record

from jaxft.errors import WeightsError
from jaxft.models import spec as specs
from jaxft.models.network import base_network
from jaxft.models.spec import (
    Alibi,
    AlphaScaling,
    AttentionSpec,
    BlockSpec,
    ConvSpec,
    DynamicScaling,
    Learned,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    MLPSpec,
    ModelSpec,
    NormSpec,
    QueryScaling,
    Rope,
    Sinusoidal,
    YarnScaling,
)

pytestmark = pytest.mark.reference

MLP = MLPSpec("gated", 88, "silu", bias=False)  # that of the Llamas here
# By case, other values that move its logits.
OTHER_VALUES: dict[str, dict[type, dict[str, Any]]] = {
    "llama-rope-llama3": {
        ModelSpec: {
            "embed_scale": 1.5,
            "attn_scale": 0.4,
            "other_norms": (("final_norm", NormSpec("rms", 1e4, scale="plain", bias=False)),),
            "attn_softcap": 2.0,
            "norm": NormSpec("layer", 1e-2, scale="plain", bias=False),
            "norm_placement": "post",
            "parallel": "two_norms",
            "residual_scale": 0.5,
            "positions": Alibi(),
            "logit_scale": 0.5,
            "logit_softcap": 20.0,
            "blocks": (BlockSpec(AttentionSpec(9, None), MLP),) * 3,
        },
        NormSpec: {"kind": "layer", "eps": 2e-2, "scale": "offset"},
        BlockSpec: {"mixer": AttentionSpec(9, None)},
        AttentionSpec: {"window": 9, "rope": None},
        MLPSpec: {"activation": "gelu"},
        Rope: {"theta": 8_000.0, "rotary_dim": 8, "interleaved": True, "scaling": None},
        Llama3Scaling: {
            "factor": 6.0,
            "low_freq_factor": 1.5,
            "high_freq_factor": 5.0,
            "original_max_positions": 96,
        },
    },
    "llama-rope-linear": {LinearScaling: {"factor": 4.0}},
    "llama-rope-yarn": {
        YarnScaling: {
            "factor": 6.0,
            "beta_fast": 8.0,
            "beta_slow": 0.5,
            "original_max_positions": 96,
            "is_truncated": True,
            "magnitude": 1.0,
        }
    },
    "llama-rope-long": {
        LongScaling: {
            "short_factors": (1.5,) * 8,
            "long_factors": (1.5,) * 8,
            "magnitude": 1.0,
            "original_max_positions": 64,
        }
    },
    "ministral3": {
        ModelSpec: {"query_scaling": None},
        QueryScaling: {"beta": 0.2, "length": 20},
    },
    "hunyuan_v1_dense": {AlphaScaling: {"alpha": 5.0}, ModelSpec: {"qk_norm": "head"}},
    "llama-rope-dynamic": {DynamicScaling: {"factor": 6.0, "max_positions": 30}},
    "gpt2": {
        Learned: {"offset": 2},
        ModelSpec: {"norm_placement": "pre_residual"},
    },
}
# These say which tensors there are, and of what shape: other values do not fit the checkpoint.
MISFITS: dict[str, dict[type, dict[str, Any]]] = {
    "llama-rope-llama3": {
        ModelSpec: {
            "vocab_size": 113,
            "embed_dim": 65,
            "embed_norm": True,
            "model_dim": 65,
            "num_heads": 6,
            "num_kv_heads": 4,
            "head_dim": 24,
            "qk_norm": "head",
            "attn_gate": True,
            "norm_placement": "sandwich",
            "parallel": "one_norm",
            "final_norm": False,
            "positions": Learned(rows=256, offset=0),
            "qkv_bias": True,
            "out_bias": True,
            "tied_head": True,
            "head_bias": True,
            "blocks": (BlockSpec(AttentionSpec(None, None), MLP),) * 2,
        },
        BlockSpec: {"mlp": MLPSpec("plain", 88, "silu", bias=False)},
        MLPSpec: {"kind": "plain", "dim": 89, "bias": True},
        NormSpec: {"scale": "none", "bias": True},
    },
    "lfm2": {ConvSpec: {"width": 4, "bias": True}},
    "gpt2": {Learned: {"rows": 95}, NormSpec: {"bias": False}},
}
# Sines have no case of their own here: their offset is shown by the family that has them.
PARTS = [
    part
    for part in vars(specs).values()
    if dataclasses.is_dataclass(part) and part not in (Alibi, Sinusoidal)
]
FIELDS = [
    (case, part, field)
    for table in (OTHER_VALUES, MISFITS)
    for case, parts in table.items()
    for part, fields in parts.items()
    for field in fields
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

    text = reference_texts.draw((53, 35), "right", cases.VOCAB_SIZE, seed=11)
    original = functools.cache(lambda case: logits(case, tiny_model(case).spec))
    return lambda case, spec: reference_runs.difference(logits(case, spec), original(case), text)


def changed(node: Any, part: type, **fields: Any) -> Any:
    """Return a spec in which every part of one type has other values for `fields`."""
    if isinstance(node, tuple):
        return tuple(changed(each, part, **fields) for each in node)
    if not dataclasses.is_dataclass(node):
        return node
    if type(node) is part:
        return dataclasses.replace(node, **fields)
    inside = {
        field.name: changed(getattr(node, field.name), part, **fields)
        for field in dataclasses.fields(node)
    }
    return dataclasses.replace(node, **inside)


def test_every_field_of_every_part_has_another_value_here() -> None:
    listed = {(part, field) for _, part, field in FIELDS}
    assert listed == {(part, field.name) for part in PARTS for field in dataclasses.fields(part)}


@pytest.mark.parametrize(
    ("case", "part", "field"),
    dict.fromkeys(FIELDS),
    ids=lambda part: getattr(part, "__name__", part),
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
    values, misfits = (table.get(case, {}).get(part, {}) for table in (OTHER_VALUES, MISFITS))
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
    spec = changed(tiny_model(case).spec, Rope, rotary_dim=8)
    heads = {"num_heads": 8, "num_kv_heads": 4, "head_dim": 8}
    assert moved(case, changed(spec, ModelSpec, **heads)) > 100 * TOLERANCE


@pytest.mark.parametrize("field", ["qkv_bias", "out_bias", "bias", "tied_head"])
def test_weights_that_the_spec_does_not_want_do_not_load(
    field: str, tiny_model: Callable[..., TinyModel], one_device: Mesh
) -> None:
    names = {"bias": "llama-mlp-bias-gelu-tanh", "tied_head": "llama"}
    model = tiny_model(names.get(field, "llama-attention-bias-gelu"))
    part = model.spec.blocks[0].mlp if field == "bias" else model.spec
    spec = changed(model.spec, type(part), **{field: not getattr(part, field)})
    with pytest.raises(WeightsError):
        model.load(base_network(spec), one_device)
