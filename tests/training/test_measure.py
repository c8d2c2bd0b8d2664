"""A run that begins with EVA: ranks are measured once, and a run that goes on has the same."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import runs
import safetensors.numpy
import tiny

from jaxft import tree as trees
from jaxft.adapters import peft_format
from jaxft.errors import AdapterError, CheckpointError
from jaxft.training.prepare import measure
from jaxft.training.run import loop

pytestmark = pytest.mark.slow

EVA = ["lora.init_lora_weights=eva", "lora.target_modules=all-linear", "train.max_steps=4"]
SHORT = ["data.eval=null", "train.eval_strategy=no", "train.per_device_train_batch_size=4"]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Overrides of a run with EVA in this module's folder."""
    return [*EVA, *SHORT, f"train.output_dir={tmp_path_factory.mktemp('eva') / 'run'}"]


@pytest.fixture(scope="module")
def prepared(prepared_of, words):
    return prepared_of(*words)


@pytest.fixture(scope="module")
def plan(prepared):
    return prepared.plan


@pytest.fixture(scope="module")
def run(recipe, words, plan):
    """The folder of the run."""
    assert runs.status("train", str(recipe), *words) == 0
    return plan.folder


@pytest.fixture
def elsewhere(tmp_path):
    """Overrides of such a run in a folder that is not there yet."""
    return [*EVA, *SHORT, f"train.output_dir={tmp_path / 'run'}"]


def ranks_of(plan):
    return {name: len(a) for name, a in plan.directions.items()}


def test_the_budget_is_kept_and_a_is_orthonormal_and_b_zero(prepared):
    plan, leaves = prepared
    assert sum(ranks_of(plan).values()) == 14 * 4
    assert len(set(ranks_of(plan).values())) > 1
    tree = trees.flatten(leaves.begin(plan))
    for path, leaf in tree.items():
        if path.endswith("lora_a"):
            for a, rank in zip(np.asarray(leaf), tiny.ranks_of(plan.network, path), strict=True):
                np.testing.assert_allclose(a[:rank] @ a[:rank].T, np.eye(rank), atol=1e-5)
                assert not a[rank:].any()
        if path.endswith("lora_b"):
            assert not np.asarray(leaf).any()


def test_measuring_again_gives_the_same_bytes(plan, plan_of, elsewhere):
    again = plan_of(*elsewhere).directions
    assert again.keys() == plan.directions.keys()
    for name, a in plan.directions.items():
        assert a.tobytes() == again[name].tobytes()


def test_how_devices_share_the_work_changes_nothing_but_rounding(plan, plan_of, elsewhere):
    mesh = ["mesh.data=1", "mesh.fsdp=2", "mesh.tensor=2", "train.per_device_train_batch_size=8"]
    shared = plan_of(*elsewhere, *mesh)
    assert ranks_of(shared) == ranks_of(plan)
    for name, a in plan.directions.items():
        np.testing.assert_allclose(shared.directions[name], a, atol=2e-3)


def test_packing_and_padding_change_nothing_but_the_order(plan_of, elsewhere):
    """Over an epoch of one batch, the same tokens are measured."""
    one_batch = ["train.gradient_accumulation_steps=1", "train.per_device_train_batch_size=15"]
    packed, apart = (
        plan_of(*elsewhere, *one_batch, f"data.packing={packing}") for packing in ("true", "false")
    )
    assert packed.train.steps_per_epoch == apart.train.steps_per_epoch == 1
    assert packed.train.fill != apart.train.fill
    assert ranks_of(packed) == ranks_of(apart)
    for name, a in packed.directions.items():
        np.testing.assert_allclose(apart.directions[name], a, atol=2e-3)


def test_the_run_writes_its_start_and_an_adapter_of_these_ranks(run, plan):
    start = safetensors.numpy.load_file(run / measure.FILE)
    assert start.keys() == plan.directions.keys()
    for name, a in plan.directions.items():
        np.testing.assert_array_equal(start[name], a)
    content, tensors = peft_format.read_adapter(run / "adapter")
    assert content["init_lora_weights"] == "eva"
    assert content["eva_config"]["rho"] == 2.0
    assert ranks_of(plan) == {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): len(tensor)
        for name, tensor in tensors.items()
        if "lora_A" in name
    }
    lora = peft_format.read_lora_config(content, run)
    assert lora.rank_pattern == plan.config.lora.rank_pattern
    assert (run / "config.yaml").read_text().count("rank_pattern: {}") == 1


def test_a_run_that_goes_on_does_not_measure_and_ends_alike(run, words, recipe, monkeypatch):
    before = runs.adapter_bytes(run)
    shutil.rmtree(run / "adapter")
    shutil.rmtree(run / "checkpoints" / "4")  # as if it had been stopped at step 2 or 3

    def fail(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(measure, "_measured", fail)
    loop.run(runs.load(recipe, *words))
    assert runs.adapter_bytes(run) == before


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("missing", "cannot be read"),
        ("damaged", "cannot be read"),
        ("another's", r"q_proj \(2, 5\), which the recipe does not adapt so"),
        ("more", "which the recipe does not adapt so"),
        ("fewer", "ranks in all, where the recipe gives 56"),
    ],
)
def test_checkpoints_without_their_ranks_are_refused(run, plan_of, words, damage, found):
    path = run / measure.FILE
    content = path.read_bytes()
    directions = safetensors.numpy.load_file(path)
    name, a = next((name, a) for name, a in directions.items() if len(a) > 1)
    written = {
        "another's": {"model.layers.0.self_attn.q_proj": np.ones((2, 5), np.float32)},
        "more": directions | {name: np.tile(a, (9, 1))},  # than the module can get
        "fewer": directions | {name: a[:1]},  # than there are to give
    }
    try:
        if damage == "missing":
            path.unlink()
        elif damage == "damaged":
            path.write_bytes(content[:100])
        else:
            safetensors.numpy.save_file(written[damage], path)
        with pytest.raises(CheckpointError, match=rf"eva\.safetensors, with the ranks.*{found}"):
            plan_of(*words)
    finally:
        path.write_bytes(content)


def test_checkpoints_of_another_measurement_are_refused(run, plan_of, words):
    plan_of(*words)
    with pytest.raises(CheckpointError, match="lora"):
        plan_of(*words, "lora.eva_config.tau=0.9")


def test_too_few_tokens_are_refused(plan_of, elsewhere, tmp_path):
    rows = runs.write_rows(tmp_path / "rows.jsonl", runs.make_rows(1, seed=9))
    with pytest.raises(AdapterError, match="tokens were measured, in which to find up to 32 dir"):
        plan_of(*elsewhere, f"data.train={rows}", "lora.r=16")


def test_what_modules_get_is_said_and_what_did_not_come_to_rest(plan_of, elsewhere, capsys):
    plan_of(*elsewhere, "lora.eva_config.tau=1.0")
    said = capsys.readouterr().err
    assert "EVA: " in said
    assert "56 over 14 modules" in said
    assert "  down_proj: " in said
    assert "had not come to rest" in said


def test_a_quantized_base_is_measured_quantized(plan, plan_of, elsewhere):
    quantized = plan_of(*elsewhere, "model.quantization=nf4")
    name = "model.layers.1.mlp.down_proj"
    assert np.abs(quantized.directions[name][0] - plan.directions[name][0]).max() > 1e-4


def test_without_the_label_mask_every_token_counts(plan_of, elsewhere, capsys):
    plan = plan_of(*elsewhere, "lora.eva_config.use_label_mask=false")
    tokens = int(plan.data.train.examples[0].lengths.sum())
    said = capsys.readouterr().err.partition("EVA: ")[2]
    num_batches = int(said.partition(" tokens in ")[2].split()[0])
    assert num_batches == plan.train.steps_per_epoch  # so that each was seen once
    assert int(said.split()[0].replace(",", "")) == tokens
