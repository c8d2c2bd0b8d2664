"""PiSSA and OLoRA as runs: begun as the base, gone on with, written as plain adapters."""

from __future__ import annotations

import json
import signal

import jax
import numpy as np
import pytest
import runs

from jaxft import tree as trees
from jaxft.adapters import conversion
from jaxft.errors import AdapterError, CheckpointError, Stopped
from jaxft.lora import mask, starts
from jaxft.training.run import finish
from jaxft.training.run.trainer import Outcome

pytestmark = pytest.mark.slow

# A rank whose double is more than the smaller side of k_proj, which has 16 outputs.
WORDS = [
    "lora.init_lora_weights=pissa",
    "lora.r=10",
    "lora.target_modules=[k_proj, v_proj, down_proj]",
]
STOPS = runs.after_step(1, runs.send(signal.SIGTERM))  # after the first step


def flipped(monkeypatch):
    """Have singular vectors come with the other signs, as on another machine they may."""
    svd = np.linalg.svd

    def other(w, **options):
        u, s, vh = svd(w, **options)
        signs = np.where(np.arange(len(s)) % 2, 1, -1).astype(w.dtype)
        return u * signs, s, vh * signs[:, None]

    monkeypatch.setattr(np.linalg, "svd", other)


def same_leaves(tree, other):
    return jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), tree, other))


def test_a_run_goes_on_to_the_bit_whatever_a_decomposition_would_give_now(
    straight, plan_of, tree_of, train, leaves, tmp_path, monkeypatch
):
    again = f"train.output_dir={tmp_path / 'again'}"
    tree = tree_of(*WORDS)
    _, whole = train(*WORDS, leaves=tree)
    with pytest.raises(Stopped):
        train(*WORDS, again, wrap=STOPS, leaves=tree)
    assert runs.saved_steps(tmp_path / "again") == [1]
    flipped(monkeypatch)
    other = tree_of(*WORDS)
    assert not same_leaves(starts.of(tree), starts.of(other))
    _, outcome = train(*WORDS, again, leaves=other)
    assert same_leaves(outcome.trainable, whole.trainable)
    assert same_leaves(outcome.frozen, whole.frozen)
    assert runs.records(tmp_path / "again") == runs.records(tmp_path / "run")
    for name, made in (("run", whole), ("again", outcome)):
        finish.write_adapter(plan_of(*WORDS, f"train.output_dir={tmp_path / name}"), made)
    assert runs.adapter_bytes(tmp_path / "again") == runs.adapter_bytes(tmp_path / "run")
    # What was trained differs from what it began as, and that has not moved; nor has the base.
    began = trees.flatten(starts.as_begun(trees.combine(outcome.trainable, outcome.frozen)))
    for path, leaf in trees.flatten(outcome.trainable).items():
        assert not np.array_equal(leaf, began[path])
    own = trees.flatten(mask.parts(plan_of(*WORDS).network, outcome.frozen).frozen)
    for path, leaf in own.items():
        assert np.asarray(leaf).tobytes() == np.asarray(trees.flatten(leaves)[path]).tobytes()
    # The first evaluation is the base's, to the bit.
    first, of_base = (runs.records(path)[0] for path in (tmp_path / "run", straight[0]))
    assert first["eval_loss"] == of_base["eval_loss"]
    lines = [line["eval_loss"] for line in runs.records(tmp_path / "run") if "eval_loss" in line]
    assert lines[-1] < lines[0]


@pytest.fixture
def moved(prepared_of):
    """A plan of a run, and what it would leave had it moved A and B somewhere."""
    plan, begun = prepared_of(*WORDS, "lora.use_rslora=true")
    tree = begun.begin(plan)
    start, frozen = trees.partition(tree, mask.trainable_mask(plan.network, tree))
    rng = np.random.default_rng(0)
    draw = lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32)  # noqa: E731
    return plan, Outcome(start, jax.tree.map(draw, start), frozen, before=None, after=None)


def test_the_base_beside_a_tuned_answer_is_the_base(plan_of, straight, leaves, moved):
    plan, outcome = moved
    plain = plan_of()
    start, frozen = trees.partition(leaves, mask.trainable_mask(plain.network, leaves))
    expected = finish.answers(plain, Outcome(start, straight[1], frozen, before=None, after=None))
    shown = finish.answers(plan, outcome)
    assert [sample.base for sample in shown] == [sample.base for sample in expected]
    assert any(sample.base != sample.tuned for sample in shown)


def test_the_written_adapter_is_compared_with_the_live_model(moved, tmp_path, capsys, monkeypatch):
    plan, outcome = moved
    written = finish.write_adapter(plan, outcome)
    assert "The adapter, read back, gives the live model's logits" in capsys.readouterr().err
    config = json.loads((written / "adapter_config.json").read_text())
    assert config["init_lora_weights"] is True
    # Twice the rank, but for the modules that do not have it.
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (20, 20, False)
    assert config["rank_pattern"] == {"k_proj": 16, "v_proj": 16}
    # One that forgets the start is noticed.
    monkeypatch.setattr(conversion.starts, "of", lambda tree: {})
    with pytest.raises(AdapterError, match="read back it is not the live model's"):
        finish.write_adapter(plan, outcome)


def test_checkpoints_of_another_start_are_refused(plan_of, tree_of, tmp_path, train):
    words = ["train.max_steps=1", "train.eval_strategy=no"]
    train(
        "lora.init_lora_weights=olora",
        *words,
        leaves=tree_of("lora.init_lora_weights=olora", *words),
    )
    for kind in ("pissa", "pissa_niter_2", "true"):
        place = f"train.output_dir={tmp_path / 'run'}"
        with pytest.raises(CheckpointError, match="it differs in lora"):
            plan_of(f"lora.init_lora_weights={kind}", place, *words)


def test_ranks_and_alphas_that_differ_are_written_as_they_are(prepared_of):
    patterns = "{model.layers.0.mlp.down_proj: 3}"
    words = (f"lora.alpha_pattern={patterns}", f"lora.rank_pattern={patterns}")
    plan, begun = prepared_of(*WORDS, *words)
    tree = begun.begin(plan)
    assert len(plan.network.groups) == 1
    _, tensors = conversion.to_peft(
        plan.config.lora, plan.family, plan.network, tree, base_model="here", revision=None
    )
    ranks = {len(each) for name, each in tensors.items() if name.endswith("lora_A.weight")}
    assert 6 in ranks  # twice 3: what was trained, and what it began as
    finish.write_adapter(plan, _outcome(plan, tree))


def _outcome(plan, tree):
    start, frozen = trees.partition(tree, mask.trainable_mask(plan.network, tree))
    moved = jax.tree.map(lambda leaf: 1.1 * leaf, start)
    return Outcome(start, moved, frozen, before=None, after=None)
