"""Resized vocabularies: grown as transformers grows them, and adapters that PEFT opens on these."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import cases
import jax
import numpy as np
import peft
import reference_adapters
import reference_models
import reference_runs
import reference_texts
import torch
from reference_adapters import Choice
from reference_models import TinyModel
from reference_runs import TOLERANCE, Record

import jaxft
from jaxft.adapters import peft_format
from jaxft.verbs import export

pytestmark = [
    pytest.mark.reference,
    *reference_adapters.IGNORED_WARNINGS,
    pytest.mark.filterwarnings("ignore:The model was loaded with:UserWarning"),
]

STORED = cases.VOCAB_SIZE
ROWS = STORED + 3
NEW = [STORED, STORED + 1, STORED + 2]
BOTH = {"embed_tokens": NEW, "lm_head": NEW}

# The tables that are in the adapter's file as they are, since not all of their rows are trained.
CHOICES: dict[str, tuple[str, Choice, set[str]]] = {
    "plain": ("llama", {}, {"model.embed_tokens.weight", "lm_head.weight"}),
    "plain-tied": ("llama-tied", {}, {"model.embed_tokens.weight"}),
    "plain-head-bias": (
        "phi",
        {},
        {"model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"},
    ),
    "rows-of-both": ("llama", {"trainable_token_indices": BOTH}, set()),
    "rows-tied": ("llama-tied", {"trainable_token_indices": NEW}, set()),
    "rows-tied-gpt2": ("gpt2", {"trainable_token_indices": NEW}, set()),
    "rows-narrow": ("opt-350m", {"trainable_token_indices": NEW}, set()),
    "rows-of-the-embedding": ("llama", {"trainable_token_indices": NEW}, {"lm_head.weight"}),
    "two-rows-of-three": (
        "llama-tied",
        {"trainable_token_indices": [5, *NEW[:2]]},
        {"model.embed_tokens.token_adapter.base_layer.weight"},
    ),
    "rows-of-a-tied-head": (
        "llama-tied",
        {"trainable_token_indices": {"lm_head": NEW}},
        {"model.embed_tokens.weight"},
    ),
    "saved": ("llama", {"modules_to_save": ["embed_tokens", "lm_head"]}, set()),
    "saved-tied": (
        "llama-tied",
        {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
        set(),
    ),
    "saved-embedding-tied": ("gpt2", {"modules_to_save": ["wte"]}, {"lm_head.weight"}),
    "saved-head-bias": ("phi", {"modules_to_save": ["embed_tokens", "lm_head"]}, set()),
    "adapted": (
        "llama",
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"model.embed_tokens.base_layer.weight", "lm_head.weight"},
    ),
    "adapted-head": (
        "llama",
        {"target_modules": ["lm_head", "q_proj"], "trainable_token_indices": NEW},
        {"lm_head.base_layer.weight"},
    ),
    "multimodal": (
        "gemma3",
        {"target_modules": reference_adapters.OF_THE_TEXT, "trainable_token_indices": NEW},
        {"lm_head.weight"},
    ),
}


def grown(model: TinyModel) -> jaxft.CausalLM:
    """Open a model with jaxft, and give it three more tokens."""
    base = jaxft.AutoModelForCausalLM.from_pretrained(model.folder, dtype="float32")
    base.resize_token_embeddings(ROWS)
    return base


def theirs_grown(model: TinyModel, *, mean_resizing: bool) -> Any:
    """The same with transformers, whose new rows are drawn: widely, or closely around the mean."""
    torch.manual_seed(3)
    base = reference_models.open_torch(model.folder)
    base.resize_token_embeddings(ROWS, mean_resizing=mean_resizing)
    return base


def drawn() -> reference_texts.Text:
    """Two rows, in which every new token stands."""
    text = reference_texts.draw((41, 29), "left", ROWS, seed=5)
    text.input_ids[:, -5:-2] = NEW
    return text


def our_logits(model: jaxft.CausalLM) -> np.ndarray:
    return reference_runs.our_logits(model.network, model.tree(), drawn(), model._placed_on())


@pytest.fixture(params=CHOICES)
def saved(
    request: pytest.FixtureRequest, tiny_model: Callable[..., TinyModel], tmp_path: Path
) -> tuple[TinyModel, jaxft.PeftModel, Path, set[str]]:
    """A model, ours grown and with all moved that is trained, its folder, the tables in there."""
    name, choice, tables = CHOICES[request.param]
    model = tiny_model(name, std=reference_models.CALM_STD)
    ours = jaxft.get_peft_model(grown(model), jaxft.LoraConfig(r=3, lora_alpha=9, **choice))
    rng = np.random.default_rng(4)
    ours.set_trained_leaves(
        jax.tree.map(
            lambda x: (np.asarray(x) + 0.15 * rng.standard_normal(x.shape)).astype(np.float32),
            ours.trained_leaves(),
        )
    )
    ours.save_pretrained(tmp_path / "adapter")
    return model, ours, tmp_path / "adapter", tables


def test_our_adapter_gives_its_logits_in_peft_on_a_base_resized_there(
    saved: tuple[TinyModel, jaxft.PeftModel, Path, set[str]], record_property: Record
) -> None:
    model, ours, folder, tables = saved
    names = [name.removeprefix("base_model.model.") for name in peft_format.read_adapter(folder)[1]]
    saved_whole = tuple(ours.lora.modules_to_save or ())
    assert tables == {
        name
        for name in names
        if name.endswith((".weight", ".bias"))
        and ".lora_" not in name
        and not name.rpartition(".")[0].endswith(saved_whole)
    }
    # Wherever something of the file were missing, a row that is drawn widely would show.
    base = theirs_grown(model, mean_resizing=False)
    theirs = peft.PeftModel.from_pretrained(base, folder).eval()
    text = drawn()
    logits = reference_runs.torch_logits(theirs, text)
    distance = reference_runs.difference(logits, our_logits(ours), text)
    record_property("difference", distance)
    assert logits.shape[-1] == ROWS
    assert distance < TOLERANCE
    # And here on the base as its files have it: the adapter says how many rows there are.
    stored = jaxft.AutoModelForCausalLM.from_pretrained(model.folder, dtype="float32")
    again = jaxft.PeftModel.from_pretrained(stored, folder)
    assert again.network.spec.vocab_size == ROWS
    np.testing.assert_array_equal(our_logits(again), our_logits(ours))


@pytest.mark.parametrize(
    ("name", "choice"),
    [
        ("llama", {"trainable_token_indices": BOTH}),
        ("gpt2", {"modules_to_save": ["wte"]}),
        ("gemma3", {"target_modules": r".*language_model.*q_proj", "trainable_token_indices": NEW}),
    ],
)
def test_a_merged_model_has_the_tokens_in_transformers(
    name: str, choice: Choice, tiny_model: Callable[..., TinyModel], tmp_path: Path
) -> None:
    model = tiny_model(name, std=reference_models.CALM_STD)
    ours = jaxft.get_peft_model(grown(model), jaxft.LoraConfig(r=3, **choice))
    moved = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.05), ours.trained_leaves())
    ours.set_trained_leaves(moved)
    ours.save_pretrained(tmp_path / "adapter")
    whole = tmp_path / "whole"
    export.export(
        adapter=tmp_path / "adapter", model=None, output=whole, kind="merged", dtype="auto"
    )
    theirs = reference_models.open_torch(whole)
    text = drawn()
    logits = reference_runs.torch_logits(theirs, text)
    assert logits.shape[-1] == theirs.config.vocab_size == ROWS
    assert reference_runs.difference(logits, our_logits(ours), text) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "choice"),
    [
        ("llama", {}),
        ("llama", {"trainable_token_indices": BOTH}),
        ("llama", {"trainable_token_indices": NEW}),
        ("llama-tied", {"trainable_token_indices": [7, NEW[1]]}),
        ("llama-tied", {"target_modules": ["embed_tokens", "q_proj"]}),
        ("gpt2", {"trainable_token_indices": NEW}),
        ("phi", {}),
    ],
)
def test_an_adapter_of_peft_on_a_resized_base_gives_its_logits(
    name: str, choice: Choice, tiny_model: Callable[..., TinyModel], tmp_path: Path
) -> None:
    model = tiny_model(name, std=reference_models.CALM_STD)
    base = theirs_grown(model, mean_resizing=False)
    config = peft.LoraConfig(
        r=3, task_type="CAUSAL_LM", fan_in_fan_out=model.family.is_conv1d, **choice
    )
    theirs = peft.get_peft_model(base, config).eval()
    generator = torch.Generator().manual_seed(6)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data += 0.15 * torch.randn(parameter.shape, generator=generator)
    theirs.save_pretrained(tmp_path)
    ours = jaxft.PeftModel.from_pretrained(
        jaxft.AutoModelForCausalLM.from_pretrained(model.folder, dtype="float32"), tmp_path
    )
    text = drawn()
    expected = reference_runs.torch_logits(theirs, text)
    assert reference_runs.difference(our_logits(ours), expected, text) < TOLERANCE


@pytest.mark.parametrize("rows", [STORED - 9, ROWS])
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi", "opt-350m"])
def test_embedding_and_head_are_resized_as_by_transformers(
    name: str, rows: int, tiny_model: Callable[..., TinyModel]
) -> None:
    model = tiny_model(name, std=reference_models.CALM_STD)
    theirs = reference_models.open_torch(model.folder)
    theirs.resize_token_embeddings(rows)
    ours = jaxft.AutoModelForCausalLM.from_pretrained(model.folder, dtype="float32")
    ours.resize_token_embeddings(rows)
    read = ours.source.checkpoint()
    stored = model.checkpoint().infos()
    state = theirs.state_dict()
    num_kept = min(rows, STORED)
    resized = [name for name, info in stored.items() if read.infos()[name].shape != info.shape]
    assert resized
    for tensor in resized:
        expected, found = state[tensor].numpy(), read.read(tensor)
        assert found.shape == expected.shape
        np.testing.assert_array_equal(found[:num_kept], expected[:num_kept])
        # Theirs are drawn with 3e-5 of the others' deviation around where ours are.
        np.testing.assert_allclose(found, expected, atol=5e-4 * reference_models.CALM_STD)
    assert ours.config["vocab_size"] == theirs.config.vocab_size


def test_every_family_has_the_tables_that_grow(tiny_model: Callable[..., TinyModel]) -> None:
    for name in cases.FIRST.values():
        model = tiny_model(name, std=reference_models.CALM_STD)
        base = grown(model)
        tree = base.tree()
        assert base.network.spec.vocab_size == ROWS
        assert tree["embed"]["kernel"].shape[0] == ROWS
