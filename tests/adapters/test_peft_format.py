"""Adapters in PEFT's format: names, layout, and files that are never half written."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tiny

from jaxft import tree as trees
from jaxft.adapters import peft_format
from jaxft.config import LoraConfig
from jaxft.errors import AdapterError
from jaxft.lora import targets
from jaxft.models.families import gpt2, llama, multimodal, opt

NETWORKS = {
    "one group": tiny.adapted(head=True),
    "twelve groups": tiny.adapted(tiny.with_windows(range(3, 15))),
    "unequal ranks": tiny.adapted(modules=["attn/q", "mlp/down"], ranks=[2, 5, 3]),
    "upper layers": tiny.adapted(tiny.with_windows([None] * 4), layers=[2, 3], modules=["mlp/up"]),
}
NETWORK = NETWORKS["one group"]
ADAPTERS = tiny.split(tiny.random_leaves(NETWORK))[0]
CONFIG = LoraConfig(r=tiny.RANK, lora_alpha=12, target_modules=["q_proj", "v_proj"])
FOLDER = Path("runs/here/adapter")


def tensors_of(network=NETWORK):
    adapters = tiny.split(tiny.random_leaves(network))[0]
    return peft_format.to_tensors(adapters, llama.LLAMA, network)


def config_of(config=CONFIG, **spec):
    changed = dataclasses.replace(tiny.SPEC, **spec)
    return peft_format.adapter_config(config, llama.LLAMA, changed, "someone/model", "main")


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_tensors_come_back_as_the_very_leaves(network):
    adapters = tiny.split(tiny.random_leaves(network))[0]
    tensors = peft_format.to_tensors(adapters, llama.LLAMA, network)
    back = peft_format.from_tensors(tensors, llama.LLAMA, network, FOLDER)
    before, after = trees.flatten(adapters), trees.flatten(back)
    assert before.keys() == after.keys()
    for path, leaf in before.items():
        assert np.asarray(leaf).tobytes() == after[path].tobytes(), path


def test_tensors_have_pefts_names_and_torchs_layout():
    adapters, tensors = trees.flatten(ADAPTERS), tensors_of()
    layers = [f"base_model.model.model.layers.{n}" for n in range(3)]
    modules = ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"]
    assert tensors.keys() == {
        f"{module}.lora_{side}.weight"
        for module in [
            *(f"{layer}.{name}" for layer in layers for name in modules),
            "base_model.model.lm_head",
        ]
        for side in "AB"
    }
    a, b = (tensors[f"{layers[1]}.self_attn.v_proj.lora_{side}.weight"] for side in "AB")
    assert (a.shape, b.shape) == ((6, 64), (40, 6))
    np.testing.assert_array_equal(a, adapters["groups/0/0/attn/v/lora_a"][1])
    np.testing.assert_array_equal(b, adapters["groups/0/0/attn/v/lora_b"][1].T)
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}


def test_biases_and_whole_modules_come_back_as_the_very_leaves():
    for family, ending in ((opt.OPT, "layers.1.fc1"), (gpt2.GPT2, "h.1.mlp.c_fc")):
        config = LoraConfig(bias="all", modules_to_save=["lm_head", ending])
        network = targets.adapted_network(config, family, tiny.LEARNED)
        trained = tiny.split(tiny.random_leaves(network), network)[0]
        tensors = peft_format.to_tensors(trained, family, network)
        back = peft_format.from_tensors(tensors, family, network, FOLDER)
        before, after = trees.flatten(trained), trees.flatten(back)
        assert before.keys() == after.keys() > network.trained_leaves()
        for path, leaf in before.items():
            assert np.asarray(leaf).tobytes() == after[path].tobytes(), path


def test_a_fused_module_is_one_adapter_and_one_bias_beside_its_base_layer():
    config = LoraConfig(bias="lora_only", modules_to_save=["lm_head"])
    network = targets.adapted_network(config, gpt2.GPT2, tiny.LEARNED)
    trained = tiny.split(tiny.random_leaves(network), network)[0]
    tensors = peft_format.to_tensors(trained, gpt2.GPT2, network)
    module = "base_model.model.transformer.h.{}.attn.c_attn"
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "base_model.model.lm_head.weight": (112, 64),
        **{f"{module}.lora_A.weight".format(n): (8, 64) for n in range(3)},
        **{f"{module}.lora_B.weight".format(n): (240, 8) for n in range(3)},
        **{f"{module}.base_layer.bias".format(n): (240,) for n in range(3)},
    }
    flat = trees.flatten(trained)
    biases = [flat[f"groups/0/0/attn/{name}/bias"][2] for name in "qkv"]
    found = tensors[f"{module}.base_layer.bias".format(2)]
    np.testing.assert_array_equal(found, np.concatenate(biases))
    written = peft_format.adapter_config(config, gpt2.GPT2, tiny.LEARNED, "someone/model", None)
    assert (written["bias"], written["modules_to_save"]) == ("lora_only", ["lm_head"])
    assert (written["fan_in_fan_out"], written["target_modules"]) == (True, ["c_attn"])
    assert peft_format.read_lora_config(written, FOLDER).bias == "lora_only"


def test_patterns_are_written_in_their_order_and_read_in_it(tmp_path):
    ranks = {"q_proj": 2, "layers.0.self_attn.q_proj": 4, "down_proj": 3}
    config = LoraConfig(rank_pattern=ranks, target_modules=["q_proj", "down_proj"])
    written = peft_format.adapter_config(config, llama.LLAMA, tiny.SPEC, "someone/model", None)
    peft_format.save_adapter(tmp_path / "adapter", tensors_of(), written)
    content, _ = peft_format.read_adapter(tmp_path / "adapter")
    read = peft_format.read_lora_config(content, tmp_path)
    assert list(read.rank_pattern.items()) == list(ranks.items())


def test_a_tenth_layer_is_not_a_first_one():
    network = NETWORKS["twelve groups"]
    adapters = tiny.split(tiny.random_leaves(network))[0]
    tensors = peft_format.to_tensors(adapters, llama.LLAMA, network)
    found = tensors["base_model.model.model.layers.10.self_attn.q_proj.lora_A.weight"]
    np.testing.assert_array_equal(found, adapters["groups"]["10"]["0"]["attn"]["q"]["lora_a"][0])


def test_saved_folder_reads_back_bit_for_bit(tmp_path):
    folder = tmp_path / "new" / "adapter"
    peft_format.save_adapter(folder, tensors_of(), config_of())
    config, tensors = peft_format.read_adapter(folder)
    assert config == config_of()
    assert tensors.keys() == tensors_of().keys()
    for name, tensor in tensors_of().items():
        assert tensor.tobytes() == tensors[name].tobytes()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["adapter"]
    with safetensors.safe_open(folder / peft_format.TENSOR_FILE, "numpy") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("base_model.model.lm_head.lora_B.weight"), r"lacks .*lm_head\.lora_B"),
        (lambda t: t.update(stray=np.zeros(1, np.float32)), "has an unexpected stray"),
        (
            lambda t: t.update(
                {
                    "base_model.model.lm_head.lora_A.weight": np.zeros((6, 63), np.float32),
                }
            ),
            r"lm_head\.lora_A\.weight has shape \(6, 63\)",
        ),
    ],
    ids=["missing", "unexpected", "misshapen"],
)
def test_tensors_of_another_adapter_raise_naming_folder_and_tensor(change, message):
    tensors = tensors_of()
    change(tensors)
    with pytest.raises(AdapterError, match=message) as raised:
        peft_format.from_tensors(tensors, llama.LLAMA, NETWORK, FOLDER)
    assert str(FOLDER) in raised.value.found


def test_an_interrupted_save_leaves_the_old_adapter(tmp_path, monkeypatch):
    folder = tmp_path / "adapter"
    peft_format.save_adapter(folder, tensors_of(), config_of())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def half(tensors, path, **_):
        Path(path).write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.numpy, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        peft_format.save_adapter(folder, tensors_of(NETWORKS["upper layers"]), config_of())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_interrupt_between_the_renames_brings_the_old_adapter_back(tmp_path, monkeypatch):
    folder = tmp_path / "adapter"
    peft_format.save_adapter(folder, tensors_of(), config_of())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    replace, calls = os.replace, []

    def interrupted(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        peft_format.save_adapter(folder, tensors_of(NETWORKS["upper layers"]), config_of())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_saving_again_replaces_the_whole_folder(tmp_path):
    folder = tmp_path / "adapter"
    peft_format.save_adapter(folder, tensors_of(), config_of())
    (folder / "stray").touch()
    peft_format.save_adapter(folder, tensors_of(NETWORKS["upper layers"]), config_of())
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        peft_format.CONFIG_FILE,
        peft_format.TENSOR_FILE,
    ]
    assert len(peft_format.read_adapter(folder)[1]) == 4


def test_config_says_what_peft_needs_and_reads_back_as_the_same_lora():
    written = json.loads(json.dumps(config_of()))
    assert (written["peft_type"], written["task_type"]) == ("LORA", "CAUSAL_LM")
    assert written["base_model_name_or_path"] == "someone/model"
    assert (written["r"], written["lora_alpha"]) == (tiny.RANK, 12)
    assert written["target_modules"] == ["q_proj", "v_proj"]
    assert peft_format.read_lora_config(written, FOLDER) == CONFIG


def test_targets_are_written_resolved():
    assert config_of(LoraConfig())["target_modules"] == ["q_proj", "v_proj"]
    everything = config_of(LoraConfig(target_modules="all-linear"))["target_modules"]
    assert sorted(everything) == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )


@pytest.mark.parametrize("missing", [peft_format.CONFIG_FILE, peft_format.TENSOR_FILE])
def test_a_missing_file_is_named(tmp_path, missing):
    peft_format.save_adapter(tmp_path / "adapter", tensors_of(), config_of())
    (tmp_path / "adapter" / missing).unlink()
    with pytest.raises(AdapterError, match=f"{missing} does not exist"):
        peft_format.read_adapter(tmp_path / "adapter")


@pytest.mark.parametrize("damaged", [peft_format.CONFIG_FILE, peft_format.TENSOR_FILE])
def test_a_damaged_file_is_named(tmp_path, damaged):
    peft_format.save_adapter(tmp_path / "adapter", tensors_of(), config_of())
    path = tmp_path / "adapter" / damaged
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(AdapterError, match=damaged):
        peft_format.read_adapter(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"use_qalora": True}, "use_qalora"),
        ({"r": "eight"}, "r: "),
    ],
)
def test_an_adapter_of_another_kind_is_refused(change, message):
    with pytest.raises(AdapterError, match=message) as raised:
        peft_format.read_lora_config({**config_of(), **change}, FOLDER)
    assert str(FOLDER) in raised.value.found


@pytest.mark.parametrize(
    "part", ["model.vision_tower", "model.multi_modal_projector", "vision_tower"]
)
def test_an_adapter_on_what_sees_is_said_to_be_one(part):
    name = f"base_model.model.{part}.layers.0.self_attn.q_proj.lora_A.weight"
    text = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
    with pytest.raises(AdapterError, match=rf"also on what sees: on {part}\.layers") as raised:
        peft_format.refuse_other_parts([text, name], multimodal.GEMMA3, FOLDER)
    assert str(FOLDER) in raised.value.found
    peft_format.refuse_other_parts([text], multimodal.GEMMA3, FOLDER)
    peft_format.refuse_other_parts([name], llama.LLAMA, FOLDER)


def test_zeros_beyond_a_rank_are_in_no_file():
    tensors = tensors_of(NETWORKS["unequal ranks"])
    for layer, rank in enumerate([2, 5, 3]):
        stem = f"base_model.model.model.layers.{layer}.mlp.down_proj.lora_"
        assert tensors[f"{stem}A.weight"].shape == (rank, 160)
        assert tensors[f"{stem}B.weight"].shape == (64, rank)
        assert all(side.all() for side in tensors.values())
