"""Full and partial tuning by the same command: only the mask, and what is written, differ."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import runs
import safetensors.numpy

from jaxft import tree as trees
from jaxft.config import LoraConfig, TuningConfig
from jaxft.errors import CheckpointError, ConfigError
from jaxft.lora import mask, tuning
from jaxft.models import bind
from jaxft.weights import base

pytestmark = pytest.mark.slow

NO_ADAPTER = ["lora.r=8", "lora.lora_alpha=8", "lora.lora_dropout=0.0"]
SHORT = ["train.max_steps=3", "train.eval_steps=3", "train.learning_rate=0.002"]


@pytest.fixture(scope="module")
def run_of(recipe, tmp_path_factory):
    """Return a function that runs `jaxft train` once for each kind of tuning: its folder."""
    made = {}

    def run(*words):
        if words not in made:
            made[words] = tmp_path_factory.mktemp("tuned") / "run"
            place = f"train.output_dir={made[words]}"
            assert runs.status("train", str(recipe), place, *words, *NO_ADAPTER, *SHORT) == 0
        return made[words]

    return run


def weights_in(model):
    return safetensors.numpy.load_file(model / "model.safetensors")


def eval_losses(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["eval_loss"] for line in lines if "eval_loss" in line]


def test_full_tuning_moves_every_tensor_and_writes_a_model(run_of, workshop):
    run = run_of("tuning=full")
    before, after = weights_in(workshop / "model"), weights_in(run / "model")
    assert before.keys() == after.keys()  # the tied head stays tied
    assert all((before[name] != after[name]).any() for name in before)
    assert {name: tensor.dtype for name, tensor in after.items()} == dict.fromkeys(after, "float32")
    first, *_, last = eval_losses(run)
    assert last < first
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "metrics.jsonl",
        "model",
    ]


def test_the_written_model_answers_and_is_a_base_for_the_next_run(run_of, recipe, tmp_path, capsys):
    model = run_of("tuning=full") / "model"
    words = ["generate", "--model", str(model), "--prompt", "go", "--max-new-tokens", "3"]
    assert runs.status(*words) == 0
    place = f"train.output_dir={tmp_path / 'next'}"
    again = ["train", str(recipe), f"model.path={model}", place, *SHORT]
    assert runs.status(*again) == 0
    assert eval_losses(tmp_path / "next")[0] == eval_losses(run_of("tuning=full"))[-1]


def test_freeze_trains_what_is_named_and_leaves_the_rest_bit_for_bit(run_of, workshop):
    words = "tuning={method: freeze, modules: [mlp, model.norm], layers: [-1]}"
    # The file is in float32, and frozen leaves of the model in memory are rounded.
    run = run_of(words, "model.dtype=bfloat16")
    before, after = weights_in(workshop / "model"), weights_in(run / "model")
    moved = {name for name in before if (before[name] != after[name]).any()}
    mlp = {f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
    assert moved == mlp | {"model.norm.weight"}
    assert {tensor.dtype.name for tensor in after.values()} == {"float32"}
    content = json.loads((run / "model" / "verification.json").read_text())
    assert content["num_untrained_equal_to_base_file"] == len(before) - len(moved)


def test_another_kind_of_tuning_does_not_go_on_from_its_checkpoints(run_of, plan_of):
    run = run_of("tuning=full")
    with pytest.raises(CheckpointError, match="tuning"):
        plan_of(f"train.output_dir={run}", *NO_ADAPTER, *SHORT)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["tuning=full"], "the lora section asks for adapters"),
        (["tuning=freeze", *NO_ADAPTER], "neither tuning.modules nor tuning.layers"),
        (["tuning={method: full, layers: [1]}", *NO_ADAPTER], "tuning.layers is set"),
    ],
)
def test_what_contradicts_itself_is_refused(words, match, plan_of):
    with pytest.raises(ConfigError, match=match):
        plan_of(*words)


def network_of(plan_of, **fields):
    plan = plan_of()
    family, spec = base.read_spec(plan.source)
    config = TuningConfig(method="freeze", **fields)
    return tuning.tuned_network(config, LoraConfig(), family, spec)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"modules": ["mpl"]}, "tuning.modules has 'mpl'"),
        ({"modules": "("}, "no regular expression"),
        ({"modules": r"model\.norms"}, "matches no module"),
        ({"layers": [2]}, "the model has 2 layers"),
        ({"layers": [-3, 0]}, "tuning.layers has -3"),
    ],
)
def test_a_name_that_is_not_there_is_an_error(fields, match, plan_of):
    with pytest.raises(ConfigError, match=match):
        network_of(plan_of, **fields)


def test_layers_cut_the_groups_and_a_tied_head_is_its_embedding(plan_of):
    network = network_of(plan_of, layers=[-1])
    assert [(group.first_layer, group.repeats) for group in network.groups] == [(0, 1), (1, 1)]
    leaves = bind.abstract_tree(network)
    marked = trees.flatten(mask.trainable_mask(network, leaves))
    assert {path for path, is_trained in marked.items() if is_trained} == {
        path for path in marked if path.startswith("groups/1/")
    }
    tied = network_of(plan_of, modules=["lm_head"])
    assert tied.outer_trained == ("embed/kernel",)
    assert not tied.has_own_head
    by_regex = network_of(plan_of, modules=r"model\.layers\.0\.self_attn\.[qv]_proj")
    assert by_regex.trained_leaves() == {f"groups/0/0/attn/{part}/kernel" for part in "qv"}


def test_masters_are_float32_over_a_bfloat16_base(tree_of):

    config = ["model.dtype=bfloat16", "tuning={method: freeze, layers: [1]}", *NO_ADAPTER]
    tree = tree_of(*config)
    dtypes = {path: str(leaf.dtype) for path, leaf in trees.flatten(tree).items()}
    assert {dtypes[path] for path in dtypes if path.startswith("groups/1/")} == {"float32"}
    assert {dtypes[path] for path in dtypes if not path.startswith("groups/1/")} == {"bfloat16"}
    jax.block_until_ready(tree)
    assert np.isfinite(np.asarray(tree["embed"]["kernel"], np.float32)).all()
