"""`ensure_weight_tying` as PEFT has it: what is trained of a tied embedding and head is one.

PEFT holds a tied adapter as two parameters on one storage, each with a gradient of its own, and
counts both. Here it is one leaf, whose gradient is their sum.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import cases
import peft
import reference_adapters
import reference_runs
import reference_texts
import torch
from jax.sharding import Mesh
from reference_adapters import GEMMA, STD, Choice
from reference_models import CALM_STD, TinyModel
from reference_runs import TOLERANCE, Record

from jaxft.adapters import peft_format
from jaxft.artifacts import merge
from jaxft.data.rows.tokenized import IGNORED
from jaxft.errors import AdapterError
from jaxft.lora import mask, tying
from jaxft.training import step
from jaxft.training.objective import CAUSAL_LM

pytestmark = [
    pytest.mark.reference,
    *reference_adapters.IGNORED_WARNINGS,
    # Of GPT-2's head, which is no Conv1D.
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True:UserWarning"),
]

TIED = {"ensure_weight_tying": True}
CHOICES: dict[str, tuple[str, Choice]] = {
    "adapter": ("llama-tied", {"target_modules": ["embed_tokens", "q_proj"], **TIED}),
    "adapter-by-regex": ("llama-tied", {"target_modules": r".*embed_tokens|lm_head", **TIED}),
    "adapter-by-the-head": ("gpt2", {"target_modules": ["lm_head"], **TIED}),
    "adapter-scaled": (GEMMA, {"target_modules": ["embed_tokens"], "use_rslora": True, **TIED}),
    "adapter-projected": ("opt-350m-smooth", {"target_modules": ["lm_head", "fc1"], **TIED}),
    "adapter-patterns": (
        "llama-tied",
        {"target_modules": ["lm_head"], "alpha_pattern": {"embed_tokens": 5}, **TIED},
    ),
    "saved": ("llama-tied", {"modules_to_save": ["embed_tokens"], **TIED}),
    "saved-by-the-head": ("gpt2", {"modules_to_save": ["lm_head"], **TIED}),
    "saved-both": (GEMMA, {"modules_to_save": ["lm_head", "embed_tokens"], **TIED}),
}


@pytest.fixture(params=CHOICES)
def choice(
    request: pytest.FixtureRequest, tiny_model: Callable[..., TinyModel]
) -> tuple[TinyModel, Choice]:
    name, chosen = CHOICES[request.param]
    return tiny_model(name, std=CALM_STD), chosen


@pytest.fixture(scope="module")
def text() -> reference_texts.Text:
    return reference_texts.draw((31, 22), "right", cases.VOCAB_SIZE, seed=5)


def tied_by_peft(model: TinyModel, chosen: Choice) -> peft.PeftModel:
    """Return PEFT's adapter, moved where it lies: the tie is one of storage."""
    adapted = reference_adapters.peft_on(model, chosen, seed=None)
    generator = torch.Generator().manual_seed(1)
    seen = set()
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and parameter.data_ptr() not in seen:
            seen.add(parameter.data_ptr())
            drawn = torch.randn(parameter.shape, generator=generator) * STD
            with torch.no_grad():
                parameter.copy_(drawn if ".lora_" in name else parameter + drawn)
    return adapted


def test_it_crosses_in_both_directions(
    choice: tuple[TinyModel, Choice],
    text: reference_texts.Text,
    tmp_path: Path,
    one_device: Mesh,
    record_property: Record,
) -> None:
    model, chosen = choice
    theirs = tied_by_peft(model, chosen)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = reference_adapters.read(model, tmp_path / "theirs", one_device)
    expected = reference_runs.torch_logits(theirs, text)
    base = reference_runs.torch_logits(model.torch_model, text)
    assert reference_runs.difference(expected, base, text) > 0.05
    logits = reference_runs.our_logits(ours.network, ours.tree, text, one_device)
    distance = reference_runs.difference(logits, expected, text)
    record_property("difference", distance)
    assert distance < TOLERANCE
    # In PEFT two parameters on one storage; counted once, as they are here.
    places = {p.data_ptr(): p.numel() for p in theirs.parameters() if p.requires_grad}
    assert mask.num_trained(ours.network) == sum(places.values())
    reference_adapters.export(model, chosen, ours.network, ours.adapters, tmp_path / "ours")
    again = reference_adapters.peft_from(model, tmp_path / "ours")
    distance = reference_runs.difference(reference_runs.torch_logits(again, text), expected, text)
    assert distance < 1e-6
    both = [peft_format.read_adapter(tmp_path / side)[1] for side in ("ours", "theirs")]
    assert both[0].keys() <= both[1].keys()
    assert all(np.array_equal(tensor, both[1][name]) for name, tensor in both[0].items())


def test_its_gradient_is_the_sum_of_pefts_two(
    choice: tuple[TinyModel, Choice],
    text: reference_texts.Text,
    tmp_path: Path,
    one_device: Mesh,
    record_property: Record,
) -> None:
    model, chosen = choice
    theirs = tied_by_peft(model, chosen)
    theirs.save_pretrained(tmp_path)
    ours = reference_adapters.read(model, tmp_path, one_device)
    labels = reference_texts.ragged_labels(text, (0.9, 0.5), seed=7)
    reference_runs.torch_loss_sum(theirs, text, labels).backward()
    expected = reference_adapters.gradients_by_name(theirs)
    stem, head = (
        f"base_model.model.{name}"
        for name in (tying.embedding_module(model.family), model.family.head_name)
    )
    if f"{head}.lora_A.weight" in expected:
        expected[f"{stem}.lora_embedding_A"] += expected.pop(f"{head}.lora_B.weight").T
        expected[f"{stem}.lora_embedding_B"] += expected.pop(f"{head}.lora_A.weight").T
    batch = reference_texts.batch_of(text, labels, 1)
    capacity = int((labels != IGNORED).sum())
    program = step.Program(ours.network, one_device, "float32", capacity, False, CAUSAL_LM)
    gradients = jax.jit(functools.partial(step.gradients, program))
    grads = gradients(ours.adapters, ours.frozen, batch, 0, 0)[1]
    found = peft_format.to_tensors(grads, model.family, ours.network)
    # Of an adapter the head's side is in the other; of what is saved both names are there.
    of_head = {name for name in found if name.startswith(head)}
    assert found.keys() - of_head == expected.keys() - of_head
    distance = max(reference_runs.norm_difference(found[name], expected[name]) for name in expected)
    record_property("difference", distance)
    assert distance < 1e-4


def test_merged_it_is_still_tied_unless_the_two_are_scaled_otherwise(
    choice: tuple[TinyModel, Choice], tmp_path: Path, one_device: Mesh
) -> None:
    model, chosen = choice
    tied_by_peft(model, chosen).save_pretrained(tmp_path)
    ours = reference_adapters.read(model, tmp_path, one_device)
    merged = merge.Merged(ours.tree, model.family, ours.network, model.checkpoint(), model.family)
    assert merged.has_tied_head == ("alpha_pattern" not in chosen)


def test_tensors_whose_tie_was_lost_are_refused(
    tiny_model: Callable[..., TinyModel], tmp_path: Path, one_device: Mesh
) -> None:
    name, chosen = CHOICES["adapter"]
    model = tiny_model(name, std=CALM_STD)
    # This moves each parameter to a storage of its own, as `.to(device)` does.
    reference_adapters.peft_on(model, chosen, seed=1).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="is not what the module that it is tied to has"):
        reference_adapters.read(model, tmp_path, one_device)
