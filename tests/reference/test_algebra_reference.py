"""What `jaxft adapter` makes of adapters, PEFT loads, with the logits that algebra asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import cases
import huggingface_hub
import reference_adapters
import reference_models
import reference_runs
import reference_texts
import torch
from jax.sharding import Mesh
from reference_adapters import Choice
from reference_models import TinyModel
from reference_runs import TOLERANCE

from jaxft.adapters import algebra, peft_format, serving
from jaxft.adapters.algebra import LoraAdapter

pytestmark = [pytest.mark.reference, *reference_adapters.IGNORED_WARNINGS]

MIXED = {
    "target_modules": ["q_proj", "k_proj", "down_proj"],
    "rank_pattern": {"q_proj": 2, r"layers\.[01]\.mlp\.down_proj": 6},
    "alpha_pattern": {"model.layers.2.self_attn.k_proj": 5},
}
STABLE = {"use_rslora": True, "rank_pattern": {"v_proj": 9}}
# Two ways to adapt each model, of which the first has ranks or alphas of its own.
PAIRS: dict[str, tuple[str, Choice, Choice]] = {
    "llama": ("llama", MIXED, {"target_modules": "all-linear"}),
    "mistral": ("mistral-window", STABLE, {"target_modules": ["o_proj", "v_proj"]}),
    "opt": (
        "opt",
        {"alpha_pattern": {"fc1": 3}, "target_modules": ["fc1", "q_proj"]},
        {"lora_bias": True, "target_modules": ["q_proj", "fc2"]},
    ),
    "gpt2": (
        "gpt2",
        {"target_modules": ["c_attn", "c_proj"], "rank_pattern": {"attn.c_proj": 2}},
        {"target_modules": ["c_attn"]},
    ),
    "tied head": (
        "llama-tied",
        {"target_modules": ["lm_head", "v_proj"], "rank_pattern": {"lm_head": 3}},
        {"target_modules": ["v_proj"]},
    ),
}


@pytest.fixture(params=PAIRS)
def pair(
    request: pytest.FixtureRequest,
    tiny_model: Callable[..., TinyModel],
    tmp_path: Path,
) -> tuple[TinyModel, list[LoraAdapter]]:
    """Return a model, and two adapters that PEFT wrote for it."""
    name, *choices = PAIRS[request.param]
    model = tiny_model(name)
    for number, choice in enumerate(choices):
        adapted = reference_adapters.peft_on(model, choice, seed=number)
        adapted.save_pretrained(tmp_path / str(number))
    return model, [algebra.read(tmp_path / str(number)) for number in range(2)]


@pytest.fixture(scope="module")
def text() -> reference_texts.Text:
    return reference_texts.draw((37, 22), "left", cases.VOCAB_SIZE, seed=5)


def written(adapter: LoraAdapter, folder: Path) -> Path:
    peft_format.save_adapter(folder, algebra.tensors_of(adapter), adapter.content)
    return folder


def summed(model: TinyModel, terms: Sequence[tuple[LoraAdapter, float]]) -> torch.nn.Module:
    """Return transformers' model with updates that PEFT computes added to its weights."""
    base = reference_models.open_torch(model.folder)
    # An adapter on a tied head is none on the embedding.
    base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
    modules = dict(base.named_modules())
    for adapter, weight in terms:
        theirs = reference_adapters.peft_from(model, adapter.origin)
        for name, layer in theirs.base_model.model.named_modules():
            if not hasattr(layer, "get_delta_weight"):
                continue
            with torch.no_grad():
                modules[name].weight += weight * layer.get_delta_weight("default")
                bias = layer.lora_B["default"].bias
                if bias is not None:
                    modules[name].bias += weight * layer.scaling["default"] * bias
    return base


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, 0.3), (-0.5, 0.0)])
def test_peft_loads_a_combination_with_the_logits_of_the_sum(
    pair: tuple[TinyModel, list[LoraAdapter]],
    weights: tuple[float, float],
    text: reference_texts.Text,
    tmp_path: Path,
    one_device: Mesh,
) -> None:
    model, adapters = pair
    terms = list(zip(adapters, weights, strict=True))
    folder = written(algebra.combine(terms), tmp_path / "sum")
    expected = reference_runs.torch_logits(summed(model, terms), text)
    theirs = reference_runs.torch_logits(reference_adapters.peft_from(model, folder), text)
    read = reference_adapters.read(model, folder, one_device)
    ours = reference_runs.our_logits(read.network, read.tree, text, one_device)
    for logits in (theirs, ours):
        assert reference_runs.difference(logits, expected, text) < TOLERANCE
    base = reference_runs.torch_logits(model.torch_model, text)
    assert reference_runs.difference(theirs, base, text) > 0.01


def test_peft_gives_equal_logits_before_and_after_folding(
    pair: tuple[TinyModel, list[LoraAdapter]], text: reference_texts.Text, tmp_path: Path
) -> None:
    model, (adapter, _) = pair
    folded = algebra.fold(adapter)
    folder = written(folded, tmp_path / "folded")
    before, after = (
        reference_runs.torch_logits(reference_adapters.peft_from(model, each), text)
        for each in (adapter.origin, folder)
    )
    assert reference_runs.difference(after, before, text) < TOLERANCE
    # And a program that reads r and alpha alone has the same updates.
    content, tensors = peft_format.read_adapter(folder)
    for name, update in adapter.updates.items():
        a, b = (tensors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        assert len(a) == content["r"]
        alone = content["lora_alpha"] / content["r"] * b @ a
        expected = update.scaling * update.b @ update.a
        np.testing.assert_allclose(alone, expected, atol=1e-5 * np.abs(expected).max())


def test_peft_loads_a_scaled_adapter(
    pair: tuple[TinyModel, list[LoraAdapter]], text: reference_texts.Text, tmp_path: Path
) -> None:
    model, (adapter, _) = pair
    folder = written(algebra.scale(adapter, 0.4), tmp_path / "less")
    expected = reference_runs.torch_logits(summed(model, [(adapter, 0.4)]), text)
    logits = reference_runs.torch_logits(reference_adapters.peft_from(model, folder), text)
    assert reference_runs.difference(logits, expected, text) < TOLERANCE


def vllm_takes(content: dict[str, Any], tensors: Sequence[str]) -> bool:
    """Say whether vLLM's own check of the config, and its reading of names, let an adapter in."""
    if any(content.get(name) is None for name in ("r", "lora_alpha", "target_modules")):
        return False
    if content["modules_to_save"] or content["use_dora"] or content["bias"] != "none":
        return False
    names = [name for name in tensors if ".base_layer." not in name]
    return all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in names)


def test_vllms_rules_take_what_we_say_that_it_takes(
    pair: tuple[TinyModel, list[LoraAdapter]],
) -> None:
    _, adapters = pair
    for adapter in (*adapters, *map(algebra.fold, adapters)):
        tensors = list(algebra.tensors_of(adapter))
        objections = serving.vllm_objections(adapter.content, tensors)
        # The one that it does not make itself: it would serve other scalings than were trained.
        own = [each for each in objections if "patterns" not in each]
        assert vllm_takes(dict(adapter.content), tensors) == (not own)


def test_peft_keeps_our_model_card_when_it_saves_the_adapter_again(
    pair: tuple[TinyModel, list[LoraAdapter]], tmp_path: Path
) -> None:
    model, (adapter, _) = pair
    tensors = algebra.tensors_of(adapter)
    peft_format.save_adapter(tmp_path / "ours", tensors, adapter.content, facts={"Steps": "50"})
    theirs = reference_adapters.peft_from(model, tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "ours")
    card = huggingface_hub.ModelCard.load(tmp_path / "ours" / "README.md")
    assert "| Steps | 50 |" in card.text
    assert card.data.library_name == "peft"
    assert "lora" in card.data.tags
