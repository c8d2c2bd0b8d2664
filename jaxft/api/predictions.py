"""Computes the input of `compute_metrics`: the logits and labels of held-out rows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxft import tree as trees
from jaxft.data.batches.loader import PlannedBatches
from jaxft.data.rows.tokenized import IGNORED
from jaxft.models import forward
from jaxft.parallel import mesh as meshes
from jaxft.training import objective
from jaxft.training.objective import CAUSAL_LM
from jaxft.training.step import Program


class EvalPrediction(NamedTuple):
    """The argument of `compute_metrics`, as in transformers.

    Attributes:
        predictions: The logits, float32 [rows t v], or the results of
            `preprocess_logits_for_metrics`.
        label_ids: The labels, int32 [rows t], not shifted: each supervised token itself, else -100.
    """

    predictions: Any
    label_ids: np.ndarray


def of_batches(
    program: Program,
    batches: PlannedBatches,
    trainable: trees.Tree,
    frozen: trees.Tree,
    preprocess: Callable[[Any, Any], Any],
) -> EvalPrediction:
    """Return the logits and labels of all rows.

    Args:
        program: The network, with its mesh and dtype.
        batches: The batches of the rows.
        trainable: The trained leaves.
        frozen: The other leaves.
        preprocess: Called with the logits and labels of each batch; its result is kept.
    """
    kept, labels = [], []
    logits_of = _make_logits(program)
    shardings = objective.batch_shardings(CAUSAL_LM, program.mesh)
    num_rows = batches.num_sequences
    for _, batch in batches.iterate(0, batches.steps_per_epoch):
        truth = _unshifted(batch["labels"][0])
        logits = logits_of(trainable, frozen, jax.device_put(batch, shardings))
        kept.append(jax.tree.map(np.asarray, preprocess(logits, truth)))
        labels.append(truth)
    # The last batch is filled up with empty rows.
    predictions = jax.tree.map(lambda *parts: np.concatenate(parts)[:num_rows], *kept)
    return EvalPrediction(predictions, np.concatenate(labels)[:num_rows])


def _make_logits(program: Program) -> Callable[..., jax.Array]:
    network, mesh, dtype = program.network, program.mesh, program.dtype

    def logits(trainable: Any, frozen: Any, batch: Any) -> jax.Array:
        tree = trees.combine(trainable, frozen)
        names = ("input_ids", "segment_ids", "positions")
        rows = (batch[name][0] for name in names)
        return forward.logits(network, tree, *rows, mesh=mesh, dtype=dtype)

    return jax.jit(logits, out_shardings=meshes.replicated(mesh))


def _unshifted(labels: np.ndarray) -> np.ndarray:
    """Return labels as in Hugging Face: at the token itself, not at the token before it."""
    moved = np.roll(labels, 1, axis=1)
    moved[:, 0] = IGNORED
    return moved
