"""The end of a run: an adapter that was read back, and answers that can be compared."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import runs
import safetensors.numpy

from jaxft import tree as trees
from jaxft.adapters import peft_format
from jaxft.errors import AdapterError
from jaxft.lora import mask
from jaxft.training.evaluate import Evaluation
from jaxft.training.run import finish
from jaxft.training.run.trainer import Outcome


@pytest.fixture
def outcome(plan_of, straight, leaves):
    """What the recipe's run left."""
    start, frozen = trees.partition(leaves, mask.trainable_mask(plan_of().network, leaves))
    return Outcome(start, straight[1], frozen, before=None, after=None)


@pytest.fixture
def plan(plan_of, tmp_path):
    return plan_of(f"train.output_dir={tmp_path / 'run'}")


def test_the_adapter_holds_what_was_trained_under_pefts_names(plan, outcome):
    folder = finish.write_adapter(plan, outcome)
    assert folder == plan.folder / "adapter"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.2)
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert config["base_model_name_or_path"] == plan.source.name
    tensors = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * 2
    block = outcome.trainable["groups"]["0"]["0"]["attn"]
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_{}.weight"
    np.testing.assert_array_equal(tensors[name.format("A")], block["v"]["lora_a"][1])
    np.testing.assert_array_equal(tensors[name.format("B")], block["v"]["lora_b"][1].T)


def test_the_card_says_what_the_run_knows(plan, outcome):
    known = {"before": Evaluation(2.0, 9), "after": Evaluation(1.5, 9), "num_steps": 6}
    folder = finish.write_adapter(plan, outcome._replace(**known))
    lines = (folder / "README.md").read_text().splitlines()
    assert "| Training rows | 60 of train.jsonl, of at most 64 tokens |" in lines
    assert "| Steps | 6, of 8 sequences |" in lines
    held_out = "2.0000 before, 1.5000 after, in nats a token, on 9 rows of eval.jsonl"
    assert f"| Held-out loss | {held_out} |" in lines
    # Paths are nobody else's.
    assert str(plan.folder.parent) not in "\n".join(lines)
    again = finish.write_adapter(plan, outcome._replace(before=None, after=None))
    assert "Held-out loss" not in (again / "README.md").read_text()


def test_the_comparison_on_held_out_rows_is_in_the_folder(plan, outcome, capsys):
    folder = finish.write_adapter(plan, outcome)
    content = json.loads((folder / "verification.json").read_text())
    rows = [plan.data.eval.examples[0][index].input_ids for index in range(4)]
    assert content.pop("largest_logit") > 0.1
    assert content == {
        "compared": "the adapter in this folder, read back, with the live model",
        "rows": "held-out rows",
        "num_rows": 4,
        "num_tokens": sum(map(len, rows)),
        "computed_in": "float32",
        "max_difference": 0.0,
        "max_relative_difference": 0.0,
        "mean_kl": 0.0,
        "tolerance": 1e-5,
    }
    said = "gives the live model's logits exactly, on 4 rows (held-out rows)"
    assert f"The adapter, read back, {said}." in capsys.readouterr().err
    card = (folder / "README.md").read_text().splitlines()
    assert f"| Verified | read back, it {said} |" in card


def test_without_held_out_rows_training_rows_are_compared(plan_of, outcome, tmp_path):
    words = ("data.eval=null", "train.eval_strategy=no", f"train.output_dir={tmp_path / 'run'}")
    folder = finish.write_adapter(plan_of(*words), outcome)
    assert json.loads((folder / "verification.json").read_text())["rows"] == "training rows"


@pytest.mark.parametrize("wrong", [{"lora_alpha": 9}, {"use_rslora": True}])
def test_a_config_that_says_something_else_is_noticed(plan, outcome, monkeypatch, older, wrong):
    write = peft_format.adapter_config
    monkeypatch.setattr(peft_format, "adapter_config", lambda *given: write(*given) | wrong)
    with pytest.raises(AdapterError, match="read back it is not the live model's: its logits"):
        finish.write_adapter(plan, outcome)
    assert older() == {"adapter_config.json": "older"}


@pytest.fixture
def older(plan):
    """The bytes of an adapter that is there already."""
    folder = plan.folder / "adapter"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("older")
    return lambda: {path.name: path.read_text() for path in folder.iterdir()}


def test_a_write_that_changes_a_number_is_noticed(plan, outcome, monkeypatch, older):
    save = safetensors.numpy.save_file

    def save_wrongly(tensors, path, **options):
        name = next(name for name in sorted(tensors) if "lora_B" in name)
        wrong = tensors[name].copy()
        wrong[3] += 0.01
        save({**tensors, name: wrong}, path, **options)

    monkeypatch.setattr(peft_format.safetensors.numpy, "save_file", save_wrongly)
    with pytest.raises(AdapterError, match="read back it is not the live model's: its logits"):
        finish.write_adapter(plan, outcome)
    assert older() == {"adapter_config.json": "older"}
    assert [path.name for path in plan.folder.iterdir()] == ["adapter"]


def test_a_write_that_is_cut_short_is_noticed(plan, outcome, monkeypatch, older):
    save = safetensors.numpy.save_file

    def save_half(tensors, path, **options):
        save(tensors, path, **options)
        path.write_bytes(path.read_bytes()[:-64])

    monkeypatch.setattr(peft_format.safetensors.numpy, "save_file", save_half)
    with pytest.raises(AdapterError, match="cannot be read"):
        finish.write_adapter(plan, outcome)
    assert older() == {"adapter_config.json": "older"}


def test_answers_are_the_bases_beside_the_tuned_models(plan_of, outcome, tmp_path):
    chats = runs.make_rows(3, seed=3)
    rows = [
        {"prompt": "", "completion": "nothing to go on from"},
        {"prompt": "go ye", "completion": " forth"},
        *chats,
    ]
    mixed = runs.write_rows(tmp_path / "eval.jsonl", rows)
    plan = plan_of(f"data.eval={mixed}")
    shown = finish.answers(plan, outcome)
    questions = [row["messages"][0]["content"] for row in chats[:2]]
    assert [sample.prompt for sample in shown] == ["go ye", *questions]
    assert any(sample.base != sample.tuned for sample in shown)
    untrained = outcome._replace(trainable=jax.tree.map(np.zeros_like, outcome.trainable))
    assert [sample.tuned for sample in finish.answers(plan, untrained)] == [
        sample.base for sample in shown
    ]
    # Also where adapters did not begin as nothing.
    elsewhere = outcome._replace(start=outcome.trainable, trainable=outcome.start)
    assert [sample.base for sample in finish.answers(plan, elsewhere)] == [
        sample.base for sample in shown
    ]


def test_without_held_out_rows_there_are_no_answers(plan_of, outcome):
    plan = plan_of("data.eval=null", "train.eval_strategy=no")
    assert finish.answers(plan, outcome) == []
