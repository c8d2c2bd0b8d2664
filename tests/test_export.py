"""Exports: what is written is the tuned model whole, read back and compared, or is not there."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import runs
import safetensors.numpy
import small_models

import jaxft
from jaxft.artifacts import merge
from jaxft.errors import ConfigError, WeightsError
from jaxft.verbs import export
from jaxft.weights.formats import flax_msgpack
from jaxft.weights.formats import safetensors as shards

pytestmark = pytest.mark.slow

IDS = np.random.default_rng(1).integers(0, small_models.VOCABULARY, (2, 11)).astype(np.int32)
UNTIED = {**small_models.LLAMA, "tie_word_embeddings": False}
POST = {**small_models.OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16}
TOKENS = [7, 3, 100]
# What an adapter may train, and whether the model's head is tied in what comes of it.
TUNINGS = {
    "opt": (small_models.OPT, {"target_modules": ["q_proj", "fc1"], "bias": "all"}, True),
    "opt after": (POST, {"target_modules": ["k_proj", "out_proj", "fc2"]}, True),
    "gpt2": (small_models.GPT2, {"target_modules": ["c_attn", "c_proj"]}, True),
    "llama": (small_models.LLAMA, {"target_modules": "all-linear"}, True),
    "dora": (small_models.LLAMA, {"target_modules": "all-linear", "use_dora": True}, True),
    "dora fused": (
        small_models.GPT2,
        {"target_modules": ["c_attn", "c_proj"], "use_dora": True, "bias": "lora_only"},
        True,
    ),
    "dora on a tied head": (
        small_models.OPT,
        {"target_modules": ["fc1", "lm_head"], "use_dora": True},
        False,
    ),
    "own head": (UNTIED, {"target_modules": ["v_proj", "lm_head"]}, False),
    "adapter on a tied head": (
        small_models.OPT,
        {"target_modules": ["v_proj", "lm_head"]},
        False,
    ),
    "trained copy of a tied head": (
        small_models.OPT,
        {"target_modules": ["v_proj"], "modules_to_save": ["lm_head", "final_layer_norm"]},
        False,
    ),
    "trained embedding": (
        small_models.GPT2,
        {"target_modules": ["c_attn"], "modules_to_save": ["wte"]},
        False,
    ),
    "adapter on a tied embedding": (
        small_models.GPT2,
        {"target_modules": ["wte", "wpe", "c_attn"]},
        False,
    ),
    "adapters on both": (small_models.OPT, {"target_modules": ["embed_tokens", "lm_head"]}, False),
    "tied adapter": (
        POST,
        {"target_modules": ["embed_tokens", "fc1"], "ensure_weight_tying": True},
        True,
    ),
    "tied adapter of two scalings": (
        POST,
        {
            "target_modules": ["embed_tokens", "fc1"],
            "ensure_weight_tying": True,
            "alpha_pattern": {"lm_head": 4},
        },
        False,
    ),
    "tied copy": (
        small_models.GPT2,
        {"modules_to_save": ["lm_head"], "ensure_weight_tying": True},
        True,
    ),
    "own embedding": (UNTIED, {"target_modules": ["embed_tokens"]}, False),
    "tokens": (small_models.LLAMA, {"trainable_token_indices": TOKENS}, True),
    "tokens of a tied head": (
        small_models.OPT,
        {"trainable_token_indices": {"lm_head": TOKENS}},
        False,
    ),
    "tokens below an adapter": (
        small_models.OPT,
        {"target_modules": ["lm_head"], "trainable_token_indices": TOKENS},
        False,
    ),
    "tokens of both": (
        UNTIED,
        {"trainable_token_indices": {"lm_head": TOKENS, "embed_tokens": [3, 200]}},
        False,
    ),
}


def auto(path):
    return jaxft.AutoModelForCausalLM.from_pretrained(path, dtype="float32")


def logits(model):
    return np.asarray(model(IDS).logits)


def tune(model, folder: Path, **lora) -> jaxft.PeftModel:
    """Put an adapter on a model that changes its logits, and save it in `folder`."""
    tuned = jaxft.get_peft_model(model, jaxft.LoraConfig(r=3, lora_alpha=6, **lora))
    rng = np.random.default_rng(5)
    leaves = jax.tree.map(
        lambda x: np.asarray(x) + 0.2 * rng.standard_normal(x.shape).astype(np.float32),
        tuned.trained_leaves(),
    )
    tuned.set_trained_leaves(leaves)
    tuned.save_pretrained(folder)
    return tuned


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("merged", name) for name in TUNINGS),
        *(("flax", name) for name in ("opt after", "gpt2", "adapter on a tied head")),
    ],
)
def test_an_export_is_the_tuned_model(tmp_path, name, kind):
    config, lora, is_tied = TUNINGS[name]
    base = auto(small_models.write(tmp_path / "model", config))
    tuned = tune(base, tmp_path / "adapter", **lora)
    write(tmp_path, kind=kind)
    written = auto(tmp_path / "whole")
    assert written.config["tie_word_embeddings"] is is_tied
    expected = logits(tuned)
    assert np.abs(expected - logits(base)).max() > 1e-2
    np.testing.assert_allclose(logits(written), expected, atol=1e-5 * np.abs(expected).max())


def write(folder: Path, *, kind="merged", **changes) -> None:
    """Export the adapter in `folder` beside it."""
    options = {"adapter": folder / "adapter", "model": None, "dtype": "auto", "kind": kind}
    export.export(**{**options, "output": folder / "whole", **changes})


@pytest.fixture
def tuned(tmp_path):
    base = auto(small_models.write(tmp_path / "model", small_models.OPT))
    return tune(base, tmp_path / "adapter", target_modules=["q_proj"])


@pytest.mark.parametrize(
    ("kind", "file"), [("merged", shards.SINGLE), ("flax", flax_msgpack.SINGLE)]
)
def test_a_folder_has_all_that_a_model_needs(tuned, tmp_path, kind, file):
    (tmp_path / "model" / "generation_config.json").write_text('{"eos_token_id": 9}')
    write(tmp_path, kind=kind)
    folder = tmp_path / "whole"
    assert {"config.json", "generation_config.json", "tokenizer.json", file} <= {
        path.name for path in folder.iterdir()
    }
    content = json.loads((folder / "config.json").read_text())
    assert content == {
        **small_models.OPT,
        "torch_dtype": "float32",
        "tie_word_embeddings": True,
    }
    text = "He said unto them"
    assert auto(folder).tokenizer(text)["input_ids"] == tuned.tokenizer(text)["input_ids"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "model", "whole"]


@pytest.mark.parametrize("kind", ["merged", "flax"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_an_adapter_every_tensor_is_as_it_was(tmp_path, kind, dtype):
    small_models.write(tmp_path / "model", small_models.OPT, dtype=dtype)
    write(tmp_path, kind=kind, adapter=None, model=str(tmp_path / "model"))
    then, now = (auto(tmp_path / name).source.checkpoint() for name in ("model", "whole"))
    assert now.infos() == then.infos()
    for name in then.infos():
        assert now.read(name).tobytes() == then.read(name).tobytes()


def test_a_dtype_can_be_chosen(tuned, tmp_path):
    write(tmp_path, dtype="bfloat16")
    tensors = safetensors.numpy.load_file(tmp_path / "whole" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["dtype"] == "bfloat16"
    expected = logits(tuned)
    # A rounding of each weight, and of nothing else.
    np.testing.assert_allclose(
        logits(auto(tmp_path / "whole")), expected, atol=0.05 * np.abs(expected).max()
    )


def test_another_base_can_be_named(tuned, tmp_path):
    (tmp_path / "model").rename(tmp_path / "moved")
    write(tmp_path, model=str(tmp_path / "moved"))
    np.testing.assert_allclose(logits(auto(tmp_path / "whole")), logits(tuned), atol=1e-4)


def test_a_model_without_a_tokenizer_is_exported_without(tuned, tmp_path, capsys):
    for path in (tmp_path / "model").glob("tokenizer*"):
        path.unlink()
    write(tmp_path)
    assert not list((tmp_path / "whole").glob("tokenizer*"))
    assert "No tokenizer is written" in capsys.readouterr().err


def test_the_command_says_where_it_wrote(tuned, tmp_path, capsys):
    words = ("--adapter", str(tmp_path / "adapter"), "--output", str(tmp_path / "whole"))
    assert runs.status("export", *words, "--format", "flax") == 0
    captured = capsys.readouterr()
    assert " ".join(captured.out.split()).startswith("Merged model:")
    assert "Read back: its logits differ by" in captured.err
    assert runs.status("export", *words) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_folder_that_holds_something_is_refused_before_anything_is_read(
    tuned, tmp_path, monkeypatch
):
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "mine").write_text("mine")
    monkeypatch.setattr(export.loaded, "load", None)
    with pytest.raises(WeightsError, match=r"whole exists and is not empty"):
        write(tmp_path)
    assert (tmp_path / "whole" / "mine").read_text() == "mine"


def test_an_empty_folder_is_filled(tuned, tmp_path):
    (tmp_path / "whole").mkdir()
    write(tmp_path)
    assert (tmp_path / "whole" / "model.safetensors").exists()


@pytest.mark.parametrize("kind", ["merged", "flax"])
def test_what_is_not_the_live_model_is_not_kept(tuned, tmp_path, monkeypatch, kind):
    read = merge.Merged.read

    def spoiled(self, name):
        tensor = read(self, name)
        return -tensor if name.endswith("1.self_attn.q_proj.weight") else tensor

    monkeypatch.setattr(merge.Merged, "read", spoiled)
    with pytest.raises(WeightsError, match="differ from the live model's by"):
        write(tmp_path, kind=kind)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "model"]


def record(folder: Path) -> dict:
    return json.loads((folder / "verification.json").read_text())


@pytest.mark.parametrize("kind", ["merged", "flax"])
def test_the_differences_are_in_the_folder(tuned, tmp_path, kind):
    write(tmp_path, kind=kind)
    found = record(tmp_path / "whole")
    largest = found.pop("largest_logit")
    assert 0 < found.pop("max_difference") <= found.pop("max_relative_difference") * largest * 1.01
    assert 0 <= found.pop("mean_kl") < 1e-6
    assert found == {
        "compared": "the model in this folder, in float32, read back, with the live model",
        "rows": "tokens spread over the vocabulary",
        "num_rows": 1,
        "num_tokens": 128,
        "computed_in": "float32",
        "tolerance": 1e-4,
        "num_tensors": 36,
        "num_untrained_equal_to_base_file": 34,
        "rounding": {
            "dtype": "float32",
            "lost_of_update": 0.0,
            "worst_tensor": "model.decoder.layers.0.self_attn.q_proj.weight",
            "worst_lost_of_update": 0.0,
        },
    }


def test_what_rounding_costs_is_measured_and_said(tuned, tmp_path, capsys):
    write(tmp_path, dtype="bfloat16")
    found = record(tmp_path / "whole")
    assert "Rounding to bfloat16 lost" in capsys.readouterr().err
    # The update beside the weight, both known here.
    then, now = (auto(tmp_path / name).source.checkpoint() for name in ("model", "whole"))
    write(tmp_path, dtype="float32", output=tmp_path / "exact")
    exact = auto(tmp_path / "exact").source.checkpoint()
    lost = update = 0.0
    for layer in (0, 1):
        name = f"model.decoder.layers.{layer}.self_attn.q_proj.weight"
        merged = exact.read(name).astype(np.float64)
        lost += np.square(now.read(name).astype(np.float64) - merged).sum()
        update += np.square(merged - then.read(name)).sum()
    assert found["rounding"]["lost_of_update"] == pytest.approx((lost / update) ** 0.5, rel=5e-3)
    assert found["rounding"]["worst_lost_of_update"] >= found["rounding"]["lost_of_update"] > 1e-4
    # So is what it costs in logits, of which float32 costs nearly none.
    assert found["max_relative_difference"] > 1e-4 > record(tmp_path / "exact")["mean_kl"]


def test_held_out_rows_of_a_file_are_compared(tuned, tmp_path):
    rows = [{"prompt": "Go", "completion": " ye forth."}] * 3
    file = runs.write_rows(tmp_path / "rows.jsonl", [*rows, *rows])
    write(tmp_path, data=file)
    found = record(tmp_path / "whole")
    assert (found["rows"], found["num_rows"]) == ("held-out rows", 4)
    assert found["num_tokens"] == 4 * len(tuned.tokenizer("Go ye forth.</s>")["input_ids"])


def test_held_out_rows_of_the_adapters_run_are_found(tuned, tmp_path, capsys):
    file = runs.write_rows(tmp_path / "rows.jsonl", [{"prompt": "Go", "completion": " forth"}] * 2)
    recipe = {
        "model": str(tmp_path / "model"),
        "data": {"train": str(file), "eval": str(file), "max_length": 5},
        "train": {"output_dir": str(tmp_path)},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(recipe))
    write(tmp_path)
    found = record(tmp_path / "whole")
    assert (found["rows"], found["num_rows"], found["num_tokens"]) == ("held-out rows", 2, 10)
    # Rows that can be used no more are no reason not to export.
    file.write_text("no rows")
    write(tmp_path, output=tmp_path / "again")
    assert "The held-out rows of the run are not used:" in capsys.readouterr().err
    assert record(tmp_path / "again")["rows"] == "tokens spread over the vocabulary"


@pytest.mark.parametrize(
    "where", ["model/whole", "model/deep/whole", "adapter/../model/x", "link/x"]
)
def test_the_base_models_folder_is_not_written_to(tuned, tmp_path, monkeypatch, where):
    (tmp_path / "link").symlink_to(tmp_path / "model")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(export.loaded, "load", None)
    with pytest.raises(ConfigError, match="is the base model's folder, lies in it"):
        write(tmp_path, output=tmp_path / where)
    assert sorted(tmp_path.rglob("*")) == before


def test_values_that_are_no_numbers_are_not_kept(tuned, tmp_path, monkeypatch):
    read = merge.Merged.read
    monkeypatch.setattr(merge.Merged, "read", lambda self, name: read(self, name) * np.nan)
    with pytest.raises(WeightsError, match="holds values that are no numbers"):
        write(tmp_path)
    assert not (tmp_path / "whole").exists()
