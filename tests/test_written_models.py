"""A written model is its base wherever nothing was trained: tensors, config.json, other files."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import runs
import safetensors.numpy
import small_models

import jaxft
from jaxft import tree as trees
from jaxft.artifacts import merge, whole
from jaxft.errors import WeightsError
from jaxft.verbs import export
from jaxft.weights.places import chat_format, companions, source

FLOAT32, FLOAT16 = np.dtype(np.float32), np.dtype(np.float16)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
QUERY = "model.layers.0.self_attn.q_proj.weight"


def stored_as(folder: Path, dtype: np.dtype, norms: np.dtype) -> Path:
    """Write a small Llama with matrices in one dtype and norms in another, all of float32's."""
    small_models.write(folder, small_models.LLAMA)
    file = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    tensors = {k: v.astype(norms if "norm" in k else dtype) for k, v in tensors.items()}
    safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})
    content = json.loads((folder / "config.json").read_text())
    content["torch_dtype"] = dtype.name
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def tensors_in(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "model.safetensors")


def bits(folder: Path) -> dict[str, tuple[str, bytes]]:
    return {k: (v.dtype.name, v.tobytes()) for k, v in tensors_in(folder).items()}


def record(folder: Path) -> dict:
    return json.loads((folder / "verification.json").read_text())


@pytest.mark.parametrize("working", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("dtype", "norms"),
    [(FLOAT32, FLOAT32), (FLOAT16, FLOAT16), (BFLOAT16, FLOAT32), (FLOAT16, FLOAT32)],
    ids=lambda dtype: dtype.name,
)
def test_a_model_in_memory_is_written_as_its_file_has_it(tmp_path, dtype, norms, working):
    base = stored_as(tmp_path / "model", dtype, norms)
    model = jaxft.AutoModelForCausalLM.from_pretrained(base, dtype=working)
    model.save_pretrained(tmp_path / "saved")
    assert bits(tmp_path / "saved") == bits(base)
    found = record(tmp_path / "saved")
    assert found["num_untrained_equal_to_base_file"] == found["num_tensors"] == len(bits(base))
    written = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (written["torch_dtype"], "dtype" in written) == (dtype.name, False)


@pytest.mark.parametrize("kind", ["merged", "flax"])
def test_what_an_adapter_touches_has_the_dtype_of_its_source(tmp_path, kind):
    base = stored_as(tmp_path / "model", FLOAT16, FLOAT32)
    tune(base, tmp_path / "adapter")
    write(tmp_path, kind=kind)
    checkpoint = source.resolve(str(tmp_path / "whole"), None, print).checkpoint()
    before = tensors_in(base)
    infos = checkpoint.infos()
    assert {k: infos[k].dtype for k in before} == {k: v.dtype for k, v in before.items()}
    moved = {k for k in before if checkpoint.read(k).tobytes() != before[k].tobytes()}
    assert moved == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}
    found = record(tmp_path / "whole")
    assert found["num_untrained_equal_to_base_file"] == found["num_tensors"] - 2
    assert found["rounding"]["dtype"] == "float16"
    assert "in float16 and float32" in found["compared"]


def tune(base: Path, folder: Path, scale: float = 0.3) -> None:
    """Write an adapter on the queries that changes them."""
    model = jaxft.AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    tuned = jaxft.get_peft_model(model, jaxft.LoraConfig(r=2, target_modules=["q_proj"]))
    rng = np.random.default_rng(3)
    leaves = trees.map_with_path(
        lambda _, leaf: scale * rng.standard_normal(leaf.shape).astype(np.float32),
        tuned.trained_leaves(),
    )
    tuned.set_trained_leaves(leaves)
    tuned.save_pretrained(folder)


def write(folder: Path, *, kind="merged", **changes) -> None:
    options = {"adapter": folder / "adapter", "model": None, "dtype": "auto", "kind": kind}
    export.export(**{**options, "output": folder / "whole", **changes})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_dtype_that_is_asked_for_is_that_of_every_tensor(tmp_path, dtype):
    base = stored_as(tmp_path / "model", FLOAT16, FLOAT32)
    write(tmp_path, adapter=None, model=str(base), dtype=dtype)
    expected = {k: (dtype, v.astype(dtype).tobytes()) for k, v in tensors_in(base).items()}
    assert bits(tmp_path / "whole") == expected
    written = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert (written["dtype"], "torch_dtype" in written) == (dtype, False)


def test_a_value_beyond_float16_is_refused_with_its_tensor(tmp_path):
    base = stored_as(tmp_path / "model", FLOAT16, FLOAT16)
    tune(base, tmp_path / "adapter", scale=300.0)
    with pytest.raises(WeightsError, match=r"(?s)q_proj\.weight has a value of .*float16 is 6\.55"):
        write(tmp_path)
    assert not (tmp_path / "whole").exists()


def test_an_untrained_tensor_that_is_not_the_bases_is_not_kept(tmp_path, monkeypatch):
    base = stored_as(tmp_path / "model", FLOAT32, FLOAT32)
    tune(base, tmp_path / "adapter")
    read = merge.Merged.read

    def off_by_a_bit(self, name):
        tensor = read(self, name)
        return np.nextafter(tensor, 9, dtype=np.float32) if name == "model.norm.weight" else tensor

    monkeypatch.setattr(merge.Merged, "read", off_by_a_bit)
    with pytest.raises(WeightsError, match=r"model\.norm\.weight is not the base model's"):
        write(tmp_path)
    assert not (tmp_path / "whole").exists()


def test_code_that_is_not_copied_is_not_named(tmp_path):
    base = runs.write_model(tmp_path / "model")
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((base / name).read_text())
        (base / name).write_text(json.dumps({**content, "auto_map": {"AutoConfig": "code.Config"}}))
    write(tmp_path, adapter=None, model=str(base))
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((tmp_path / "whole" / name).read_text())


COPIED = (
    *("tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "o200k.tiktoken", "LICENSE", "Licence.txt", "llama-3-NOTICE", "USE_POLICY.md"),
    *("chat_template.json", "additional_chat_templates/tool_use.jinja", "generation_config.json"),
)
NOT_COPIED = ("README.md", "modeling_x.py", "optimizer.pt", "training_args.bin", "deep/LICENSE")


def test_the_files_beside_a_model_are_copied_byte_for_byte(tmp_path):
    base = runs.write_model(tmp_path / "model")
    for name in (*COPIED, *NOT_COPIED):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text('{"a":   1, "é": "\\u00e9"}')
    folder = tmp_path / "written"
    folder.mkdir()
    found = source.resolve(str(base), None, print)
    companions.write(folder, found, chat_format.BASE_FORMAT, pytest.fail)
    written = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert written.keys() >= {"tokenizer.json", "tokenizer_config.json", *COPIED}
    assert not written.keys() & {*NOT_COPIED, "config.json", "model.safetensors"}
    assert {name: (base / name).read_bytes() for name in written} == written


@pytest.mark.parametrize("inside", ["a text", [{"name": "default", "template": "t"}], None])
def test_a_learned_template_is_the_only_one(tmp_path, inside):
    base = runs.write_model(tmp_path / "model")
    (base / "chat_template.jinja").write_text("the base's")
    path = base / "tokenizer_config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content if inside is None else {**content, "chat_template": inside}))
    (base / "generation_config.json").write_text('{"eos_token_id": 5, "top_k": 3}')
    folder = tmp_path / "written"
    folder.mkdir()
    learned = chat_format.ChatFormat("{{ messages }} learned", (7, 9))
    companions.write(folder, source.resolve(str(base), None, print), learned, pytest.fail)
    assert (folder / "chat_template.jinja").read_text() == "{{ messages }} learned"
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config.get("chat_template", "{{ messages }} learned") == "{{ messages }} learned"
    assert chat_format.read(folder) == learned
    assert chat_format.read_generation(folder) == {"eos_token_id": [7, 9], "top_k": 3}


def test_a_generation_config_with_the_same_stops_is_not_written_anew(tmp_path):
    text = '{"top_k":3,   "eos_token_id": [9, 7]}'
    (tmp_path / "generation_config.json").write_text(text)
    chat_format.ChatFormat(None, (7, 9)).write(tmp_path)
    assert (tmp_path / "generation_config.json").read_text() == text


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_file_of_the_base_is_said_with_its_path_before_anything_is_written(
    tmp_path, monkeypatch, text
):
    base = runs.write_model(tmp_path / "model")
    (base / "tokenizer_config.json").write_text(text)
    monkeypatch.setattr(whole.save, "save_model", None)
    with pytest.raises(WeightsError, match=r"model/tokenizer_config\.json"):
        write(tmp_path, adapter=None, model=str(base), output=tmp_path / "whole")
