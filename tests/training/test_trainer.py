"""The loop: what happens on which step, what stops it, and that stopping changes nothing."""

from __future__ import annotations

import signal

import jax
import numpy as np
import pytest
import runs

from jaxft import tree as trees
from jaxft.adapters import peft_format
from jaxft.errors import Stopped, TrainingError
from jaxft.parallel import mesh as meshes
from jaxft.training.prepare import request
from jaxft.training.run import cadence, finish

pytestmark = pytest.mark.slow

STEPS = 6  # of the recipe, an epoch: the last batch is not full


@pytest.fixture
def second_evaluation(plan_of):
    """The number, from 1, of the batch of held-out rows with which the second evaluation begins."""
    return plan_of().eval.steps_per_epoch + 1


def in_evaluation(number, act):
    """Return a change of a run's programs that has `act` done in a batch of held-out rows."""
    return lambda programs: programs._replace(eval_step=runs.calls(programs.eval_step, number, act))


def same_leaves(tree, other):
    return jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), tree, other))


def test_there_is_a_line_for_each_step_and_each_evaluation(straight):
    lines = runs.records(straight[0])
    assert [(line["step"], "loss" in line) for line in lines] == [
        (0, False),
        (1, True),
        (2, True),
        (3, True),
        (3, False),
        (4, True),
        (5, True),
        (6, True),
        (6, False),
    ]
    assert lines[1].keys() == {
        "step",
        "epoch",
        "loss",
        "grad_norm",
        "learning_rate",
        "tokens",
        "target_tokens",
    }
    assert lines[2]["learning_rate"] == pytest.approx(2e-2 * 5 / 6)
    assert lines[-1].keys() == {"step", "eval_loss", "eval_target_tokens"}


def test_an_epoch_counts_every_token_once(straight, plan_of):
    lines = [line for line in runs.records(straight[0]) if "loss" in line]
    plan = plan_of()
    assert sum(line["tokens"] for line in lines) == plan.data.train.examples[0].report.tokens
    assert (
        sum(line["target_tokens"] for line in lines) == plan.data.train.examples[0].report.targets
    )
    assert lines[-1]["epoch"] == 1.0


def test_both_losses_fall(straight):
    lines = runs.records(straight[0])
    held_out = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert held_out[0] > held_out[1] > held_out[2]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] - 0.4


def test_the_same_run_again_is_the_same_to_the_bit(straight, train, tmp_path):
    trainer, outcome = train()
    assert same_leaves(outcome.trainable, straight[1])
    assert runs.records(tmp_path / "run") == runs.records(straight[0])
    # One program for every step, the last batch of an epoch included.
    assert trainer.programs.train_step._cache_size() == 1
    assert trainer.programs.eval_step._cache_size() == 1


@pytest.mark.parametrize(("number", "at"), [(signal.SIGINT, 1), (signal.SIGTERM, 4)])
def test_a_run_stopped_by_a_signal_goes_on_as_if_it_had_not_been(
    straight, train, tmp_path, number, at
):
    with pytest.raises(Stopped) as stopped:
        train("train.save_steps=100", wrap=runs.after_step(at, runs.send(number)))
    assert stopped.value.signal == number
    assert runs.saved_steps(tmp_path / "run") == [at]
    trainer, outcome = train()
    assert same_leaves(outcome.trainable, straight[1])
    assert runs.records(tmp_path / "run") == runs.records(straight[0])
    assert trainer.programs.train_step._cache_size() == 1
    # The evaluation before training is found again, not made again.
    assert outcome.before.loss == runs.records(straight[0])[0]["eval_loss"]


def test_a_signal_in_an_evaluation_does_not_wait_for_its_end(
    straight, train, second_evaluation, tmp_path
):
    with pytest.raises(Stopped):
        train(
            "train.save_steps=100", wrap=in_evaluation(second_evaluation, runs.send(signal.SIGTERM))
        )
    assert runs.saved_steps(tmp_path / "run") == [3]
    assert [line["step"] for line in runs.records(tmp_path / "run")] == [0, 1, 2, 3]
    _, outcome = train()
    assert same_leaves(outcome.trainable, straight[1])
    assert runs.records(tmp_path / "run") == runs.records(straight[0])


def test_a_signal_at_the_last_step_stops_too(straight, train, tmp_path, capsys):
    with pytest.raises(Stopped):
        train("train.save_strategy=no", wrap=runs.after_step(STEPS, runs.send(signal.SIGTERM)))
    assert "Stopped after step 6 of 6, which is saved." in capsys.readouterr().err
    _, outcome = train()
    assert "All 6 steps of this run are done" in capsys.readouterr().err
    assert same_leaves(outcome.trainable, straight[1])
    assert runs.records(tmp_path / "run") == runs.records(straight[0])


def test_log_lines_over_several_steps_survive_a_stop_between_them(straight, train, tmp_path):
    logs_rarely = ("train.logging_steps=4", "train.eval_steps=3")
    with pytest.raises(Stopped):
        train(*logs_rarely, wrap=runs.after_step(2, runs.send(signal.SIGTERM)))
    train(*logs_rarely)
    lines = [line for line in runs.records(tmp_path / "run") if "loss" in line]
    each = [line for line in runs.records(straight[0]) if "loss" in line]
    assert [line["step"] for line in lines] == [4, 6]
    for line, steps in zip(lines, (each[:4], each[4:]), strict=True):
        counts = [step["target_tokens"] for step in steps]
        sums = [step["loss"] * count for step, count in zip(steps, counts, strict=True)]
        assert line["loss"] == pytest.approx(sum(sums) / sum(counts), rel=1e-12)
        assert line["tokens"] == sum(step["tokens"] for step in steps)
        assert line["grad_norm"] == steps[-1]["grad_norm"]


def test_the_micro_batch_may_change_between_two_parts_of_a_run(straight, train, tmp_path):
    with pytest.raises(Stopped):
        train(wrap=runs.after_step(2, runs.send(signal.SIGTERM)))
    train("train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=1")
    losses = [line["loss"] for line in runs.records(tmp_path / "run") if "loss" in line]
    expected = [line["loss"] for line in runs.records(straight[0]) if "loss" in line]
    assert losses[:2] == expected[:2]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_one_device_and_four_train_the_same(straight, tree_of, train, tmp_path, monkeypatch):
    mesh = meshes.single_device_mesh()
    monkeypatch.setattr(request.meshes, "make_mesh", lambda *sizes: mesh)
    words = ("train.per_device_train_batch_size=4", "train.save_strategy=no")
    train(*words, leaves=tree_of(*words))
    ours, theirs = runs.records(tmp_path / "run"), runs.records(straight[0])
    for name in ("loss", "eval_loss", "grad_norm"):
        np.testing.assert_allclose(
            [line[name] for line in ours if name in line],
            [line[name] for line in theirs if name in line],
            rtol=1e-5,
        )


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        ({"terms": {"loss": (np.float32("nan"), np.int32(5))}}, "The loss of step 2"),
        ({"grad_norm": np.float32("nan")}, "The norm of the gradient"),
    ],
    ids=["loss", "grad_norm"],
)
def test_a_step_without_numbers_stops_the_run_before_it_is_saved(train, tmp_path, spoilt, said):
    def spoil(result):
        state, metrics = result
        return state, metrics._replace(**spoilt, is_skipped=np.bool_(True))

    with pytest.raises(TrainingError, match=said) as raised:
        train("train.save_steps=1", wrap=runs.after_step(2, spoil))
    assert "Lower train.learning_rate (it is 0.02)" in raised.value.remedy
    assert runs.saved_steps(tmp_path / "run") == [1]
    assert [line["step"] for line in runs.records(tmp_path / "run")] == [0, 1]


@pytest.mark.parametrize(
    ("words", "saved", "evaluated"),
    [
        (["train.save_strategy=no", "train.eval_strategy=no"], [], []),
        (["train.save_strategy=epoch", "train.eval_strategy=epoch"], [6, 12, 13], [6, 12]),
        (["train.save_steps=4", "train.eval_steps=5"], [4, 8, 12, 13], [5, 10]),
        (["train.eval_steps=null", "train.logging_steps=4"], [2, 4, 6, 8, 10, 12, 13], [4, 8, 12]),
    ],
)
def test_steps_are_saved_and_evaluated_as_asked_and_the_last_is_always_saved(
    plan_of, words, saved, evaluated
):
    plan = plan_of("train.max_steps=13", *words)
    due = cadence.of_recipe(plan.config.train, plan.num_steps, plan.train.steps_per_epoch)
    steps = range(1, 14)
    assert [step for step in steps if due.saves(step)] == saved
    assert [step for step in steps if due.evaluates(step)] == evaluated


@pytest.mark.parametrize(
    ("words", "evaluated"),
    [(["train.eval_strategy=epoch"], [0, 6]), ([], [6]), (["data.eval=null"], [])],
)
def test_the_end_is_evaluated_if_there_are_rows_and_the_beginning_if_it_was_asked_for(
    train, tmp_path, words, evaluated
):
    _, outcome = train("train.save_strategy=no", "train.eval_strategy=no", *words)
    lines = runs.records(tmp_path / "run")
    assert [line["step"] for line in lines if "eval_loss" in line] == evaluated
    assert (outcome.before is not None) == (0 in evaluated)
    assert (outcome.after is not None) == bool(evaluated)
    assert runs.saved_steps(tmp_path / "run") == []


def test_a_run_that_was_killed_between_saving_and_evaluating_makes_up_for_it(
    straight, train, second_evaluation, tmp_path
):
    def crash(result):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("train.save_steps=3", wrap=in_evaluation(second_evaluation, crash))
    assert runs.saved_steps(tmp_path / "run") == [3]
    train("train.save_steps=3")
    assert runs.records(tmp_path / "run") == runs.records(straight[0])


def test_a_run_that_trains_biases_and_whole_modules_goes_on_as_if_it_had_not_been_stopped(
    train, prepared_of, tmp_path
):
    model = runs.write_model(tmp_path / "model", biases=True)
    words = [
        f"model.path={model}",
        "model.dtype=bfloat16",
        "lora.bias=all",
        "lora.modules_to_save=[embed_tokens, model.norm]",
        "train.max_steps=3",
        "train.eval_strategy=no",
    ]
    again = f"train.output_dir={tmp_path / 'again'}"
    plan, begun = prepared_of(*words, again)
    tree = begun.begin(plan)
    with pytest.raises(Stopped):
        train(*words, again, wrap=runs.after_step(1, runs.send(signal.SIGTERM)), leaves=tree)
    _, outcome = train(*words, again, leaves=tree)
    _, whole = train(*words, leaves=tree)
    own = {f"groups/0/0/attn/{name}/bias" for name in "qkvo"} | {"embed/kernel", "final_norm/scale"}
    trained = trees.flatten(outcome.trainable)
    assert {path for path in trained if "lora_" not in path} == own == plan.network.trained_leaves()
    assert same_leaves(outcome.trainable, whole.trainable)
    assert runs.records(tmp_path / "again") == runs.records(tmp_path / "run")
    for path, leaf in trees.flatten(outcome.start).items():
        assert (leaf.dtype, trained[path].dtype) == (np.float32, np.float32)
        assert not np.array_equal(leaf, trained[path]), path
    # The head that was tied to the embedding has stayed what it was.
    head, embedding = tree["head"]["kernel"], tree["embed"]["kernel"]
    np.testing.assert_array_equal(head, embedding.T.astype(head.dtype))
    written = peft_format.read_adapter(finish.write_adapter(plan, outcome))[1]
    assert {name for name in written if "lora_" not in name} == {
        "base_model.model.model.embed_tokens.weight",
        "base_model.model.model.norm.weight",
        *(
            f"base_model.model.model.layers.{layer}.self_attn.{name}_proj.{rest}bias"
            for layer in range(2)
            for name, rest in [("q", "base_layer."), ("k", ""), ("v", "base_layer."), ("o", "")]
        ),
    }


def test_what_is_trained_differs_from_what_it_began_with(straight, plan_of, leaves, make_trainer):
    start = jax.device_get(make_trainer(plan_of(), leaves).start)
    differs = jax.tree.map(lambda a, b: not np.array_equal(a, b), start, straight[1])
    assert all(jax.tree.leaves(differs))
