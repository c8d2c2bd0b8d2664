"""Logits held to transformers', for every feature, under every padding, stored and split anyhow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import cases
import jax
import jax.numpy as jnp
import reference_features
import reference_models
import reference_runs
import reference_texts
import torch
from jax.sharding import Mesh
from reference_models import TinyModel
from reference_runs import TOLERANCE, Record

from jaxft import tree as trees

pytestmark = pytest.mark.reference

PADDED, WHOLE = reference_texts.PADDED, (53, 53, 53, 53)


# Padded on either side, and not at all.
TEXTS = [
    reference_texts.draw(lengths, side, cases.VOCAB_SIZE, seed=7)
    for side, lengths in (("left", PADDED), ("right", PADDED), ("right", WHOLE))
]


def furthest(model: TinyModel, tree: trees.Tree, mesh: Mesh) -> float:
    """Return the largest difference from transformers' logits of any of the texts."""
    return max(
        reference_runs.difference(
            reference_runs.our_logits(model.network, tree, text, mesh),
            reference_runs.torch_logits(model.torch_model, text),
            text,
        )
        for text in TEXTS
    )


@pytest.mark.parametrize("name", cases.CASES)
def test_logits_equal_transformers(
    name: str,
    tiny_model: Callable[..., TinyModel],
    one_device: Mesh,
    record_property: Record,
) -> None:
    model = tiny_model(name)
    tree = model.load(model.network, one_device)
    distance = furthest(model, tree, one_device)
    record_property("family", model.family.model_type)
    record_property("format", "safetensors")
    record_property("difference", distance)
    record_property("features", "; ".join(reference_features.features(model.spec)))
    assert distance < TOLERANCE


@pytest.mark.parametrize("name", ["llama-tied", "opt-350m", *reference_features.STANDING])
def test_logits_equal_transformers_on_four_devices(
    name: str,
    tiny_model: Callable[..., TinyModel],
    four_devices: Mesh,
    record_property: Record,
) -> None:
    model = tiny_model(name)
    text = reference_texts.draw(PADDED, "left", cases.VOCAB_SIZE, seed=8)
    tree = model.load(model.network, four_devices)
    assert not tree["groups"]["0"]["0"]["mlp"]["up"]["kernel"].sharding.is_fully_replicated
    ours = reference_runs.our_logits(model.network, tree, text, four_devices)
    theirs = reference_runs.torch_logits(model.torch_model, text)
    distance = reference_runs.difference(ours, theirs, text)
    record_property("difference", distance)
    assert distance < TOLERANCE


def test_a_sharded_checkpoint_loads_bit_equal_to_a_single_file(
    tmp_path: Path, tiny_model: Callable[..., TinyModel], one_device: Mesh
) -> None:
    single = tiny_model("llama")
    shards = reference_models.make("llama", tmp_path, shard_bytes=reference_models.SHARD_BYTES)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    first, second = (model.load(model.network, one_device) for model in (single, shards))
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.fixture(scope="module")
def narrow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A model stored in bfloat16; torch's is the same rounded weights computed in float32."""
    folder = tmp_path_factory.mktemp("narrow")
    return reference_models.make(request.param, folder, dtype=torch.bfloat16)


@pytest.mark.parametrize("narrow", reference_features.STANDING, indirect=True)
def test_bfloat16_weights_computed_in_float32_equal_transformers(
    narrow: TinyModel, one_device: Mesh, record_property: Record
) -> None:
    stored = {info.dtype for info in narrow.checkpoint().infos().values()}
    assert stored == {np.dtype(jnp.bfloat16)}
    tree = narrow.load(narrow.network, one_device)
    distance = furthest(narrow, tree, one_device)
    record_property("difference", distance)
    assert distance < TOLERANCE


@pytest.mark.parametrize("narrow", reference_features.STANDING, indirect=True)
def test_bfloat16_computation_errs_no_more_than_transformers_own(
    narrow: TinyModel, one_device: Mesh, record_property: Record
) -> None:
    """The bound is torch's error at the same precision, both against float32 on these weights.

    Both round every activation to 8 bits, in places that differ (ours keeps norms, softmax and
    rotation in float32 throughout), so the errors are alike in size and not in value: half as
    much again is allowed, on the root mean square over all logits.
    """
    text = reference_texts.draw(PADDED, "left", cases.VOCAB_SIZE, seed=9)
    exact = reference_runs.torch_logits(narrow.torch_model, text)
    rounded = reference_models.open_torch(narrow.folder, torch.bfloat16)
    theirs = reference_runs.torch_logits(rounded, text)
    tree = narrow.load(narrow.network, one_device, "bfloat16")
    ours = reference_runs.our_logits(narrow.network, tree, text, one_device, "bfloat16")
    seen = text.is_token
    our_error = reference_runs.norm_difference(ours[seen], exact[seen])
    their_error = reference_runs.norm_difference(theirs[seen], exact[seen])
    record_property("errors", (our_error, their_error))
    assert 2**-9 < our_error < 1.5 * their_error
