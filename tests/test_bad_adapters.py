"""Adapters that are not what they should be: two lines that say so, and nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import runs
import safetensors.numpy
import small_models

import jaxft
from jaxft.errors import AdapterError, JaxftError

NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
OTHERS = {
    "another architecture": small_models.OPT,
    "wider": {**small_models.LLAMA, "hidden_size": 48},
    "deeper": {**small_models.LLAMA, "num_hidden_layers": 3},
}
Spoil = Callable[[Path], Any]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, others beside it, and an adapter on the first."""
    folder = tmp_path_factory.mktemp("bad")
    small_models.write(folder / "model", small_models.LLAMA)
    small_models.write(folder / "twin", small_models.LLAMA, seed=1)
    for name, config in OTHERS.items():
        small_models.write(folder / name, config)
    model = jaxft.AutoModelForCausalLM.from_pretrained(folder / "model", dtype="float32")
    tuned = jaxft.get_peft_model(model, jaxft.LoraConfig(r=3, target_modules=["q_proj", "v_proj"]))
    tuned.set_trained_leaves(jax.tree.map(lambda x: np.full(x.shape, 0.1), tuned.trained_leaves()))
    tuned.save_pretrained(folder / "adapter")
    return folder


def config(**changes: Any) -> Spoil:
    def change(adapter: Path) -> None:
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def text(written: bytes) -> Spoil:
    return lambda adapter: (adapter / "adapter_config.json").write_bytes(written)


def tensors(change: Callable[[dict[str, np.ndarray]], Any]) -> Spoil:
    def write(adapter: Path) -> None:
        path = adapter / "adapter_model.safetensors"
        found = safetensors.numpy.load_file(path)
        change(found)
        safetensors.numpy.save_file(found, path)

    return write


def cut(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])


def garbage(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(b"PK\x03\x04 and nothing else")


def to_bin(adapter: Path) -> None:
    """Leave what torch.save would have begun to write."""
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(b"PK\x03\x04 cut short")


# What is done to the adapter, and what the two lines must say.
BAD: dict[str, tuple[Spoil, str, str]] = {
    "a file cut short": (cut, "the file is truncated: 1 tensors end beyond it", "copy it anew"),
    "garbage": (garbage, "adapter_model.safetensors cannot be read", "copy it anew"),
    "a .bin cut short": (to_bin, "adapter_model.bin cannot be read", "copy it anew"),
    "no tensors": (
        lambda adapter: (adapter / "adapter_model.safetensors").unlink(),
        "adapter_model.safetensors does not exist",
        "Give the folder of an adapter",
    ),
    "a config that is empty": (text(b""), "adapter_config.json is no JSON", "Copy"),
    "a config that is a list": (text(b"[1]"), "adapter_config.json holds no object", "Copy"),
    "a config that is no text": (text(b"\xff\xfe\x00"), "adapter_config.json is no JSON", "Copy"),
    "a config of nothing": (text(b"{}"), "has peft_type None", "Only LORA"),
    "another method": (config(peft_type="IA3"), "has peft_type 'IA3'", "Only LORA"),
    "another task": (config(task_type="SEQ_CLS"), 'task_type is "SEQ_CLS"', "merge_and_unload"),
    "a feature not handled": (config(use_qalora=True), "use_qalora is true", "merge_and_unload"),
    "an unknown field": (config(shine=1), "unknown field shine", "none of PEFT's LoraConfig"),
    "a misspelt field": (config(lora_alhpa=1), "unknown field lora_alhpa", "mean lora_alpha?"),
    "a wrong type": (config(r="eight"), 'r: Input should be a valid integer, and not "ei', "Copy"),
    "a wrong list": (config(target_modules=3), "target_modules: Input should be", "Copy"),
    "a base that is no name": (config(base_model_name_or_path=5), "name_or_path is 5", "a name"),
    "not a number": (
        tensors(lambda t: t.update({NAME: t[NAME] * np.nan})),
        f"{NAME} holds values that are no numbers",
        "train again",
    ),
    "infinite": (
        tensors(lambda t: t.update({NAME: (t[NAME] + np.inf).astype(np.float16)})),
        f"{NAME} holds values that are no numbers",
        "train again",
    ),
    "integers": (
        tensors(lambda t: t.update({NAME: t[NAME].astype(np.int8)})),
        f"{NAME} has dtype int8",
        "Expected float32, bfloat16 or float16",
    ),
}
# What shows beside the base model alone.
MISFITS: dict[str, tuple[Spoil, str, str]] = {
    "another rank": (config(r=4), f"{NAME} has shape (3, 24)", "made for"),
    "a rank too large": (config(r=64), "lora.r=64 is larger than model.layers.0", "made with"),
    "targets of others": (
        config(target_modules=["c_attn"]),
        "'c_attn', which matches",
        "made with",
    ),
    "fewer targets": (config(target_modules=["q_proj"]), "has an unexpected", "made with"),
    "a tensor missing": (tensors(lambda t: t.pop(NAME)), f"the adapter lacks {NAME}.", "made with"),
}


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[str, str]:
    """Run a command that ends with a user's mistake, and return the two lines."""
    assert runs.status(*map(str, words)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    found, remedy = captured.err.splitlines()[-2:]
    return found.removeprefix("error: "), remedy.removeprefix("  -> ")


def commands(adapter: Path, output: Path) -> list[tuple[object, ...]]:
    return [
        ("generate", "--adapter", adapter, "--prompt", "go"),
        ("export", "--adapter", adapter, "--output", output),
    ]


@pytest.mark.parametrize("name", [*BAD, *MISFITS])
def test_a_bad_adapter_is_two_lines_and_nothing_is_written(place, tmp_path, capsys, name):
    spoil, found, remedy = {**BAD, **MISFITS}[name]
    adapter = tmp_path / "adapter"
    shutil.copytree(place / "adapter", adapter)
    spoil(adapter)
    before = sorted(tmp_path.rglob("*"))
    words = commands(adapter, tmp_path / "new")
    if name in BAD:  # which needs no base model to be seen
        words += [
            ("adapter", "info", adapter),
            ("adapter", "scale", adapter, 2, "--output", tmp_path / "new"),
            ("adapter", "add", place / "adapter", adapter, "--output", tmp_path / "new"),
        ]
    for each in words:
        said = refused(capsys, *each)
        assert found in said[0]
        assert str(adapter) in said[0]
        assert remedy in said[1]
    model = jaxft.AutoModelForCausalLM.from_pretrained(place / "model", dtype="float32")
    with pytest.raises(AdapterError) as raised:
        jaxft.PeftModel.from_pretrained(model, adapter)
    assert found in raised.value.found
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", OTHERS)
def test_an_adapter_of_another_base_is_refused(place, tmp_path, capsys, name):
    for words in commands(place / "adapter", tmp_path / "new"):
        found, remedy = refused(capsys, *words, "--model", place / name)
        assert found.startswith(f"{place / 'adapter'}: ")
        assert "base model" in remedy
    assert not list(tmp_path.iterdir())


def test_a_base_of_another_name_and_the_same_shapes_is_used_and_said(place, tmp_path, capsys):
    said = f"was made for {place / 'model'}, and is used with {place / 'twin'}: right if"
    words = ("generate", "--adapter", place / "adapter", "--prompt", "go", "--max-new-tokens", 1)
    assert runs.status(*map(str, words)) == 0
    assert "warning" not in capsys.readouterr().err
    assert runs.status(*map(str, words), "--model", str(place / "twin")) == 0
    assert said in capsys.readouterr().err
    twin = jaxft.AutoModelForCausalLM.from_pretrained(place / "twin", dtype="float32")
    jaxft.PeftModel.from_pretrained(twin, place / "adapter")
    assert said in capsys.readouterr().err
    # The same folder on another way is no other base.
    (tmp_path / "link").symlink_to(place / "model")
    assert runs.status(*map(str, words), "--model", str(tmp_path / "link")) == 0
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_dtypes_of_numbers_are_read(place, tmp_path, dtype):
    shutil.copytree(place / "adapter", tmp_path / "adapter")
    tensors(lambda t: t.update({k: v.astype(dtype) for k, v in t.items()}))(tmp_path / "adapter")
    model = jaxft.AutoModelForCausalLM.from_pretrained(place / "model", dtype="float32")
    leaves = jaxft.PeftModel.from_pretrained(model, tmp_path / "adapter").trained_leaves()
    for leaf in jax.tree.leaves(leaves):
        assert leaf.dtype == np.float32
        np.testing.assert_allclose(leaf, 0.1, rtol=4e-3)


@pytest.mark.parametrize("where", ["model", "link", "model/new", "adapter/../model/new", "."])
@pytest.mark.parametrize("kind", ["adapter", "whole"])
def test_nothing_is_saved_in_or_over_the_base(place, kind, where):
    if not (place / "link").is_symlink():
        (place / "link").symlink_to(place / "model")
    model = jaxft.AutoModelForCausalLM.from_pretrained(place / "model", dtype="float32")
    if kind == "adapter":
        model = jaxft.get_peft_model(model, jaxft.LoraConfig(target_modules=["q_proj"]))
    before = sorted(place.rglob("*"))
    with pytest.raises(JaxftError, match="is the base model's folder, lies in it, or has it"):
        model.save_pretrained(place / where)
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("kind", ["adapter", "whole"])
def test_nothing_takes_the_place_of_what_is_not_its_own(place, tmp_path, kind):
    model = jaxft.AutoModelForCausalLM.from_pretrained(place / "model", dtype="float32")
    if kind == "adapter":
        model = jaxft.PeftModel.from_pretrained(model, place / "adapter")
    mine = shutil.copytree(place / "twin", tmp_path / "mine")
    before = {path: path.read_bytes() for path in mine.iterdir()}
    with pytest.raises(JaxftError, match="mine exists and is not empty"):
        model.save_pretrained(mine)
    assert {path: path.read_bytes() for path in mine.iterdir()} == before
    for _ in range(2):  # its own it may replace
        model.save_pretrained(tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "new"]
