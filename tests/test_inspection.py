"""What `jaxft inspect` says: numbers counted on the tree, from headers alone, without a device."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import small_models
import tiny
import tiny_specs

import jaxft
from jaxft import tree as trees
from jaxft.cli import main
from jaxft.errors import UnsupportedModelError, WeightsError
from jaxft.models import families
from jaxft.models.network import base_network
from jaxft.verbs import inspection
from jaxft.verbs.inspection import Stored, Target, TuningSize
from jaxft.weights import base, names
from jaxft.weights.formats.safetensors import SafetensorsCheckpoint
from jaxft.weights.places import source


@pytest.fixture(autouse=True)
def _no_tensor_is_read(monkeypatch):
    def read(checkpoint, name, region=None):
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(SafetensorsCheckpoint, "read", read)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    return small_models.write(folder, small_models.LLAMA, dtype="bfloat16")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    return small_models.write(tmp_path_factory.mktemp("models") / "gpt2", small_models.GPT2)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> Path:
    """The files of SmolLM2-135M in full size, of which only the headers take room on the disk."""
    folder = tmp_path_factory.mktemp("models") / "smollm2"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny.SMOLLM2_CONFIG))
    family = families.family_of(tiny.SMOLLM2_CONFIG)
    network = base_network(family.spec_from_config(tiny.SMOLLM2_CONFIG))
    shapes, header, end = names.leaf_shapes(network), {}, 0
    for name, slots in names.slots(family, network).items():
        shape = names.expected_shape(slots, shapes)
        begin, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    described = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(described).to_bytes(8, "little") + described)
        file.truncate(8 + len(described) + end)
    return folder


def write_gguf(path: Path) -> Path:
    """Write a Llama of one layer, its embedding in 8 bits, with a chat template."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {
        "embedding_length": 32,
        "feed_forward_length": 64,
        "block_count": 1,
        "attention.head_count": 2,
        "context_length": 128,
        "vocab_size": 96,
    }.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_string("tokenizer.chat_template", "{{ messages }}")
    shapes = {"token_embd": (96, 32), "output_norm": (32,)}
    shapes |= {f"blk.0.attn_{part}": (32, 32) for part in ("q", "k", "v", "output")}
    shapes |= {"blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,), "blk.0.ffn_down": (32, 64)}
    shapes |= {"blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32)}
    for name, shape in shapes.items():
        is_table = name == "token_embd"
        kind = gguf.GGMLQuantizationType.Q8_0 if is_table else gguf.GGMLQuantizationType.F32
        values = gguf.quantize(np.zeros(shape, np.float32), kind)
        writer.add_tensor(f"{name}.weight", values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def numbers(found: inspection.Inspection) -> dict[str, tuple[int, int]]:
    return {each.label: (each.num_trained, each.num_frozen) for each in found.tunings}


def status(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main.main(words)
    return ended.value.code or 0


def test_a_llama_is_counted_to_the_last_parameter(llama):
    found = inspection.inspect(str(llama), None)
    assert (found.model_type, found.architecture) == ("llama", "LlamaForCausalLM")
    assert (found.format, found.context, found.has_chat_template) == ("safetensors", 512, False)
    assert found.origin == f"local folder {llama}"
    layer = 2 * 24 * 24 + 2 * 24 * 12 + 3 * 24 * 40 + 2 * 24
    assert found.num_in_tables == 258 * 24
    assert found.num_parameters == 258 * 24 + 2 * layer + 24
    assert found.stored == (Stored("bfloat16", 2 * 9 + 2, 2 * found.num_parameters),)
    assert found.file_bytes == ((llama / "model.safetensors").stat().st_size,)


def test_a_head_of_its_own_is_counted(tmp_path, llama):
    config = {**small_models.LLAMA, "tie_word_embeddings": False}
    untied = inspection.inspect(str(small_models.write(tmp_path / "untied", config)), None)
    tied = inspection.inspect(str(llama), None)
    assert untied.num_in_tables == 2 * tied.num_in_tables
    assert untied.num_parameters == tied.num_parameters + 258 * 24


def test_smollm2_in_full_size_has_the_numbers_that_peft_prints(smollm2):
    found = inspection.inspect(str(smollm2), None)
    assert found.num_parameters == 134_515_008
    # Those of adapters: peft 0.21's get_nb_trainable_parameters, on torch's meta device.
    assert numbers(found) == {
        "LoRA, default": (460_800, 134_515_008),
        "LoRA, all-linear": (2_442_240, 134_515_008),
        "full tuning": (134_515_008, 0),
    }
    assert found.stored == (Stored("bfloat16", 272, 269_030_016),)
    assert found.context == 8192


def test_memory_is_the_frozen_base_and_four_floats_a_trained_parameter():
    tuning = TuningSize("LoRA", num_trained=10, num_frozen=1000, frozen_bytes={"bf16 base": 2000})
    assert tuning.state_bytes == 160
    assert tuning.total_bytes("bf16 base") == 2160


def test_the_bytes_of_a_frozen_base_are_those_of_its_leaves_as_they_are_held(smollm2):
    default, every, full = inspection.inspect(str(smollm2), None).tunings
    width, kv, mlp, layers, vocabulary = 576, 192, 1536, 30, 49_152
    dims = [(width, width), (width, kv), (width, kv), (width, width)]
    dims += [(width, mlp), (width, mlp), (mlp, width)]
    matrices = layers * sum(num_in * num_out for num_in, num_out in dims)
    others = vocabulary * width + (2 * layers + 1) * width
    assert matrices + others == default.num_frozen
    outputs = layers * sum(num_out for _, num_out in dims)
    expected = {
        "bf16 base": 2 * (matrices + others),
        "f32 base": 4 * (matrices + others),
        # Codes, and a float32 scale for each output.
        "int8 or fp8": matrices + 4 * outputs + 2 * others,
        # Two codes a byte, that scale, and one in 8 bits for each block of 16 inputs.
        "nf4 or int4": matrices // 2 + 4 * outputs + matrices // 16 + 2 * others,
    }
    assert default.frozen_bytes == every.frozen_bytes == expected
    assert default.total_bytes("nf4 or int4") == default.state_bytes + expected["nf4 or int4"]
    assert {full.total_bytes(held) for held in expected} == {16 * full.num_trained}


@pytest.mark.parametrize(
    ("held", "dtype", "quantization"),
    [
        ("bf16 base", "bfloat16", None),
        ("f32 base", "float32", None),
        ("int8 or fp8", "bfloat16", "int8"),
        ("int8 or fp8", "bfloat16", "fp8"),
        ("nf4 or int4", "bfloat16", "nf4"),
        ("nf4 or int4", "bfloat16", "int4"),
    ],
)
def test_a_base_that_is_loaded_takes_the_bytes_that_were_said(
    monkeypatch, llama, held, dtype, quantization
):
    said = inspection.inspect(str(llama), None).tunings[0].frozen_bytes[held]
    monkeypatch.undo()  # tensors are read
    found = source.resolve(str(llama), None, print)
    family, spec = base.read_spec(found)
    here = base.Base(found, family, spec, tiny.one_device(), dtype, quantization)
    assert trees.num_bytes(here.load(base_network(spec))) == said


def test_a_fused_projection_is_one_target_and_like_names_are_told_apart(gpt2):
    found = inspection.inspect(str(gpt2), None)
    assert found.context == 48
    assert found.targets == (
        Target("wte", (258, 24), 1, 8 * 282, is_default=False, is_linear=False),
        Target("wpe", (48, 24), 1, 8 * 72, is_default=False, is_linear=False),
        Target("c_attn", (24, 72), 2, 2 * 8 * 96, is_default=True, is_linear=True),
        Target("attn.c_proj", (24, 24), 2, 2 * 8 * 48, is_default=False, is_linear=True),
        Target("c_fc", (24, 96), 2, 2 * 8 * 120, is_default=False, is_linear=True),
        Target("mlp.c_proj", (96, 24), 2, 2 * 8 * 120, is_default=False, is_linear=True),
        Target("lm_head", (24, 258), 1, 8 * 282, is_default=False, is_linear=False),
    )
    assert numbers(found)["LoRA, default"] == (found.targets[2].num_trained, found.num_parameters)


def test_targets_add_up_to_the_tunings_that_choose_them(llama):
    found = inspection.inspect(str(llama), None)
    defaults = [each.num_trained for each in found.targets if each.is_default]
    linear = [each.num_trained for each in found.targets if each.is_linear]
    assert len(defaults) == 2
    assert len(linear) == 7
    assert numbers(found)["LoRA, default"][0] == sum(defaults)
    assert numbers(found)["LoRA, all-linear"][0] == sum(linear)


def test_the_rank_of_a_model_narrower_than_eight_is_its_width(tmp_path):
    config = {**small_models.LLAMA, "hidden_size": 8, "num_attention_heads": 2}
    found = inspection.inspect(str(small_models.write(tmp_path / "narrow", config)), None)
    assert found.rank == 4


def test_tensors_are_listed_by_the_type_they_are_stored_in(tmp_path, llama):
    tensors = safetensors.numpy.load_file(llama / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float32)
    assert tensors["model.embed_tokens.weight"].dtype == ml_dtypes.bfloat16
    (tmp_path / "config.json").write_text((llama / "config.json").read_text())
    halves = [dict(list(tensors.items())[half::2]) for half in (0, 1)]
    weight_map = {}
    for number, half in enumerate(halves):
        name = f"model-0000{number + 1}-of-00002.safetensors"
        safetensors.numpy.save_file(half, tmp_path / name)
        weight_map |= dict.fromkeys(half, name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    found = inspection.inspect(str(tmp_path), None)
    num_bfloat16 = found.num_parameters - 24
    assert found.stored == (Stored("bfloat16", 19, 2 * num_bfloat16), Stored("float32", 1, 96))
    assert len(found.file_bytes) == 2
    assert found.has_chat_template


def test_a_gguf_is_shown_as_it_is_stored(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr("jaxft.weights.formats.gguf_file.GgufFile.read", None)
    found = inspection.inspect(str(path), None)
    num_float32 = 4 * 32 * 32 + 3 * 32 * 64 + 3 * 32
    assert found.format == "GGUF"
    assert found.file_bytes == (path.stat().st_size,)
    assert found.stored == (
        Stored("F32", 10, 4 * num_float32),
        Stored("Q8_0", 1, 96 * 32 // 32 * 34),
    )
    assert found.num_parameters == num_float32 + 96 * 32
    assert found.has_chat_template


@pytest.mark.parametrize(
    ("content", "expected"),
    [({}, False), ({"chat_template": None}, False), ({"chat_template": "{{ messages }}"}, True)],
)
def test_a_chat_template_is_seen_in_the_tokenizers_configuration(gpt2, content, expected):
    path = gpt2 / "tokenizer_config.json"
    path.write_text(json.dumps(content))
    assert inspection.inspect(str(gpt2), None).has_chat_template is expected


def test_a_damaged_tokenizer_configuration_is_named(tmp_path):
    folder = small_models.write(tmp_path / "m", small_models.GPT2)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"tokenizer_config\.json: cannot be read"):
        inspection.inspect(str(folder), None)


def test_the_verb_shows_what_there_is_to_choose_from(llama, capsys):
    assert status("inspect", str(llama)) == 0
    captured = capsys.readouterr()
    lines = [" ".join(line.split()) for line in captured.out.splitlines()]
    assert lines[0] == str(llama)
    for line in (
        "family llama (LlamaForCausalLM)",
        "parameters 15,528, 6,192 of them in the embedding",
        "layers 2, width 24, MLP 40",
        "heads 2 of width 12, 1 for keys and values",
        "vocabulary 258, the head tied to the embedding",
        "context 512 tokens",
        "chat template no",
        "stored as bfloat16: 20 tensors, 31.1 kB",
        "q_proj 24 24 2 768 default, all-linear",
        "down_proj 40 24 2 1,024 all-linear",
        "lm_head 24 258 1 2,256 its name only",
    ):
        assert line in lines
    assert any(line.startswith("LoRA, default 1,344 ") for line in lines)
    assert "LoRA, default 41.3 kB 44.8 kB" in lines
    assert captured.err == ""


def test_layers_with_a_convolution_are_counted_and_modules_are_told_by_where_they_are(
    tmp_path, capsys
):
    convolutions = {
        "model_type": "lfm2",
        "layer_types": ["conv", "full_attention", "conv"],
        "num_hidden_layers": 3,
        "block_auto_adjust_ff_dim": False,
    }
    folder = small_models.write(tmp_path / "lfm2", small_models.LLAMA | convolutions)
    assert status("inspect", str(folder)) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in (
        "layers 3, 2 with a convolution for attention, width 24, MLP 40",
        "in_proj 24 72 2 1,536 all-linear",
        "conv.out_proj 24 24 2 768 all-linear",
        "self_attn.out_proj 24 24 1 384 all-linear",
    ):
        assert line in lines


def test_mlps_of_several_widths_are_told_by_the_smallest_and_the_largest(llama):
    found = dataclasses.replace(inspection.inspect(str(llama), None), spec=tiny_specs.SEVERAL_MLPS)
    assert dict(inspection._facts(found))["layers"] == "3, width 64, MLP 96 to 160"


def test_the_verb_needs_no_device(llama):
    done = subprocess.run(
        [sys.executable, "-c", "from jaxft.cli.main import main; main()", "inspect", str(llama)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "JAX_PLATFORMS": "no_such_device"},
        cwd=Path(jaxft.__file__).parent.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "LoRA, all-linear" in done.stdout


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").touch()
    return folder


def test_what_is_no_model_ends_with_status_two(tmp_path, capsys):
    assert status("inspect", str(tmp_path / "nowhere")) == 2
    assert "nowhere was not found" in capsys.readouterr().err
    assert status("inspect", str(write_config(tmp_path, {"model_type": "mamba"}))) == 2
    assert "model_type 'mamba', which is not handled" in capsys.readouterr().err
    assert status("inspect", str(write_config(tmp_path, small_models.LLAMA))) == 2
    captured = capsys.readouterr()
    assert "model.safetensors" in captured.err
    assert captured.out == ""


def test_a_revision_of_a_local_folder_is_a_mistake(llama):
    with pytest.raises(WeightsError, match="revision v1 was asked for"):
        inspection.inspect(str(llama), "v1")


def test_a_quantized_model_is_refused_before_anything_else_is_looked_at(tmp_path):
    config = {"model_type": "mamba", "quantization_config": {"quant_method": "awq", "bits": 4}}
    with pytest.raises(UnsupportedModelError, match="AWQ, 4 bits"):
        inspection.inspect(str(write_config(tmp_path, config)), None)


def test_quantized_tensors_are_told_by_their_names(tmp_path):
    folder = write_config(tmp_path, small_models.LLAMA)
    name = "model.layers.0.mlp.up_proj.weight"
    stored = {name: np.zeros((480, 1), np.uint8), f"{name}.absmax": np.zeros(15, np.float32)}
    safetensors.numpy.save_file(stored, folder / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match="bitsandbytes, 4 bits"):
        inspection.inspect(str(folder), None)
