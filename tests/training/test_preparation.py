"""From a recipe to a plan: its numbers, and what is refused before anything is done."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest
import runs

from jaxft import tree as trees
from jaxft.errors import ConfigError
from jaxft.lora import init, mask, numbers
from jaxft.models.network import base_network
from jaxft.models.spec import Learned
from jaxft.training.prepare import preparation, reading, request


def test_a_global_batch_is_rows_times_devices_times_accumulation(plan_of):
    plan = plan_of("train.per_device_train_batch_size=3", "train.gradient_accumulation_steps=5")
    assert (plan.train.global_batch, plan.train.accumulation) == (3 * 4 * 5, 5)
    assert plan.mesh.shape == {"data": 4, "fsdp": 1, "tensor": 1}


def test_evaluation_takes_the_rows_in_order_without_accumulation(plan_of):
    plan = plan_of("train.per_device_eval_batch_size=2", "train.dataloader_drop_last=true")
    assert (plan.eval.global_batch, plan.eval.accumulation) == (8, 1)
    assert plan.eval.epochs.order(0).tolist() == list(range(plan.eval.num_sequences))
    assert sum(plan.eval.batch(0)["segment_ids"].max(-1)[0]) == plan.data.eval.num_examples


@pytest.mark.parametrize(
    ("words", "num_steps"),
    [
        (["train.max_steps=4"], 4),
        (["train.max_steps=-1", "train.num_train_epochs=2.0"], 12),
        (["train.max_steps=-1", "train.num_train_epochs=0.4"], 3),  # 2.4 steps, the last begun
    ],
)
def test_the_number_of_steps_is_said_or_follows_from_the_epochs(plan_of, words, num_steps):
    assert plan_of(*words).num_steps == num_steps


def test_without_held_out_rows_there_is_nothing_to_evaluate(plan_of):
    plan = plan_of("data.eval=null", "train.eval_strategy=no")
    assert (plan.eval, plan.data.eval) == (None, None)


def test_the_tree_is_every_leaf_of_the_base_and_fresh_adapters(plan_of, leaves):
    plan = plan_of()
    _, _, fixed, frozen = mask.parts(plan.network, leaves)
    tensors = plan.source.checkpoint().infos()
    assert trees.num_parameters(frozen) == sum(math.prod(info.shape) for info in tensors.values())
    adapters = trees.flatten(init.init_adapters(plan.network, kind=True, seed=7, mesh=plan.mesh))
    flat = trees.flatten(leaves)
    assert flat.keys() == trees.flatten(trees.combine(frozen, fixed)).keys() | adapters.keys()
    expected = numbers.leaves(plan.config.lora, plan.family, plan.network)
    assert jax.tree.all(jax.tree.map(np.array_equal, fixed, expected))
    for path, leaf in adapters.items():
        assert np.array_equal(flat[path], leaf), path


def test_rows_longer_than_the_table_of_positions_are_refused(recipe, tmp_path):
    asked = request.of_recipe(runs.load(recipe, f"train.output_dir={tmp_path / 'run'}"))
    assert asked.config.data.max_length == 64

    def planned(max_tokens):
        positions = Learned(rows=max_tokens + 2, offset=2)
        spec = dataclasses.replace(asked.base.spec, positions=positions)
        held_by = dataclasses.replace(asked.base, spec=spec)
        with_table = dataclasses.replace(asked, base=held_by, network=base_network(spec))
        return preparation.prepare(with_table, None).plan

    with pytest.raises(ConfigError, match=r"max_length=64, and the model has 63 pos") as raised:
        planned(63)
    assert raised.value.remedy == "Set data.max_length to 63 or less."
    assert planned(64).train.sequence_length == 64


def test_encoding_that_takes_a_while_says_so(plan_of, tmp_path, monkeypatch, capsys):
    rows = runs.write_rows(tmp_path / "rows.jsonl", runs.make_rows(5, seed=9))
    plan_of(f"data.train={rows}")
    assert ": encoding: " not in capsys.readouterr().err
    monkeypatch.setattr(reading, "_SILENT_S", 0.0)
    plan_of(f"data.train={rows}")
    assert "Training rows: encoding: 0." in capsys.readouterr().err
