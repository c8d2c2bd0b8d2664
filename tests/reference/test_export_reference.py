"""Folders with their verification beside them open in PEFT and transformers, and theirs here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import byte_tokenizer
import cases
import jax
import numpy as np
import reference_adapters
import reference_models
import reference_runs
import reference_texts
from jax.sharding import Mesh
from reference_adapters import Choice
from reference_models import TinyModel

import jaxft
from jaxft.adapters import peft_format
from jaxft.errors import AdapterError
from jaxft.verbs import export

pytestmark = [pytest.mark.reference, *reference_adapters.IGNORED_WARNINGS]

CHOICES: dict[str, tuple[str, Choice]] = {
    "llama": ("llama-tied", {"target_modules": ["q_proj", "down_proj"]}),
    "gpt2-biased": ("gpt2", {"target_modules": ["c_attn"], "bias": "all"}),
    "opt-saved-head": ("opt", {"target_modules": ["fc1"], "modules_to_save": ["lm_head"]}),
    "tied-head": ("llama-tied", {"target_modules": ["lm_head", "v_proj"]}),
}


@pytest.fixture(params=CHOICES)
def saved(
    request: pytest.FixtureRequest, tiny_model: Callable[..., TinyModel], tmp_path: Path
) -> tuple[TinyModel, jaxft.PeftModel, Path]:
    """A model, ours with an adapter that moves its logits, and the folder that it was saved in."""
    name, choice = CHOICES[request.param]
    model = tiny_model(name, std=reference_models.CALM_STD)
    byte_tokenizer.byte_level().save_pretrained(model.folder)
    base = jaxft.AutoModelForCausalLM.from_pretrained(model.folder, dtype="float32")
    ours = jaxft.get_peft_model(base, jaxft.LoraConfig(r=3, lora_alpha=9, **choice))
    rng = np.random.default_rng(4)
    ours.set_trained_leaves(
        jax.tree.map(
            lambda x: (np.asarray(x) + 0.15 * rng.standard_normal(x.shape)).astype(np.float32),
            ours.trained_leaves(),
        )
    )
    ours.save_pretrained(tmp_path / "adapter")
    return model, ours, tmp_path / "adapter"


def drawn() -> reference_texts.Text:
    return reference_texts.draw((41, 29), "left", cases.VOCAB_SIZE, seed=5)


def our_logits(model: jaxft.PeftModel, text: reference_texts.Text) -> np.ndarray:
    return reference_runs.our_logits(model.network, model.tree(), text, model._placed_on())


def test_an_adapter_with_its_verification_opens_in_peft(
    saved: tuple[TinyModel, jaxft.PeftModel, Path],
) -> None:
    model, ours, folder = saved
    assert json.loads((folder / "verification.json").read_text())["max_difference"] == 0
    text = drawn()
    theirs = reference_runs.torch_logits(reference_adapters.peft_from(model, folder), text)
    assert reference_runs.difference(theirs, our_logits(ours, text), text) < 1e-4
    base = reference_runs.torch_logits(model.torch_model, text)
    assert reference_runs.difference(theirs, base, text) > 0.05


def test_a_merged_model_with_its_verification_opens_in_transformers(
    saved: tuple[TinyModel, jaxft.PeftModel, Path],
) -> None:
    _, ours, folder = saved
    whole = folder.parent / "whole"
    export.export(adapter=folder, model=None, output=whole, kind="merged", dtype="auto")
    found = json.loads((whole / "verification.json").read_text())
    assert 0 < found["max_relative_difference"] < 1e-4
    text = drawn()
    theirs = reference_runs.torch_logits(reference_models.open_torch(whole), text)
    assert reference_runs.difference(theirs, our_logits(ours, text), text) < 1e-4


def test_what_rounding_loses_in_transformers_is_what_the_record_says(
    saved: tuple[TinyModel, jaxft.PeftModel, Path],
) -> None:
    _, ours, folder = saved
    whole = folder.parent / "rounded"
    export.export(adapter=folder, model=None, output=whole, kind="merged", dtype="bfloat16")
    found = json.loads((whole / "verification.json").read_text())
    (row,) = spread(ours)
    ids = np.asarray([row], np.int32)
    text = reference_texts.Text(ids, np.ones_like(ids))
    theirs = reference_runs.torch_logits(reference_models.open_torch(whole), text)
    expected = our_logits(ours, text)
    assert np.abs(theirs - expected).max() == pytest.approx(found["max_difference"], rel=0.02)


def spread(model: jaxft.PeftModel) -> list[list[int]]:
    from jaxft.artifacts import verify

    return list(verify.spread_row(model.network).tokens)


@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
def test_an_adapter_that_peft_wrote_as_a_pickle_is_read(
    name: str, tiny_model: Callable[..., TinyModel], tmp_path: Path, one_device: Mesh
) -> None:
    model = tiny_model(name)
    choice = {"target_modules": ["q_proj", "v_proj"]} if name != "gpt2" else {"lora_bias": True}
    theirs = reference_adapters.peft_on(model, choice, seed=1)
    theirs.save_pretrained(tmp_path, safe_serialization=False)
    assert not (tmp_path / "adapter_model.safetensors").exists()
    ours = reference_adapters.read(model, tmp_path, one_device)
    text = drawn()
    expected = reference_runs.torch_logits(theirs, text)
    logits = reference_runs.our_logits(ours.network, ours.tree, text, one_device)
    assert reference_runs.difference(logits, expected, text) < 1e-4


def test_an_adapter_on_what_sees_is_refused_by_its_name(
    tiny_model: Callable[..., TinyModel], tmp_path: Path
) -> None:
    model = tiny_model("gemma3")
    theirs = reference_adapters.peft_on(model, {"target_modules": ["q_proj", "v_proj"]}, seed=1)
    theirs.save_pretrained(tmp_path)
    names = peft_format.read_adapter(tmp_path)[1]
    assert any("vision_tower" in name for name in names)
    base = jaxft.AutoModelForCausalLM.from_pretrained(model.folder, dtype="float32")
    with pytest.raises(AdapterError, match=r"also on what sees: on model\.vision_tower") as raised:
        jaxft.PeftModel.from_pretrained(base, tmp_path)
    assert "model.language_model.layers" in raised.value.remedy
