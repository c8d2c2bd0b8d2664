"""A run that goes on from an adapter: what it begins with, what it is measured against."""

from __future__ import annotations

import shutil
import signal

import jax
import numpy as np
import pytest
import runs
import safetensors.numpy

from jaxft import tree as trees
from jaxft.adapters import peft_format
from jaxft.errors import AdapterError, CheckpointError, ConfigError, Stopped
from jaxft.training.prepare import folder
from jaxft.training.run import finish

pytestmark = pytest.mark.slow

STILL = "train.learning_rate=1e-30"  # no float32 of a size with an adapter's moves by that
EMBED = "base_model.model.model.embed_tokens.weight"
STOPS = runs.after_step(1, runs.send(signal.SIGTERM))  # after the first step


@pytest.fixture(scope="module")
def first(plan_of, leaves, make_trainer, tmp_path_factory):
    """The folder of a run that ended with an adapter, what came of it, and its answers."""
    path = tmp_path_factory.mktemp("first") / "run"
    plan = plan_of(f"train.output_dir={path}")
    with folder.open_checkpoints(plan) as checkpoints:
        outcome = make_trainer(plan, leaves).run(checkpoints)
    finish.write_adapter(plan, outcome)
    return path, outcome, finish.answers(plan, outcome)


def going_on(first):
    return f"lora.init_from={first[0] / 'adapter'}"


def flat(tree):
    return {path: np.asarray(leaf) for path, leaf in trees.flatten(tree).items()}


def test_training_begins_at_the_adapters_values_and_before_is_the_plain_base(
    first, train, plan_of, tree_of, tmp_path
):
    _, outcome, answers = first
    words = (going_on(first), STILL, "lora.lora_dropout=0.0")
    _, again = train(*words, leaves=tree_of(*words))
    assert again.before == outcome.before
    assert again.after == outcome.after
    assert again.after != again.before
    jax.tree.map(np.testing.assert_array_equal, again.trainable, outcome.trainable)
    plan = plan_of(f"train.output_dir={tmp_path / 'run'}", *words)
    finish.write_adapter(plan, again)
    both = [peft_format.read_adapter(path / "adapter")[1] for path in (tmp_path / "run", first[0])]
    assert both[0].keys() == both[1].keys()
    for name, tensor in both[0].items():
        np.testing.assert_array_equal(tensor, both[1][name])
    assert finish.answers(plan, again) == answers


def test_a_run_that_goes_on_moves_on_and_is_resumed_to_the_bit(first, train, tmp_path):
    _, whole = train(going_on(first))
    moved = flat(whole.trainable)
    for path, leaf in flat(first[1].trainable).items():
        assert not np.array_equal(moved[path], leaf)
    again = f"train.output_dir={tmp_path / 'again'}"
    with pytest.raises(Stopped):
        train(going_on(first), again, wrap=STOPS)
    _, resumed = train(going_on(first), again)
    jax.tree.map(np.testing.assert_array_equal, resumed.trainable, whole.trainable)
    assert resumed.before == first[1].before
    # From another folder, or from nothing, it is another run.
    shutil.copytree(first[0] / "adapter", tmp_path / "other")
    for other in (f"lora.init_from={tmp_path / 'other'}", "lora.init_from=null"):
        with pytest.raises(CheckpointError, match=r"differs in lora\.init_from "):
            train(other, again)


def test_another_adapter_than_the_recipe_describes_is_refused(first, plan_of):
    with pytest.raises(AdapterError, match=r"r 4 there and 8 in the recipe\.\nWrite `r: 4`"):
        plan_of(going_on(first), "lora.r=8")
    with pytest.raises(AdapterError, match="lora_alpha 8 there and 16 in"):
        plan_of(going_on(first), "lora.lora_alpha=16")
    with pytest.raises(AdapterError, match=r"target_modules .* in the recipe"):
        plan_of(going_on(first), "lora.target_modules=[q_proj]")


def test_what_is_written_over_is_not_gone_on_from(first, plan_of):
    with pytest.raises(ConfigError, match="would be written over"):
        plan_of(going_on(first), f"train.output_dir={first[0]}")


def test_an_embedding_beside_the_adapter_is_part_of_the_base_and_is_written_again(
    first, train, plan_of, prepared_of, tmp_path
):
    shutil.copytree(first[0] / "adapter", tmp_path / "beside")
    file = tmp_path / "beside" / peft_format.TENSOR_FILE
    tensors = safetensors.numpy.load_file(file)
    plain = plan_of().source.checkpoint().read("model.embed_tokens.weight")
    tensors[EMBED] = (plain * np.float32(1.25)).astype(np.float32)
    safetensors.numpy.save_file(tensors, file)
    words = (f"lora.init_from={tmp_path / 'beside'}", STILL)
    plan, begun = prepared_of(f"train.output_dir={tmp_path / 'run'}", *words)
    tree = begun.begin(plan)
    np.testing.assert_array_equal(tree["embed"]["kernel"], tensors[EMBED])
    _, outcome = train(*words, leaves=tree)
    assert outcome.before != first[1].before
    finish.write_adapter(plan, outcome)
    written = peft_format.read_adapter(tmp_path / "run" / "adapter")[1]
    assert {name: each.tobytes() for name, each in written.items()} == {
        name: each.tobytes() for name, each in tensors.items()
    }
