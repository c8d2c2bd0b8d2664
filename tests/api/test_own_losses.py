"""`Trainer` with metrics and losses of the user's own."""

from __future__ import annotations

import api_runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

import jaxft

pytestmark = pytest.mark.slow


def causal_lm(logits, labels, count):
    """The mean loss as anyone would write it, from labels that are not shifted."""
    log_p = jax.nn.log_softmax(logits[:, :-1])
    label = labels[:, 1:]
    picked = jnp.take_along_axis(log_p, jnp.maximum(label, 0)[..., None], axis=-1)[..., 0]
    return -jnp.where(label == -100, 0.0, picked).sum() / count


class OwnLoss(jaxft.Trainer):
    def compute_loss(self, model, inputs):
        outputs = model(**inputs)
        labels = inputs["labels"]
        return causal_lm(outputs.logits, labels, (labels[:, 1:] != -100).sum()), outputs


def test_metrics_are_computed_from_all_logits(make_trainer, make_model, tmp_path):
    seen = []

    def metrics(prediction):
        logits, labels = prediction
        seen.append((logits.shape, labels))
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        rows, columns = np.nonzero(labels[:, 1:] != -100)
        picked = log_p[rows, columns, labels[rows, columns + 1]]
        return {"nll": -picked.mean(), "eval_loss": -1.0}

    model = make_model()
    args = {"eval_strategy": "epoch", "per_device_eval_batch_size": 3}
    options = {"eval_dataset": api_runs.HELD_OUT, "compute_metrics": metrics}
    trainer = make_trainer(args=args, model=model, **options)
    trainer.train()
    found = trainer.evaluate()
    assert found["eval_nll"] == pytest.approx(found["eval_loss"], rel=1e-5)
    lines = [line for line in runs.records(tmp_path / "run") if "eval_loss" in line]
    assert [line["step"] for line in lines] == [0, 4]
    for line in lines:
        assert line["eval_nll"] == pytest.approx(line["eval_loss"], rel=1e-5)
    shape, labels = seen[-1]
    assert shape == (*labels.shape, 258)
    assert len(labels) == len(api_runs.HELD_OUT)
    # Each target stands at its own token: "HEAR" after "Say hear: ", and the end.
    assert [int(n) for n in np.flatnonzero(labels[0] != -100)] == [10, 11, 12, 13, 14]


def test_logits_can_be_made_small_before_they_are_kept(make_trainer):
    def kept(logits, labels):
        assert logits.shape[:2] == labels.shape
        return logits.argmax(-1)

    def metrics(prediction):
        assert prediction.predictions.shape == prediction.label_ids.shape
        return {"mean": prediction.predictions.mean()}

    options = {"compute_metrics": metrics, "preprocess_logits_for_metrics": kept}
    found = make_trainer(eval_dataset=api_runs.HELD_OUT, **options).evaluate()
    assert 0 <= found["eval_mean"] < 258


@pytest.mark.parametrize("kind", ["function", "method"])
def test_a_loss_of_ones_own_that_is_the_same_trains_the_same(
    straight, make_trainer, make_model, tmp_path, kind
):
    options = {"kind": OwnLoss} if kind == "method" else {"compute_loss_func": by_outputs}
    model = make_model()
    trainer = make_trainer(model=model, eval_dataset=api_runs.HELD_OUT, **options)
    trainer.train()
    for ours, theirs in zip(runs.records(tmp_path / "run"), runs.records(straight[0]), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    # Gradients to within rounding, dropout included: Adam makes much of the smallest difference.
    found, expected = model.trained_leaves(), straight[1].trained_leaves()
    for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, other, atol=2e-4)


def by_outputs(outputs, labels, num_items_in_batch):
    return causal_lm(outputs.logits, labels, num_items_in_batch)


def test_a_loss_of_ones_own_is_what_is_trained(make_trainer, tmp_path):
    def half(outputs, labels, count):
        return 0.5 * by_outputs(outputs, labels, count)

    args = {"max_steps": 1, "max_grad_norm": 0.0}
    make_trainer(args={**args, "output_dir": tmp_path / "whole"}).train()
    make_trainer(args={**args, "output_dir": tmp_path / "half"}, compute_loss_func=half).train()
    whole, halved = (runs.records(tmp_path / name)[0] for name in ("whole", "half"))
    assert halved["loss"] == pytest.approx(whole["loss"] / 2, rel=1e-5)
    assert halved["grad_norm"] == pytest.approx(whole["grad_norm"] / 2, rel=1e-4)
