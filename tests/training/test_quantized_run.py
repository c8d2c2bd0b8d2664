"""QLoRA: a run over a quantized base, from recipe to an adapter that fits the original."""

from __future__ import annotations

import json

import numpy as np
import pytest
import runs
import safetensors.numpy

from jaxft import tree as trees
from jaxft.errors import ConfigError
from jaxft.models.quantized import Quantized

pytestmark = pytest.mark.slow


@pytest.fixture
def run(recipe, tmp_path):
    """A short run with an nf4 base."""
    place = tmp_path / "run"
    words = [f"train.output_dir={place}", "model.quantization=nf4"]
    assert runs.status("train", str(recipe), *words, "train.max_steps=3") == 0
    return place


def first_loss(place):
    return json.loads((place / "metrics.jsonl").read_text().splitlines()[0])["eval_loss"]


def test_the_quantization_is_active_and_no_base_is_in_checkpoint_or_adapter(run, straight):
    assert first_loss(run) != first_loss(straight[0])
    assert first_loss(run) == pytest.approx(first_loss(straight[0]), rel=0.02)
    tensors = safetensors.numpy.load_file(run / "adapter" / "adapter_model.safetensors")
    assert all("lora_" in name for name in tensors)
    saved = sum(path.stat().st_size for path in (run / "checkpoints").rglob("*") if path.is_file())
    trained = sum(tensor.nbytes for tensor in tensors.values())
    assert saved < 2 * (3 * 3 * trained + 50_000)  # at most 2 kept: weights, two moments; JSON


def test_matrices_of_layers_are_quantized_and_nothing_else(tree_of, leaves):
    tree = trees.flatten(tree_of("model.quantization=int8"))
    quantized = {path for path, leaf in tree.items() if isinstance(leaf, Quantized)}
    assert quantized == {
        f"groups/0/0/{module}/kernel"
        for module in ("attn/q", "attn/k", "attn/v", "attn/o", "mlp/gate", "mlp/up", "mlp/down")
    }
    original = trees.flatten(leaves)
    for path, leaf in tree.items():
        if path not in quantized:
            np.testing.assert_array_equal(leaf, original[path])
        else:
            assert leaf.shape == original[path].shape


def test_checkpoints_of_another_quantization_are_refused(plan_of, run):
    with pytest.raises(Exception, match="quantization"):
        plan_of(f"train.output_dir={run}", "train.max_steps=3")


@pytest.mark.parametrize(
    "word", ["tuning=full", "tuning={method: freeze, layers: [1]}", "mesh.fsdp=2", "mesh.tensor=2"]
)
def test_what_cannot_be_quantized_is_refused(plan_of, word):
    no_adapter = ["lora.r=8", "lora.lora_alpha=8", "lora.lora_dropout=0"]
    with pytest.raises(ConfigError, match=r"model\.quantization is nf4"):
        plan_of("model.quantization=nf4", *no_adapter, word)
