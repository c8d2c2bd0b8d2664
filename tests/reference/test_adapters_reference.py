"""Adapters cross between jaxft and PEFT in both directions, and mean the same on each side."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import cases
import peft
import reference_adapters
import reference_features
import reference_models
import reference_runs
import reference_texts
from jax.sharding import Mesh
from peft.tuners.lora import LoraLayer
from peft.utils.other import ModulesToSaveWrapper
from reference_adapters import GEMMA, TOKENS, Choice
from reference_models import TinyModel
from reference_runs import TOLERANCE, Record

from jaxft import tree as trees
from jaxft.lora import mask, targets

pytestmark = [pytest.mark.reference, *reference_adapters.IGNORED_WARNINGS]

CLEARLY = 0.05  # by how much, of the largest logit, an adapter must move the logits

# A module outside the layers, norms, and a linear module beside an adapter that is not on it.
VARIOUS = {
    "target_modules": ["q_proj", "fc1"],
    "modules_to_save": ["lm_head", "embed_tokens", "final_layer_norm", "fc1"],
}
# Of what is stacked in one leaf, one layer is trained as a whole and the others are adapted.
ONE_LAYER = {"target_modules": ["q_proj", "fc1"], "modules_to_save": ["layers.1.fc1"]}
FUSED = {"target_modules": ["c_attn", "c_proj"]}

# What the covering set of test_variants_reference.py has not.
CHOICES: dict[str, tuple[str, Choice]] = {
    "null-mistral": ("mistral-window", {}),
    "fused-untied": ("gpt2-untied-inner-relu", FUSED),
    "full-name": ("llama", {"target_modules": ["model.layers.1.self_attn.o_proj", "k_proj"]}),
    "saved-tied-embedding": ("opt", {"modules_to_save": ["embed_tokens"]}),
    "saved-tied-embedding-gpt2": ("gpt2", {"modules_to_save": ["wte"]}),
    "saved-various": ("opt", VARIOUS),
    "saved-in-one-layer": ("opt", ONE_LAYER),
    "excluded-by-regex": ("opt", {"target_modules": ["q_proj", "fc1"], "exclude_modules": ".*0.*"}),
    "one-layer-of-h": ("gpt2", {**FUSED, "layers_to_transform": 1, "layers_pattern": "h"}),
    "patterns": (
        "llama",
        {
            "target_modules": ["q_proj", "k_proj", "down_proj"],
            # PEFT sorts them in its file, and the first that matches counts: none overlap here.
            "rank_pattern": {"q_proj": 2, r"layers\.[01]\.mlp\.down_proj": 6},
            "alpha_pattern": {"model.layers.2.self_attn.k_proj": 5},
        },
    ),
    "rank-stabilised": ("mistral-window", {"use_rslora": True, "rank_pattern": {"v_proj": 9}}),
    **reference_adapters.OTHER_DORA,
    "embedding-tied": ("llama-tied", {"target_modules": ["embed_tokens", "lm_head"]}),
    "embedding-projected": ("opt-350m", {"target_modules": r".*(embed_tokens|project_in)"}),
    "embedding-and-positions": ("gpt2", {"target_modules": ["wte", "wpe", "c_attn"]}),
    # PEFT does not know this name, and ties nothing.
    "embedding-of-another-name": ("gpt2", {"target_modules": ["wte"], "ensure_weight_tying": True}),
    "tokens-scaled": (GEMMA, {"trainable_token_indices": TOKENS, "ensure_weight_tying": True}),
    "tokens-projected": ("opt-350m", {"trainable_token_indices": {"embed_tokens": TOKENS}}),
    "tokens-of-the-head": ("llama", {"trainable_token_indices": {"lm_head": TOKENS}}),
    "tokens-of-a-tied-head": ("llama-tied", {"trainable_token_indices": {"lm_head": TOKENS}}),
    "tokens-of-both": (
        "llama-tied",
        {"trainable_token_indices": {"lm_head": TOKENS, "embed_tokens": TOKENS}},
    ),
    "tokens-of-both-apart": (
        "gpt2",
        {"trainable_token_indices": {"lm_head": TOKENS, "wte": TOKENS[::-1]}},
    ),
    "tokens-below-an-adapter": (
        "llama-tied",
        {"trainable_token_indices": TOKENS, "target_modules": ["lm_head", "q_proj"]},
    ),
    "tokens-beside-a-trained-head": (
        "llama",
        {"trainable_token_indices": TOKENS, "modules_to_save": ["lm_head"]},
    ),
}
# What each family calls its modules. That adapters on them mean the same on both sides,
# test_gradients_reference.py shows for every trait.
NAMED = CHOICES | reference_adapters.EVERY_FAMILY
if reference_features.TAKES_EVERY_FAMILY:
    CHOICES = NAMED


@pytest.fixture(params=CHOICES)
def choice(
    request: pytest.FixtureRequest, tiny_model: Callable[..., TinyModel]
) -> tuple[TinyModel, Choice]:
    """A model, whose weights are calm, and what is adapted of it.

    At the wider weights of the other comparisons an adapter makes attention so sharp that one
    rounding of the weights moves the logits by up to 8.5e-5 of the largest ("embedding-projected",
    in torch alone), and the tolerance then depends on the processor's order of sums.
    """
    name, chosen = NAMED[request.param]
    return tiny_model(name, std=reference_models.CALM_STD), chosen


@pytest.fixture(scope="module")
def text() -> reference_texts.Text:
    return reference_texts.draw((41, 29), "left", cases.VOCAB_SIZE, seed=5)


def test_an_adapter_of_peft_gives_its_logits(
    choice: tuple[TinyModel, Choice],
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
    choice: tuple[TinyModel, Choice],
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


@pytest.mark.parametrize("choice", NAMED, indirect=True)
def test_the_adapted_modules_and_their_size_are_those_of_peft(
    choice: tuple[TinyModel, Choice], one_device: Mesh
) -> None:
    model, chosen = choice
    theirs = reference_adapters.peft_on(model, chosen, seed=None)
    adapted = {
        name.removeprefix("base_model.model.")
        for name, module in theirs.named_modules()
        if isinstance(module, LoraLayer)
    }
    saved = {
        name.removeprefix("base_model.model.")
        for name, module in theirs.named_modules()
        if isinstance(module, ModulesToSaveWrapper)
    }
    config = reference_adapters.lora_config(chosen)
    targeted = targets.targeted(config, model.family, model.spec)
    assert {module.name for module in targeted} - saved == adapted
    ours = reference_adapters.ours_on(model, chosen, one_device, seed=3)
    trainable, total = theirs.get_nb_trainable_parameters()
    assert mask.num_trained(ours.network) == trainable
    own = mask.parts(ours.network, ours.tree).frozen
    ours_in_all = trainable + trees.num_parameters(own) - num_stored_buffers(model)
    assert ours_in_all == total - num_replaced(theirs) - num_unused(model)


def num_stored_buffers(model: TinyModel) -> int:
    """Count the numbers of buffers that files have."""
    stored = model.torch_model.state_dict()
    return sum(each.numel() for name, each in model.torch_model.named_buffers() if name in stored)


def num_unused(model: TinyModel) -> int:
    """Count the parameters of parts that have nothing to do with text."""
    ignored = re.compile("|".join(model.family.ignored) or r"(?!)")
    named = model.torch_model.named_parameters()
    return sum(parameter.numel() for name, parameter in named if ignored.fullmatch(name))


def num_replaced(adapted: peft.PeftModel) -> int:
    """Count the parameters that PEFT keeps though a trained copy has taken their place."""
    in_use, replaced = set(), {}
    for name, parameter in adapted.named_parameters(remove_duplicate=False):
        if ".original_module." in name:
            replaced[parameter] = parameter.numel()
        else:
            in_use.add(parameter)
    return sum(count for parameter, count in replaced.items() if parameter not in in_use)


@pytest.mark.parametrize("choice", NAMED, indirect=True)
def test_an_adapter_of_peft_is_written_again_as_it_was(
    choice: tuple[TinyModel, Choice], tmp_path: Path, one_device: Mesh
) -> None:
    model, chosen = choice
    reference_adapters.peft_on(model, chosen, seed=1).save_pretrained(tmp_path / "theirs")
    ours = reference_adapters.read(model, tmp_path / "theirs", one_device)
    reference_adapters.export(model, chosen, ours.network, ours.adapters, tmp_path / "ours")
    reference_adapters.assert_same_files(tmp_path / "ours", tmp_path / "theirs", model)


def test_the_null_targets_are_those_of_peft(tiny_model: Callable[..., TinyModel]) -> None:
    table = peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    for name in ("llama", "mistral-window", "opt", "gpt2"):
        family = tiny_model(name).family
        assert list(family.default_targets) == table[family.model_type]
