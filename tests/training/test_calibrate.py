"""Calibration: a run over a 4-bit base that suits its rows, the same whenever it is read."""

from __future__ import annotations

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from jaxft import tree as trees
from jaxft.errors import CheckpointError
from jaxft.lora import eva
from jaxft.models import forward, quantized
from jaxft.models.network import base_network
from jaxft.models.quantized import Quantized
from jaxft.parallel import mesh as meshes
from jaxft.training.objective import CAUSAL_LM, batch_shardings
from jaxft.training.prepare import calibrate, inputs

pytestmark = pytest.mark.slow

NF4 = "model.quantization=nf4"
NEAREST = (NF4, "model.calibration_tokens=0")


@pytest.fixture(scope="module")
def tree(tree_of):
    return tree_of(NF4)


def codes(tree):
    return {path: leaf for path, leaf in trees.flatten(tree).items() if isinstance(leaf, Quantized)}


def assert_same(tree, other):
    ours, theirs = codes(tree), codes(other)
    assert ours.keys() == theirs.keys() != set()
    for path, leaf in ours.items():
        jax.tree.map(np.testing.assert_array_equal, leaf, theirs[path])


def test_what_training_rows_give_is_nearer_the_original(plan_of, tree_of, tree, leaves):
    plan = plan_of()
    batch = plan.train.batch(0)
    rows = [jnp.asarray(batch[name][0]) for name in ("input_ids", "segment_ids", "positions")]

    def logits(tree):
        found = forward.logits(plan.network, tree, *rows, mesh=plan.mesh, dtype="float32")
        return np.asarray(found)[np.asarray(rows[1]) > 0]

    nearest, original = tree_of(*NEAREST), logits(leaves)
    change, of_nearest = (np.linalg.norm(logits(each) - original) for each in (tree, nearest))
    assert change < 0.9 * of_nearest


def test_reading_again_gives_the_same_codes(tree_of, tree):
    assert_same(tree, tree_of(NF4))


def test_zero_tokens_are_the_nearest_codes(tree_of, tree, leaves):
    nearest = codes(tree_of(*NEAREST))
    originals = trees.flatten(leaves)
    for path, leaf in nearest.items():
        made = [quantized.quantize(each, "nf4") for each in originals[path]]
        jax.tree.map(
            lambda ours, *each: np.testing.assert_array_equal(ours, np.stack(each)), leaf, *made
        )
    assert any((leaf.codes != nearest[path].codes).any() for path, leaf in codes(tree).items())


def test_layers_that_are_cut_into_groups_have_the_same_codes(plan_of, prepared_of, tree):
    words = ("lora.layers_to_transform=[1]", "lora.target_modules=[q_proj,v_proj]")
    plan, begun = prepared_of(NF4, *words)
    assert len(plan.network.groups) > 1
    cut, whole = codes(begun.begin(plan)), codes(tree)
    for layer, (prefix, repeat, _) in plan.network.places().items():
        if layer is None:
            continue
        theirs, other, _ = plan_of(*NEAREST).network.places()[layer]
        for path, leaf in cut.items():
            if path.startswith(prefix):
                same = whole[path.replace(prefix, theirs)]
                jax.tree.map(
                    lambda x, y, at=(repeat, other): np.testing.assert_array_equal(
                        x[at[0]], y[at[1]]
                    ),
                    leaf,
                    same,
                )


def test_no_more_is_read_than_asked_for(plan_of, monkeypatch):
    plan, seen = plan_of(), []
    bare = base_network(plan.network.spec)
    leaves = plan.base.load(bare)
    make = calibrate.inputs.make_include

    def counting(*args, **kwargs):
        include = make(*args, **kwargs)

        def one(kept, tree, batch):
            seen.append(int((batch["segment_ids"] > 0).sum()))
            return include(kept, tree, batch)

        return one

    monkeypatch.setattr(calibrate.inputs, "make_include", counting)
    where = {"mesh": plan.mesh, "dtype": plan.dtype}
    few = calibrate.moments(bare, leaves, plan.train, 1, **where)
    assert len(seen) == 1
    calibrate.moments(bare, leaves, plan.train, 10**9, **where)
    assert len(seen) == 1 + plan.train.steps_per_epoch
    (block,) = few
    assert few[block].keys() == {"attn/q", "attn/o", "mlp/up", "mlp/down"}


def test_moments_are_those_of_the_inputs_as_eva_measures_them(plan_of):
    plan = plan_of("lora.target_modules=all-linear")
    bare = base_network(plan.network.spec)
    leaves = plan.base.load(bare)
    where = {"mesh": plan.mesh, "dtype": plan.dtype}
    found = calibrate.moments(bare, leaves, plan.train, 1, **where)
    sketches = jax.device_put(
        eva.empty(eva.sites(plan.network, bare, plan.family, 1.0), bare),
        meshes.replicated(plan.mesh),
    )
    include = inputs.make_include(bare, eva.include, False, **where)
    batch = jax.device_put(plan.train.batch(0), batch_shardings(CAUSAL_LM, plan.mesh))
    sketches = include(sketches, leaves, batch)
    for block, modules in found.items():
        for path, moments in modules.items():
            sketch = sketches[block][path]
            of_mean = np.asarray(sketch.num_tokens) * np.sum(np.asarray(sketch.mean) ** 2, axis=1)
            trace = np.einsum("rnss->r", moments)
            np.testing.assert_allclose(trace, np.asarray(sketch.scatter) + of_mean, rtol=1e-4)


def test_checkpoints_of_another_calibration_are_refused_and_its_own_go_on_to_the_byte(
    recipe, plan_of, tmp_path, capsys
):
    def train(name, *words):
        place = f"train.output_dir={tmp_path / name}"
        assert runs.status("train", str(recipe), NF4, place, *words) == 0
        return runs.adapter_bytes(tmp_path / name)

    words = ["train.max_steps=4", "train.save_steps=2"]
    whole = train("run", *words)
    for name in ("checkpoints/4", "adapter"):
        shutil.rmtree(tmp_path / "run" / name)
    assert train("run", *words) == whole
    assert "not to the bit" not in capsys.readouterr().err
    (tmp_path / "run" / "base.crc32").write_text("00000000\n")
    shutil.rmtree(tmp_path / "run" / "checkpoints/4")
    train("run", *words)
    assert "not to the bit the one that this run began with" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="calibration_tokens"):
        plan_of(*NEAREST, f"train.output_dir={tmp_path / 'run'}", *words)
