"""Held-out loss: the mean over every label of the evaluation rows, whatever the batches."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from jaxft.data.batches.loader import PlannedBatches
from jaxft.training.objective import Terms


class Evaluation(NamedTuple):
    """What an evaluation found.

    Attributes:
        loss: Mean of the loss, for a causal language model in nats a label.
        target_tokens: What it is a mean over: the number of labels.
        further: The means of the objective's other terms, by name.
    """

    loss: float
    target_tokens: int
    further: Mapping[str, float] = {}

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))  # beyond which a float overflows


def evaluate(
    eval_step: Callable[..., Terms],
    batches: PlannedBatches,
    trainable: Any,
    frozen: Any,
    progress: Callable[[int], None],
    is_stopped: Callable[[], bool],
) -> Evaluation | None:
    """Run over all evaluation rows once; `None` if it was told to stop on the way.

    Args:
        eval_step: From `step.make_eval_step`.
        batches: The evaluation rows, not shuffled, without accumulation.
        trainable: The trained leaves.
        frozen: The other leaves.
        progress: Called with 1 after each batch.
        is_stopped: Asked after each batch.
    """
    found: list[Terms] = []
    for _, batch in batches.iterate(0, batches.steps_per_epoch):
        found.append(eval_step(trainable, frozen, batch))
        if len(found) > 1:  # one batch behind, so that the device always has the next
            jax.block_until_ready(found[-2])
        progress(1)
        if is_stopped():
            return None
    means, counts = {}, {}
    for name in found[0]:
        pairs = [jax.device_get(terms[name]) for terms in found]
        counts[name] = sum(count.item() for _, count in pairs)
        means[name] = math.fsum(float(total) for total, _ in pairs) / max(counts[name], 1)
    return Evaluation(means.pop("loss"), int(counts["loss"]), means)
