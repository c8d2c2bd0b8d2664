"""Adapters as they exist in the world: whatever PEFT reads, the logits here are PEFT's.

Each folder is written by PEFT, changed as files of others are, and read by both sides.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("peft")

import cases
import peft
import reference_models
import reference_texts
import safetensors.torch
import torch
from reference_adapters import IGNORED_WARNINGS
from reference_models import CALM_STD, TinyModel

import jaxft

pytestmark = [
    pytest.mark.reference,
    *IGNORED_WARNINGS,
    *(
        pytest.mark.filterwarnings(f"ignore:{message}")
        for message in (
            "The following (rank|alpha)_pattern keys did not match",
            "Unexpected keyword arguments",
            "Found missing adapter keys",
            "You have passed exclude_modules",
            "fan_in_fan_out is set to False",
        )
    ),
]

TOLERANCE = 1e-5  # of the largest logit, float32
RESIZED = cases.VOCAB_SIZE + 5
IDS = reference_texts.draw((31, 31), "right", cases.VOCAB_SIZE, seed=5).input_ids
QV = {"target_modules": ["q_proj", "v_proj"]}
BOTH = ["embed_tokens", "lm_head"]
OLD_NAMES = {"model.language_model.": "language_model.model."}
TEXT = r".*language_model.*\.(q|v)_proj"


class Other(NamedTuple):
    """A folder of others.

    Attributes:
        case: The base model.
        lora: Fields of PEFT's config.
        mutate: Fields of adapter_config.json that are changed afterwards.
        resized: Whether the vocabulary was resized before.
        keep: `save_embedding_layers`.
        names: Parts of tensors' names, and what they are replaced with afterwards.
        lost: A part of the names of tensors that are taken out afterwards.
        said: What is said of it.
    """

    case: str
    lora: Mapping[str, Any] = QV
    mutate: Mapping[str, Any] = {}
    resized: bool = False
    keep: Any = "auto"
    names: Mapping[str, str] = {}
    lost: str = ""
    said: str = ""


def beside(case: str) -> dict[str, Other]:
    """Return the ways in which PEFT saves embeddings and heads beside an adapter."""
    ways: dict[str, Other] = {
        "saved": Other(case, keep=True),
        "resized": Other(case, resized=True, said="in its place"),
        "targets": Other(case, {"target_modules": ["q_proj", *BOTH]}),
        "targets-resized": Other(case, {"target_modules": ["q_proj", *BOTH]}, resized=True),
        "whole": Other(case, {**QV, "modules_to_save": BOTH}, keep=True),
        "whole-resized": Other(case, {**QV, "modules_to_save": BOTH}, resized=True),
        "whole-resized-alone": Other(
            case, {**QV, "modules_to_save": BOTH}, resized=True, keep=False
        ),
        "tokens": Other(case, {**QV, "trainable_token_indices": [7, 3]}, keep=True),
        "tokens-resized": Other(
            case,
            {**QV, "trainable_token_indices": [RESIZED - 1, 3, RESIZED - 4]},
            resized=True,
        ),
    }
    return {f"{case}-{way}": other for way, other in ways.items()}


OTHERS: dict[str, Other] = {
    **beside("llama"),
    **beside("llama-tied"),
    "gpt2-saved": Other("gpt2", {"target_modules": ["c_attn"]}, keep=True),
    "gpt2-resized": Other("gpt2", {"target_modules": ["c_attn"]}, resized=True),
    "phi-bias-saved": Other("phi", QV, resized=True),
    "targets-of-llama": Other(
        "phi3", {"target_modules": ["q_proj", "o_proj", "up_proj", "down_proj"]}, said="q_proj"
    ),
    "a-target-of-nothing": Other("llama", mutate={"target_modules": ["q_proj", "xxx", "v_proj"]}),
    "a-rank-of-nothing": Other("llama", {**QV, "rank_pattern": {"gate_proj": 2, "v_proj": 3}}),
    "an-alpha-of-nothing": Other("llama", {**QV, "alpha_pattern": {"^q_proj": 100, "v_proj": 5}}),
    "an-exclusion-of-nothing": Other("llama", {**QV, "exclude_modules": ["nothere"]}),
    "a-pattern-excludes-nothing": Other("llama", {**QV, "exclude_modules": r".*vision.*"}),
    "a-layer-of-nothing": Other("llama", {**QV, "layers_to_transform": [0, 2, 7]}),
    "saved-of-nothing": Other("llama", {**QV, "modules_to_save": ["classifier", "score", "norm"]}),
    "a-field-of-2023": Other("llama", mutate={"enable_lora": None, "merge_weights": False}),
    "fields-of-tomorrow": Other("llama", mutate={"of_tomorrow": None, "and_after": False}),
    "the-loaded-name": Other(
        "llama", names={"lora_A.weight": "lora_A.default.weight", "B.weight": "B.default.weight"}
    ),
    "a-module-without-a-rank-of-eva": Other(
        "llama",
        mutate={"init_lora_weights": "eva", "eva_config": dataclasses.asdict(peft.EvaConfig())},
        lost="layers.1.self_attn.v_proj",
        said="no rank to 1 of the 6 modules",
    ),
    "gemma3-old-names": Other("gemma3", {"target_modules": TEXT}, names=OLD_NAMES),
    "mistral3-old-names": Other("mistral3", {"target_modules": TEXT}, names=OLD_NAMES),
}


def write(model: TinyModel, other: Other, folder: Path) -> None:
    """Write a folder of others."""
    theirs = reference_models.open_torch(model.folder)
    if other.resized:
        theirs.resize_token_embeddings(RESIZED, mean_resizing=False)
    config = peft.LoraConfig(r=4, lora_alpha=12, task_type="CAUSAL_LM", **other.lora)
    adapted = peft.get_peft_model(theirs, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            # What is beside an adapter has been trained elsewhere too.
            if parameter.requires_grad or "embed" in name or "lm_head" in name or "wte" in name:
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.add_(drawn * (CALM_STD if "lora_" in name else CALM_STD / 4))
    adapted.save_pretrained(folder, save_embedding_layers=other.keep)
    path = folder / "adapter_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | other.mutate), encoding="utf-8")
    tensors = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    for part, instead in other.names.items():
        tensors = {name.replace(part, instead): each for name, each in tensors.items()}
    if other.lost:
        tensors = {name: each for name, each in tensors.items() if other.lost not in name}
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


def pefts_logits(model: TinyModel, folder: Path, *, resized: bool) -> np.ndarray:
    theirs = reference_models.open_torch(model.folder)
    if resized:
        theirs.resize_token_embeddings(RESIZED, mean_resizing=False)
    adapted = peft.PeftModel.from_pretrained(theirs, folder).eval()
    with torch.no_grad():
        return adapted(input_ids=torch.tensor(np.asarray(IDS)).long()).logits.numpy()


@pytest.mark.parametrize("name", OTHERS)
def test_what_peft_reads_gives_its_logits(
    name: str,
    tmp_path: Path,
    tiny_model: Callable[..., TinyModel],
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = OTHERS[name]
    model = tiny_model(other.case, std=CALM_STD)
    write(model, other, tmp_path / "theirs")
    expected = pefts_logits(model, tmp_path / "theirs", resized=other.resized)
    base = jaxft.AutoModelForCausalLM.from_pretrained(str(model.folder), dtype="float32")
    ours = jaxft.PeftModel.from_pretrained(base, str(tmp_path / "theirs"))
    found = np.asarray(ours(np.asarray(IDS)).logits)
    largest = np.abs(expected).max()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < TOLERANCE * largest
    plain = np.asarray(base(np.asarray(IDS)).logits)
    assert np.abs(found[..., : plain.shape[-1]] - plain).max() > 1e-2 * largest
    assert other.said in capsys.readouterr().err
    # Written again it is complete: PEFT reads the same from it.
    ours.save_pretrained(tmp_path / "ours")
    again = pefts_logits(model, tmp_path / "ours", resized=other.resized)
    assert np.abs(again - expected).max() < TOLERANCE * largest
