"""Runs from Python before whose first step the base reads rows: the recipe's, and read once."""

from __future__ import annotations

import json
from pathlib import Path

import api_runs
import jax
import numpy as np
import pytest
import runs
import safetensors.numpy

import jaxft
from jaxft import tree as trees
from jaxft.lora import numbers
from jaxft.models.network import base_network
from jaxft.models.quantized import Quantized
from jaxft.weights import base

pytestmark = pytest.mark.slow

IDS = np.arange(2, 11, dtype=np.int32)[None]
SHORT = {"max_steps": 2}
EVA = {"init_lora_weights": "eva", "target_modules": ["q_proj", "out_proj", "fc2"]}


def recipe(opt: Path, folder: Path, lora: dict, model: dict) -> str:
    """Write the run of these tests as a recipe."""
    runs.write_rows(folder / "train.jsonl", api_runs.ROWS)
    content = {
        "model": {"path": str(opt), "dtype": "float32", **model},
        "lora": {**api_runs.LORA, **lora},
        "data": {"train": "train.jsonl", "max_length": api_runs.MAX_LENGTH},
        "train": {**api_runs.ARGS, **SHORT, "output_dir": str(folder / "theirs")},
    }
    (folder / "recipe.yaml").write_text(json.dumps(content))
    return str(folder / "recipe.yaml")


def files(run):
    """Return the files of a run's adapter but for its card, which names the rows."""
    return {name: each for name, each in runs.adapter_bytes(run).items() if name != "README.md"}


@pytest.fixture
def reads(monkeypatch):
    """The networks for which a base was read."""
    found, load = [], base.Base.load

    def counted(self, network, rounding=None):
        found.append(network)
        return load(self, network, rounding)

    monkeypatch.setattr(base.Base, "load", counted)
    return found


@pytest.mark.parametrize("is_used", [False, True], ids=["fresh", "used before"])
def test_eva_is_the_recipes_to_the_bit_and_measures_on_the_base_that_is_there(
    opt, make_model, make_trainer, reads, tmp_path, is_used
):
    model = make_model(**EVA)
    asked = model.lora
    if is_used:
        model(IDS)
    assert len(reads) == is_used
    make_trainer(model=model, args=SHORT).train()
    # Once, unless the ranks cut the layers into other groups than the base's.
    is_cut = model.network.untuned() != base_network(model.network.spec)
    assert len(reads) == 1 + is_cut
    assert runs.status("train", recipe(opt, tmp_path, EVA, {})) == 0
    assert files(tmp_path / "run") == files(tmp_path / "theirs")
    assert runs.records(tmp_path / "run") == runs.records(tmp_path / "theirs")
    ours, theirs = (tmp_path / name / "eva.safetensors" for name in ("run", "theirs"))
    assert ours.read_bytes() == theirs.read_bytes()
    # The model in memory has the ranks that were measured, and is written with them.
    for name, a in safetensors.numpy.load_file(ours).items():
        assert len(a) == numbers.of(model.lora, name).rank
    assert model.asked == asked
    assert model(IDS).logits.shape == (1, 9, 258)
    model.save_pretrained(tmp_path / "saved")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "saved" / name).read_bytes() == files(tmp_path / "run")[name]


def test_eva_that_was_stopped_goes_on_with_its_ranks_from_either_model(
    make_model, make_trainer, monkeypatch, tmp_path
):
    from jaxft.training.prepare import measure

    class Stopping(jaxft.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 1

    def trainer(place, model, **options):
        args = {**SHORT, "output_dir": tmp_path / place}
        return make_trainer(model=model, args=args, **options)

    trainer("whole", make_model(**EVA)).train()
    model = make_model(**EVA)
    for place in ("again", "anew"):
        used = model if place == "again" else make_model(**EVA)
        trainer(place, used, callbacks=[Stopping()]).train()
    monkeypatch.setattr(measure, "_measured", lambda *_: pytest.fail("measured again"))
    # By the same model, which has been trained for a step, and by one that knows of nothing.
    for place, used in (("again", model), ("anew", make_model(**EVA))):
        trainer(place, used).train()
        assert files(tmp_path / place) == files(tmp_path / "whole")


@pytest.mark.parametrize("is_used", [False, True], ids=["fresh", "used before"])
@pytest.mark.parametrize("tokens", [None, 0], ids=["calibrated", "nearest"])
def test_adapters_over_a_quantized_model_are_the_recipes(
    opt, make_trainer, reads, tmp_path, is_used, tokens
):
    given = {} if tokens is None else {"calibration_tokens": tokens}
    model = jaxft.AutoModelForCausalLM.from_pretrained(
        opt, dtype="float32", quantization="nf4", **given
    )
    model = jaxft.get_peft_model(model, jaxft.LoraConfig(**api_runs.LORA))
    nearest = np.asarray(model(IDS).logits) if is_used else None
    make_trainer(model=model, args=SHORT).train()
    assert len(reads) == (1 if tokens == 0 else 2)
    quantization = {"quantization": "nf4", **given}
    assert runs.status("train", recipe(opt, tmp_path, {}, quantization)) == 0
    assert files(tmp_path / "run") == files(tmp_path / "theirs")
    assert runs.records(tmp_path / "run") == runs.records(tmp_path / "theirs")
    codes = [each for each in trees.flatten(model.tree()).values() if isinstance(each, Quantized)]
    assert codes
    if is_used:
        assert np.abs(np.asarray(model(IDS).logits) - nearest).max() > 1e-3
    # Once more, over a base that was rounded for these rows before.
    before = jax.device_get([each.codes for each in codes])
    make_trainer(model=model, args={**SHORT, "output_dir": tmp_path / "again"}).train()
    leaves = trees.flatten(model.tree()).values()
    after = [each.codes for each in leaves if isinstance(each, Quantized)]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
