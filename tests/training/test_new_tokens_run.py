"""A recipe that adds tokens, from its rows to the folders that others open."""

from __future__ import annotations

import json

import numpy as np
import pytest
import runs
import safetensors.numpy

from jaxft.artifacts import loaded
from jaxft.training.run import finish
from jaxft.weights.places import tokenizer

pytestmark = pytest.mark.slow

NEW = ["<go>", "</go>"]
ROWS = [
    {
        "messages": [
            {"role": "user", "content": text},
            {"role": "assistant", "content": f"<go>{text.upper()}</go>"},
        ]
    }
    for text in ("go ye", "unto them", "be not", "afraid", "lord", "said", "forth", "and") * 2
]
TRAINED = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with model, rows and recipe, and caches that belong to these tests alone."""
    path = tmp_path_factory.mktemp("new_tokens")
    with runs.own_caches(path / "datasets") as patch:
        patch.setattr(finish, "_ANSWER_TOKENS", 2)
        runs.write_recipe(
            path,
            model__new_tokens=NEW,
            lora__trainable_token_indices=[260, 261],
            train__max_steps=2,
            train__save_steps=1,
            data__accept=["duplicates", "held_out_known"],
        )
        runs.write_rows(path / "train.jsonl", ROWS)
        runs.write_rows(path / "eval.jsonl", ROWS[:3])
        yield path


@pytest.fixture(scope="module")
def adapter(base):
    """The adapter of a run that the command line has done."""
    assert runs.status("train", str(base / "recipe.yaml")) == 0
    return base / "run" / "adapter"


@pytest.fixture(scope="module")
def whole(adapter, base):
    """The model that the adapter is merged into."""
    assert runs.status("export", "--adapter", str(adapter), "--output", str(base / "whole")) == 0
    return base / "whole"


def table(folder):
    """Return the embedding in a model's folder."""
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    return tensors["model.embed_tokens.weight"]


def ids_in(folder, text):
    return tokenizer.load_folder(folder)(text, add_special_tokens=False).input_ids


def test_the_adapter_has_the_trained_rows_and_the_tokenizer(base, adapter):
    tensors = safetensors.numpy.load_file(adapter / "adapter_model.safetensors")
    rows = tensors.pop(TRAINED)
    assert all(".lora_" in name for name in tensors)
    mean = table(base / "model").mean(axis=0)
    assert rows.shape == (2, runs.WIDTH)
    assert all(0.01 < np.abs(row - mean).max() < 0.2 for row in rows)
    assert ids_in(adapter, "<go>a</go>")[::2] == [260, 261]
    assert "model.resize_token_embeddings(262)" in (adapter / "README.md").read_text()


def test_the_adapter_is_read_with_as_many_rows_and_its_tokenizer(adapter, capsys):
    found = loaded.find(adapter, None)
    assert found.source.config()["vocab_size"] == 262
    assert "<go>" in found.source.tokenizer().get_vocab()
    capsys.readouterr()
    words = ("--prompt", "<go>", "--max-new-tokens", "2")
    assert runs.status("generate", "--adapter", str(adapter), *words) == 0
    assert "an embedding of 262 rows, and the base has 260" in capsys.readouterr().err


def test_the_merged_model_is_the_base_but_for_what_was_trained(base, adapter, whole):
    merged = table(whole)
    assert json.loads((whole / "config.json").read_text())["vocab_size"] == len(merged) == 262
    assert merged[:260].tobytes() == table(base / "model").tobytes()
    rows = safetensors.numpy.load_file(adapter / "adapter_model.safetensors")[TRAINED]
    np.testing.assert_array_equal(merged[260:], rows)
    assert ids_in(whole, "<go>a</go>")[::2] == [260, 261]


def test_the_tokens_are_the_merged_models_own(base, whole, capsys):
    words = ("data", "check", str(base / "recipe.yaml"), f"model.path={whole}")
    assert runs.status(*words) == 0
    said = capsys.readouterr().err
    assert "whose rows stay as they are: '<go>' is 260, '</go>' is 261." in said
    assert "grow" not in said


def test_the_same_command_again_changes_nothing_and_other_tokens_are_another_run(
    base, adapter, capsys
):
    before = runs.adapter_bytes(base / "run")
    assert runs.status("train", str(base / "recipe.yaml")) == 0
    assert "All 2 steps of this run are done" in capsys.readouterr().err
    assert runs.adapter_bytes(base / "run") == before
    other = ("model.new_tokens=['<go>', '<no>']",)
    assert runs.status("train", str(base / "recipe.yaml"), *other) == 2
    assert " new_tokens" in capsys.readouterr().err


def test_tokens_of_which_nothing_is_trained_are_refused(base, tmp_path, capsys):
    words = ("lora.trainable_token_indices=null", f"train.output_dir={tmp_path / 'run'}")
    assert runs.status("train", str(base / "recipe.yaml"), *words) == 2
    said = capsys.readouterr().err
    assert "model.new_tokens adds the tokens 260, 261, and none of their rows are trained." in said
    assert "`lora.trainable_token_indices: [260, 261]`" in said
    assert not (tmp_path / "run").exists()


def test_the_rows_are_shown_and_checked_with_the_new_tokens(base, capsys):
    assert runs.status("data", "show", str(base / "recipe.yaml"), "--row", "1", "--ids") == 0
    shown = capsys.readouterr().out
    assert "[[260 " in shown
    assert " 261 259]]" in shown
    assert runs.status("data", "check", str(base / "recipe.yaml")) == 0


def test_a_whole_model_is_tuned_with_its_new_tokens(base, tmp_path):
    words = ("tuning=full", f"train.output_dir={tmp_path / 'run'}", "train.max_steps=1")
    recipe = json.loads((base / "recipe.yaml").read_text())
    del recipe["lora"]
    path = base / "full.yaml"
    path.write_text(json.dumps(recipe))
    assert runs.status("train", str(path), *words) == 0
    assert table(tmp_path / "run" / "model").shape[0] == 262
    assert ids_in(tmp_path / "run" / "model", "<go>") == [260]


def test_what_is_made_of_an_adapter_keeps_its_tokenizer(adapter, tmp_path):
    assert runs.status("adapter", "fold", str(adapter), "--output", str(tmp_path / "folded")) == 0
    for name in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / "folded" / name).read_bytes() == (adapter / name).read_bytes()
    assert loaded.find(tmp_path / "folded", None).source.config()["vocab_size"] == 262


@pytest.mark.parametrize("named", [NEW, []], ids=["named again", "by the adapter alone"])
def test_another_run_goes_on_from_its_adapter(adapter, base, tmp_path, named):
    words = [f"lora.init_from={adapter}", f"train.output_dir={tmp_path / 'run'}"]
    words += [f"model.new_tokens={json.dumps(named)}", "train.learning_rate=1e-30"]
    assert runs.status("train", str(base / "recipe.yaml"), *words) == 0
    before, after = (
        runs.records(path)[-1]["eval_loss"] for path in (base / "run", tmp_path / "run")
    )
    assert after == before
    rows = [
        safetensors.numpy.load_file(path / "adapter_model.safetensors")[TRAINED]
        for path in (adapter, tmp_path / "run" / "adapter")
    ]
    np.testing.assert_array_equal(*rows)
    words = tokenizer.load_folder(tmp_path / "run" / "adapter").get_vocab()
    assert set(NEW) <= words.keys()


@pytest.mark.parametrize("wanted", [[*NEW, "<more>"], ["<more>", "<less>"]])
def test_other_new_tokens_than_its_adapter_has_are_refused(adapter, base, tmp_path, capsys, wanted):
    words = [f"lora.init_from={adapter}", f"train.output_dir={tmp_path / 'run'}"]
    other = f"model.new_tokens={json.dumps(wanted)}"
    assert runs.status("train", str(base / "recipe.yaml"), *words, other) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "model.new_tokens adds '<more>'" in said
    assert "trained beside 262 tokens without it" in said
