"""Adapters cross between jaxft and PEFT in both directions, and mean the same on each side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import peft
import reference_adapters
import reference_runs
import reference_texts
from jax.sharding import Mesh
from peft.tuners.lora import LoraLayer
from reference_adapters import Targets
from reference_models import TinyModel
from reference_runs import TOLERANCE, Record

from jaxft import tree as trees
from jaxft.lora import targets
from jaxft.weights import names

pytestmark = [pytest.mark.reference, *reference_adapters.IGNORED_WARNINGS]

CLEARLY = 0.05  # by how much, of the largest logit, an adapter must move the logits

CHOICES: dict[str, tuple[str, Targets]] = {
    "null": ("llama", None),
    "null-mistral": ("mistral-window", None),
    "list": ("llama-attention-bias-gelu", ["q_proj", "v_proj"]),
    "full-name": ("llama", ["model.layers.1.self_attn.o_proj", "k_proj"]),
    "regex": ("llama-tied", r".*layers\.[02]\.mlp\.(up|down)_proj"),
    "all-linear": ("mistral-window", "all-linear"),
    "head": ("llama", ["q_proj", "lm_head"]),
    "tied-head": ("llama-tied", ["lm_head", "v_proj"]),
}


@pytest.fixture(params=CHOICES)
def choice(
    request: pytest.FixtureRequest, tiny_model: Callable[..., TinyModel]
) -> tuple[TinyModel, Targets]:
    name, chosen = CHOICES[request.param]
    return tiny_model(name), chosen


@pytest.fixture(scope="module")
def text(tiny_model: Callable[..., TinyModel]) -> reference_texts.Text:
    return reference_texts.draw((41, 29), "left", tiny_model("llama").spec.vocab_size, seed=5)


def test_an_adapter_of_peft_gives_its_logits(
    choice: tuple[TinyModel, Targets],
    text: reference_texts.Text,
    tmp_path: Path,
    one_device: Mesh,
    record_property: Record,
) -> None:
    model, chosen = choice
    theirs = reference_adapters.peft_on(model, chosen, seed=1)
    theirs.save_pretrained(tmp_path)
    ours = reference_adapters.read(model, tmp_path, one_device)
    expected = reference_runs.torch_logits(theirs, text)
    logits = reference_runs.our_logits(ours.network, ours.tree, text, one_device)
    distance = reference_runs.difference(logits, expected, text)
    record_property("difference", distance)
    assert distance < TOLERANCE
    base = reference_runs.torch_logits(model.torch_model, text)
    assert reference_runs.difference(expected, base, text) > CLEARLY


def test_our_adapter_gives_its_logits_in_peft(
    choice: tuple[TinyModel, Targets],
    text: reference_texts.Text,
    tmp_path: Path,
    one_device: Mesh,
    record_property: Record,
) -> None:
    model, chosen = choice
    ours = reference_adapters.ours_on(model, chosen, one_device, seed=2)
    reference_adapters.export(model, chosen, ours.network, ours.adapters, tmp_path / "adapter")
    theirs = reference_adapters.peft_from(model, tmp_path / "adapter")
    expected = reference_runs.our_logits(ours.network, ours.tree, text, one_device)
    logits = reference_runs.torch_logits(theirs, text)
    distance = reference_runs.difference(logits, expected, text)
    record_property("difference", distance)
    assert distance < TOLERANCE
    # With a prefix of names that it does not know, PEFT would warn and answer as the base.
    base = reference_runs.torch_logits(model.torch_model, text)
    assert reference_runs.difference(logits, base, text) > CLEARLY


def test_the_adapted_modules_and_their_size_are_those_of_peft(
    choice: tuple[TinyModel, Targets], one_device: Mesh
) -> None:
    model, chosen = choice
    theirs = reference_adapters.peft_on(model, chosen, seed=None)
    adapted = {
        name.removeprefix("base_model.model.")
        for name, module in theirs.named_modules()
        if isinstance(module, LoraLayer)
    }
    modules = names.linear_modules(model.family, model.spec)
    resolved = targets.target_modules(reference_adapters.lora_config(chosen), model.family)
    assert {module.name for module in targets.select(modules, resolved)} == adapted
    ours = reference_adapters.ours_on(model, chosen, one_device, seed=3)
    trainable, total = theirs.get_nb_trainable_parameters()
    assert trees.num_parameters(ours.adapters) == trainable
    assert trees.num_parameters(ours.tree) == total


def test_the_null_targets_are_those_of_peft(tiny_model: Callable[..., TinyModel]) -> None:
    table = peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    for name in ("llama", "mistral-window"):
        family = tiny_model(name).family
        assert list(family.default_targets) == table[family.model_type]
