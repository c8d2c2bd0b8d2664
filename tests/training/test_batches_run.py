"""Whole runs over batches of several lengths, and over rows without a known end."""

from __future__ import annotations

import signal

import jax
import numpy as np
import pytest
import runs

from jaxft.errors import Stopped
from jaxft.training.objective import CAUSAL_LM, batch_shardings
from jaxft.training.prepare import folder

pytestmark = pytest.mark.slow

# 60 rows, and 4 devices x 1 row x 2 micro-batches: the last step begins with the rows anew.
STREAM = (
    "data.streaming=true",
    "data.shuffle_buffer=16",
    "data.packing=false",
    "train.max_steps=9",
)
GROUPED = ("data.packing=false", "data.group_by_length=true", "train.max_steps=8")


@pytest.fixture
def run(plan_of, leaves, make_trainer, tmp_path):
    """Return a function that trains in a folder, up to a signal after a step if one is named."""

    def run(name, *overrides, stop_after=None):
        plan = plan_of(f"train.output_dir={tmp_path / name}", *overrides)
        with folder.open_checkpoints(plan) as checkpoints:
            wrap = runs.after_step(stop_after, runs.send(signal.SIGTERM))
            make_trainer(plan, leaves, wrap=wrap).run(checkpoints)
        return runs.records(tmp_path / name)

    return run


@pytest.mark.parametrize("has_journal", [True, False])
def test_a_stream_that_was_stopped_goes_on_as_if_it_was_not(run, tmp_path, has_journal):
    straight = run("straight", *STREAM)
    with pytest.raises(Stopped):
        run("stopped", *STREAM, stop_after=5)
    journal = tmp_path / "stopped" / "stream.jsonl"
    assert len(journal.read_text().splitlines()) > 3
    if not has_journal:
        journal.unlink()
    assert run("stopped", *STREAM) == straight
    assert straight[-1]["step"] == 9


def test_a_whole_run_over_a_stream_ends_with_an_adapter(recipe, tmp_path, capsys):
    words = ("train", str(recipe), f"train.output_dir={tmp_path / 'run'}", *STREAM)
    assert runs.status(*words) == 0
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
    assert "the rows are read as they are needed" in capsys.readouterr().err


def test_a_stream_without_an_end_needs_to_know_when_to_stop(recipe, tmp_path, capsys):
    words = ("train", str(recipe), f"train.output_dir={tmp_path / 'run'}", *STREAM[:-1])
    assert runs.status(*words, "train.max_steps=-1") == 2
    assert "Set train.max_steps" in capsys.readouterr().err


def test_grouped_batches_see_each_token_once_and_compile_a_few_programs(
    plan_of, leaves, make_trainer, tmp_path
):
    plan = plan_of(f"train.output_dir={tmp_path / 'run'}", *GROUPED)
    assert plan.train.steps_per_epoch == 8
    with folder.open_checkpoints(plan) as checkpoints:
        trainer = make_trainer(plan, leaves)
        trainer.run(checkpoints)
    lines = [line for line in runs.records(tmp_path / "run") if "loss" in line]
    assert sum(line["tokens"] for line in lines) == plan.data.train.examples[0].report.tokens
    assert 2 <= trainer.programs.train_step._cache_size() <= 4


def test_how_long_a_batch_is_padded_changes_nothing_in_its_step(plan_of, leaves, make_trainer):
    plan = plan_of(*GROUPED)
    trainer = make_trainer(plan, leaves)
    batch = min(map(plan.train.batch, range(8)), key=lambda batch: batch["labels"].shape[2])
    rest = plan.train.sequence_length - batch["labels"].shape[2]
    assert rest > 0
    padding = [(0, 0), (0, 0), (0, rest)]
    padded = {
        name: array
        if name == "row_ids"
        else np.pad(array, padding, constant_values=-100 if name == "labels" else 0)
        for name, array in batch.items()
    }
    found = []
    for each in (batch, padded):
        state = trainer.state_of(trainer.start)
        placed = jax.device_put(each, batch_shardings(CAUSAL_LM, plan.mesh))
        found.append(trainer.programs.train_step(state, trainer.frozen, placed, np.uint32(7))[1])
    for value, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-5)
