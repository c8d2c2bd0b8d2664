"""DoRA by the command line: trained, gone on with, answered, merged; and the base beside it."""

from __future__ import annotations

import shutil

import pytest
import runs
import safetensors.numpy

pytestmark = pytest.mark.slow

WORDS = ["lora.use_dora=true", "lora.target_modules=all-linear", "train.max_steps=4"]


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    """A run of four steps, dropout and accumulation included."""
    place = tmp_path_factory.mktemp("dora") / "run"
    assert train(recipe, place) == 0
    return place


def train(recipe, place) -> int:
    return runs.status("train", str(recipe), *WORDS, f"train.output_dir={place}")


def test_it_begins_at_the_base_and_learns(run, straight):
    losses = [line["eval_loss"] for line in runs.records(run) if "eval_loss" in line]
    base = [line["eval_loss"] for line in runs.records(straight[0]) if "eval_loss" in line]
    assert losses[0] == pytest.approx(base[0], abs=1e-5)
    assert losses[-1] < losses[0] - 0.01


def test_gone_on_from_a_checkpoint_it_ends_the_same(run, recipe, tmp_path):
    place = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(place / "checkpoints" / "4")
    shutil.rmtree(place / "adapter")
    assert train(recipe, place) == 0
    assert runs.adapter_bytes(place) == runs.adapter_bytes(run)


def test_magnitudes_are_trained_and_the_adapter_is_used_and_merged(run, tmp_path, capsys):
    tensors = safetensors.numpy.load_file(run / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.{}.mlp.up_proj.lora_magnitude_vector"
    assert tensors[name.format(1)].shape == (runs.MLP,)
    assert sum("magnitude" in each for each in tensors) == 7 * runs.LAYERS
    merged = tmp_path / "merged"
    assert runs.status("export", "--adapter", str(run / "adapter"), "--output", str(merged)) == 0
    said = []
    for words in (["--adapter", str(run / "adapter")], ["--model", str(merged)]):
        capsys.readouterr()
        words += ["--prompt", "go ye", "--max-new-tokens", "8", "--temperature", "0"]
        assert runs.status("generate", *words) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != ""
