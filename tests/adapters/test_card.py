"""The model card: what the Hub reads of it, and what a person does."""

from __future__ import annotations

import re

import huggingface_hub
import numpy as np
import pytest

import jaxft
from jaxft.adapters import card, peft_format

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
CONTENT = {
    "peft_type": "LORA",
    "base_model_name_or_path": NAME,
    "r": 8,
    "lora_alpha": 16,
    "target_modules": ["q_proj", "v_proj"],
}
TENSORS = {"a": np.zeros((8, 20), np.float32), "b": np.zeros((20, 8), np.float32)}


def made(facts=None, **changes) -> str:
    return card.model_card({**CONTENT, **changes}, TENSORS, facts or {})


def read(text: str) -> huggingface_hub.ModelCard:
    return huggingface_hub.ModelCard(text)


def test_the_hub_reads_the_header():
    data = read(made()).data
    assert (data.library_name, data.base_model) == ("peft", NAME)
    assert data.pipeline_tag == "text-generation"
    assert data.tags == [f"base_model:adapter:{NAME}", "lora", "jaxft"]


@pytest.mark.parametrize("name", ["/home/me/models/mine", "models/a/b", "x/mine.gguf", None, "."])
def test_a_base_model_on_the_disk_is_not_linked_and_its_path_not_told(name):
    text = made(base_model_name_or_path=name)
    data = read(text).data
    assert data.base_model is None
    assert data.tags == ["lora", "jaxft"]
    assert "huggingface.co" not in text
    assert "/home" not in text


def test_a_relative_folder_that_is_there_is_not_taken_for_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert read(made(base_model_name_or_path="models/mine")).data.base_model is None


def test_it_says_what_was_trained_and_what_the_caller_knows():
    text = made(
        {"Steps": "50", "Held-out loss": "1.9 before, 1.2 after"},
        use_rslora=True,
        rank_pattern={"q_proj|k_proj": 4},
        layers_to_transform=3,
        modules_to_save=["lm_head"],
        bias="lora_only",
    )
    rows = dict(re.findall(r"^\| ([^|]+) \| (.+) \|$", text, re.MULTILINE))
    assert rows.pop("---") == "---"
    assert rows == {
        "Rank": "8",
        "Alpha": "16, rank-stabilised (over the root of the rank)",
        "Other ranks": r"`q_proj\|k_proj`: 4",
        "Adapted modules": "`q_proj`, `v_proj`",
        "in layers": "`3`",
        "Trained as a whole": "`lm_head`",
        "Biases": "trained (`lora_only`)",
        "Parameters": "320",
        "Steps": "50",
        "Held-out loss": "1.9 before, 1.2 after",
    }
    assert f"Made with jaxft {jaxft.__version__}" in text


def test_of_eva_it_says_so_and_of_many_modules_the_first():
    names = [f"model.layers.{layer}.mlp.up_proj" for layer in range(1010)]
    patterns = dict.fromkeys(names, 3)
    text = made(
        init_lora_weights="eva",
        target_modules=names,
        rank_pattern=patterns,
        alpha_pattern=patterns,
    )
    assert "| EVA | begun along the directions" in text
    assert text.count(" and 1,002 more |") == 3
    assert f"`{names[7]}` and" in text
    assert max(map(len, text.splitlines())) < 400
    assert "EVA" not in made()


def test_every_adapter_folder_has_one(tmp_path):
    peft_format.save_adapter(tmp_path / "adapter", TENSORS, CONTENT, facts={"Steps": "50"})
    text = (tmp_path / "adapter" / "README.md").read_text()
    assert text == made({"Steps": "50"})
