"""Whole models tuned from Python, and adapters over quantized ones: the recipe's runs."""

from __future__ import annotations

import json

import api_runs
import jax
import numpy as np
import pytest
import runs
import safetensors.numpy

import jaxft
from jaxft import tree as trees
from jaxft.config import MeshConfig
from jaxft.errors import AdapterError, ConfigError
from jaxft.models.quantized import Quantized

pytestmark = pytest.mark.slow

IDS = np.arange(2, 11, dtype=np.int32)[None]
FREEZE = {"method": "freeze", "modules": ["fc1", "final_layer_norm"], "layers": [-1]}


@pytest.fixture
def base(opt):
    return jaxft.AutoModelForCausalLM.from_pretrained(opt, dtype="float32")


@pytest.fixture
def tune(opt, make_trainer):
    """Return a function that tunes a model without an adapter: the model and its trainer."""

    def run(tuning, **options):
        model = jaxft.AutoModelForCausalLM.from_pretrained(opt, dtype="float32")
        options = {"eval_dataset": api_runs.HELD_OUT, **options}
        trainer = make_trainer(model=model, tuning=tuning, args=SLOWER, **options)
        trainer.train()
        return model, trainer

    return run


SLOWER = {"learning_rate": 2e-3}


def recipe(opt, folder, **sections):
    """Write the same run as a recipe."""
    runs.write_rows(folder / "train.jsonl", api_runs.ROWS)
    runs.write_rows(folder / "eval.jsonl", api_runs.HELD_OUT)
    content = {
        "model": {"path": str(opt), "dtype": "float32"},
        "data": {
            "train": "train.jsonl",
            "eval": "eval.jsonl",
            "max_length": api_runs.MAX_LENGTH,
        },
        "train": {**api_runs.ARGS, **SLOWER, "output_dir": str(folder / "theirs")},
    }
    for name, section in sections.items():
        content[name] = {**content.get(name, {}), **section}
    (folder / "recipe.yaml").write_text(json.dumps(content))
    return str(folder / "recipe.yaml")


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def moved(before, after):
    """Return the names of the tensors in which two model folders differ."""
    one, other = (
        safetensors.numpy.load_file(folder / "model.safetensors") for folder in (before, after)
    )
    assert one.keys() == other.keys()
    return {name for name in one if (one[name] != other[name]).any()}


@pytest.mark.parametrize("tuning", [{"method": "full"}, FREEZE], ids=["full", "freeze"])
def test_it_is_the_command_lines_run_bit_for_bit(tune, opt, tmp_path, tuning):
    model, trainer = tune(tuning)
    assert runs.status("train", recipe(opt, tmp_path, tuning=tuning)) == 0
    assert files(tmp_path / "run" / "model") == files(tmp_path / "theirs" / "model")
    assert runs.records(tmp_path / "run") == runs.records(tmp_path / "theirs")
    # The model in memory is what was written.
    again = jaxft.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model", dtype="float32")
    ours, theirs = (np.asarray(each(IDS).logits) for each in (model, again))
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    last = runs.records(tmp_path / "run")[-1]["eval_loss"]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(last, rel=1e-6)
    assert again.generate(IDS, max_new_tokens=3).shape == (1, 12)


def test_what_freeze_does_not_name_stays_bit_for_bit(tune, opt, tmp_path):
    tune(FREEZE)
    layer = "model.decoder.layers.1"
    assert moved(opt, tmp_path / "run" / "model") == {
        f"{layer}.{module}.{kind}"
        for module in ("fc1", "final_layer_norm")
        for kind in ("weight", "bias")
    } | {f"model.decoder.final_layer_norm.{kind}" for kind in ("weight", "bias")}


def test_without_an_adapter_all_is_trained_as_in_transformers(make_trainer, base, tmp_path, capsys):
    trainer = make_trainer(model=base, args={"max_steps": 1})
    assert "The model has no adapter: all of it is trained." in capsys.readouterr().err
    trained, total = base.get_nb_trainable_parameters()
    assert trained == total
    trainer.train()
    assert not (tmp_path / "run" / "adapter").exists()
    content = json.loads((tmp_path / "run" / "model" / "verification.json").read_text())
    assert content["rows"] == "training rows"
    trainer.save_model()
    trainer.save_model(tmp_path / "saved")
    assert moved(tmp_path / "saved", tmp_path / "run" / "model") == set()


def test_a_model_that_was_used_before_is_tuned_in_float32(opt, make_trainer):
    model = jaxft.AutoModelForCausalLM.from_pretrained(opt, dtype="bfloat16")
    before = np.asarray(model(IDS).logits)
    make_trainer(model=model, tuning=FREEZE)
    dtypes = {path: str(leaf.dtype) for path, leaf in trees.flatten(model.tree()).items()}
    trained = model.network.trained_leaves()
    assert trained
    assert {path for path, dtype in dtypes.items() if dtype == "float32"} == trained
    after = np.asarray(model(IDS).logits)
    np.testing.assert_allclose(after, before, atol=0.05 * np.abs(before).max())


def test_a_tuned_model_is_no_base_for_an_adapter_until_it_is_written(tune, make_trainer, tmp_path):
    model, _ = tune("full")
    with pytest.raises(AdapterError, match=r"(?s)itself was tuned.*save_pretrained"):
        jaxft.get_peft_model(model, jaxft.LoraConfig())
    with pytest.raises(ConfigError, match=r"(?s)tuned already.*save_pretrained"):
        make_trainer(model=model, tuning=FREEZE)
    make_trainer(model=model, tuning="full")  # the same goes on
    written = jaxft.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert jaxft.get_peft_model(written, jaxft.LoraConfig()).get_nb_trainable_parameters()[0]


@pytest.mark.parametrize(
    ("tuning", "found"),
    [
        ("ful", r"(?s)`tuning\.method` is \"ful\".*Did you mean `full`"),
        ({"method": "freeze"}, r"neither tuning\.modules nor tuning\.layers is set"),
        ({"method": "freeze", "layerz": [1]}, r"(?s)unknown key.*Did you mean `tuning\.layers`"),
        ({"method": "freeze", "layers": [7]}, "the model has 2 layers"),
        ("lora", r"(?s)no adapter, and tuning is lora.*get_peft_model"),
    ],
)
def test_tuning_that_says_nothing_sensible_is_refused(make_trainer, base, tuning, found):
    with pytest.raises(ConfigError, match=found):
        make_trainer(model=base, tuning=tuning)


def test_a_model_with_an_adapter_is_not_tuned_itself(make_trainer, make_model):
    for tuning in ("full", FREEZE):
        with pytest.raises(ConfigError, match="The model has an adapter, and tuning is f"):
            make_trainer(model=make_model(), tuning=tuning)


def quantized(opt, kind="nf4"):
    return jaxft.AutoModelForCausalLM.from_pretrained(opt, dtype="float32", quantization=kind)


def test_adapters_over_a_quantized_model_are_the_recipes(opt, make_trainer, tmp_path, capsys):
    model = jaxft.get_peft_model(quantized(opt), jaxft.LoraConfig(**api_runs.LORA))
    before = np.asarray(model(IDS).logits)
    assert "Quantized to nf4:" in capsys.readouterr().err
    # Read for one device by the call above, and moved to all of them.
    trainer = make_trainer(model=model, args=SLOWER, eval_dataset=api_runs.HELD_OUT)
    trainer.train()
    words = recipe(opt, tmp_path, model={"quantization": "nf4"}, lora=api_runs.LORA)
    assert runs.status("train", words) == 0
    ours, theirs = files(tmp_path / "run" / "adapter"), files(tmp_path / "theirs" / "adapter")
    del ours["README.md"], theirs["README.md"]
    assert ours == theirs
    kinds = {type(leaf) for leaf in trees.flatten(model.tree()).values()}
    assert Quantized in kinds
    assert np.abs(np.asarray(model(IDS).logits) - before).max() > 1e-3
    # The adapter is for the original.
    base = jaxft.AutoModelForCausalLM.from_pretrained(opt, dtype="float32")
    again = jaxft.PeftModel.from_pretrained(base, tmp_path / "run" / "adapter")
    leaves = zip(
        *map(jax.tree.leaves, (again.trained_leaves(), model.trained_leaves())), strict=True
    )
    for leaf, other in leaves:
        np.testing.assert_array_equal(leaf, other)


def test_what_cannot_be_quantized_is_refused(opt, make_trainer, tmp_path):
    model = quantized(opt, "int8")
    with pytest.raises(ConfigError, match=r"quantization is int8, and tuning is full"):
        make_trainer(model=model, tuning="full")
    with pytest.raises(ConfigError, match=r"quantized to int8: its original weights are gone"):
        model.save_pretrained(tmp_path / "model")
    adapted = jaxft.get_peft_model(model, jaxft.LoraConfig())
    with pytest.raises(ConfigError, match="the mesh divides weights"):
        make_trainer(model=adapted, mesh=MeshConfig(fsdp=2))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"quantization": "nf5"}, r"(?s)`model\.quantization` is \"nf5\".*Did you mean `nf4`"),
        ({"load_in_4bit": True}, r"(?s)load_in_4bit: true` is not set.*`model\.quantization`"),
        ({"quantization_config": {}}, r"(?s)quantization_config.*`model\.quantization`"),
        ({"dtype": "float16"}, "float16` is known, and not supported yet"),
        ({"torch_dtype": "auto"}, r"(?s)torch_dtype.*Use `model\.dtype`"),
        ({"revison": "main"}, r"(?s)unknown key.*Did you mean `model\.revision`"),
    ],
)
def test_options_of_a_model_are_those_of_a_recipe(opt, options, found):
    with pytest.raises(ConfigError, match=found):
        jaxft.AutoModelForCausalLM.from_pretrained(opt, **options)


def test_options_that_ask_for_nothing_are_accepted(opt):
    jaxft.AutoModelForCausalLM.from_pretrained(opt, device_map="auto", load_in_8bit=False)
