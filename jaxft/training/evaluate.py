"""Held-out loss: the mean over every target of the evaluation rows, whatever the batches."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxft.data.batches.loader import PlannedBatches
from jaxft.training import step as steps


class Evaluation(NamedTuple):
    """What an evaluation found.

    Attributes:
        loss: Mean nats a target.
        target_tokens: Number of targets.
    """

    loss: float
    target_tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))  # beyond which a float overflows


def evaluate(
    eval_step: Callable[..., Any],
    batches: PlannedBatches,
    mesh: Mesh,
    trainable: Any,
    frozen: Any,
    progress: Callable[[int], None],
    is_stopped: Callable[[], bool],
) -> Evaluation | None:
    """Run over all evaluation rows once; `None` if it was told to stop on the way.

    Args:
        eval_step: From `step.make_eval_step`.
        batches: The evaluation rows, not shuffled, without accumulation.
        mesh: Where the leaves live.
        trainable: The trained leaves.
        frozen: The other leaves.
        progress: Called with 1 after each batch.
        is_stopped: Asked after each batch.
    """
    sums = []
    shardings = steps.batch_shardings(mesh)
    for _, batch in batches.iterate(0, batches.steps_per_epoch):
        sums.append(eval_step(trainable, frozen, jax.device_put(batch, shardings)))
        if len(sums) > 1:  # one batch behind, so that the device always has the next
            jax.block_until_ready(sums[-2])
        progress(1)
        if is_stopped():
            return None
    loss = math.fsum(float(total) for total, _ in sums)
    count = sum(int(count) for _, count in sums)
    return Evaluation(loss / max(count, 1), count)
