"""A whole run by its one function: what it leaves alone, and the order of what it says."""

from __future__ import annotations

import hashlib

import jax
import numpy as np
import pytest
import runs

from jaxft.errors import WeightsError
from jaxft.training.prepare.leaves import Leaves
from jaxft.training.run import finish, loop


@pytest.fixture
def config(recipe, tmp_path):
    return runs.load(recipe, f"train.output_dir={tmp_path / 'run'}")


@pytest.fixture
def seen(monkeypatch):
    """The leaves that the run loads, and begins with."""
    seen, begin = [], Leaves.begin

    def begin_and_keep(self, plan):
        seen.append(begin(self, plan))
        return seen[0]

    monkeypatch.setattr(Leaves, "begin", begin_and_keep)
    return seen


def digest(tree):
    """Return a digest of the bytes of all leaves."""
    sha = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        sha.update(np.asarray(leaf).tobytes())
    return sha.hexdigest()


def test_a_run_leaves_the_base_as_it_was_and_says_results_last(
    config, seen, leaves, straight, monkeypatch, capsys
):
    monkeypatch.setattr(finish, "_ANSWER_TOKENS", 4)
    loop.run(config)
    assert digest(seen[0]) == digest(leaves)
    assert runs.records(config.train.output_dir) == runs.records(straight[0])
    captured = capsys.readouterr()
    notes = [line.split(":")[0] for line in captured.err.splitlines()]
    assert notes[:4] == ["Devices", "Base model", "Training rows", "Held-out rows"]
    assert "[[" in captured.err
    lines = captured.out.splitlines()
    assert lines[0].strip() == "Held-out rows"
    prompts = [line.removeprefix("prompt: ") for line in lines if line.startswith("prompt:")]
    assert len(prompts) == 3
    adapter = config.train.output_dir / "adapter"
    shortest = min(prompts, key=len)
    assert lines[-2] == f"Adapter: {adapter}"
    assert lines[-1].startswith(f"Try it:  jaxft generate --adapter {adapter} --prompt ")
    assert lines[-1].endswith((f" {shortest}", f" '{shortest}'"))


def test_weights_that_cannot_be_loaded_leave_no_folder(config, monkeypatch):
    def fail(self, plan):
        raise WeightsError("found", "remedy")

    monkeypatch.setattr(Leaves, "begin", fail)
    with pytest.raises(WeightsError):
        loop.run(config)
    assert not config.train.output_dir.exists()
