"""Converts a user's own loss to an objective of the training step.

It is separate from the trainer because JAX traces it. The invariant: each micro-batch is weighted
by its number of labels, whatever mean the user's loss returns for it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxft.api.model import ModelOutput
from jaxft.data.rows.tokenized import IGNORED
from jaxft.errors import ConfigError
from jaxft.training.objective import CAUSAL_LM, Batch, Objective, Terms, View

# (outputs with `.logits`, labels [b t] not shifted, number of labels) -> mean loss
ComputeLoss = Callable[[ModelOutput, Any, Any], Any]


def of_method(own: Callable[..., Any]) -> Objective:
    """Return the objective for a `compute_loss(model, inputs)`."""
    return _objective(functools.partial(_by_method, own))


def of_function(function: ComputeLoss) -> Objective:
    """Return the objective for a `compute_loss_func(outputs, labels, number of labels)`."""
    return _objective(functools.partial(_by_function, function))


def _objective(compute: Callable[[ModelOutput, dict[str, Any]], Any]) -> Objective:
    return Objective(CAUSAL_LM.arrays, functools.partial(_terms, compute))


class _CalledModel:
    """The model as a user's `compute_loss` sees it: a call on its batch returns the outputs."""

    def __init__(self, outputs: ModelOutput, input_ids: Any) -> None:
        self._outputs, self._input_ids = outputs, input_ids

    def __call__(self, input_ids: Any, **_: Any) -> ModelOutput:
        if input_ids is not self._input_ids:
            raise ConfigError(
                "compute_loss called the model on other tokens than those of its inputs.",
                "Call model(**inputs), and compute the loss from its logits and inputs['labels'].",
            )
        return self._outputs


def _by_method(own: Callable[..., Any], outputs: ModelOutput, inputs: dict[str, Any]) -> Any:
    """Return the loss of a `compute_loss(model, inputs)`, which may return (loss, outputs)."""
    loss = own(_CalledModel(outputs, inputs["input_ids"]), inputs)
    return loss[0] if isinstance(loss, tuple) else loss


def _by_function(function: ComputeLoss, outputs: ModelOutput, inputs: dict[str, Any]) -> Any:
    """Return the loss of a `compute_loss_func(outputs, labels, number of labels)`."""
    return function(outputs, inputs["labels"], inputs["num_items_in_batch"])


def _terms(
    compute: Callable[[ModelOutput, dict[str, Any]], Any], view: View, micro: Batch
) -> Terms:
    """Return a user's mean loss as (sum, count), which weights micro-batches by their labels."""
    logits = view.logits(view.hidden(micro))
    count = jnp.sum(micro["labels"] != IGNORED, dtype=jnp.int32)
    inputs = {
        "input_ids": micro["input_ids"],
        "attention_mask": (micro["segment_ids"] > 0).astype(jnp.int32),
        "position_ids": micro["positions"],
        "labels": jnp.roll(micro["labels"], 1, axis=1).at[:, 0].set(IGNORED),
        "num_items_in_batch": count,
    }
    mean = compute(ModelOutput(logits), inputs)
    return {"loss": (jnp.asarray(mean, jnp.float32) * count, count)}
