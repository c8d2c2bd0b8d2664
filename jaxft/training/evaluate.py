"""The held-out loss: the mean over all labels of the evaluation rows, however they are batched."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from jaxft.data.batches.loader import PlannedBatches
from jaxft.training.objective import Terms


class Evaluation(NamedTuple):
    """The result of an evaluation.

    Attributes:
        loss: The mean loss; for a causal language model in nats per label.
        target_tokens: The number of labels, over which the mean is taken.
        further: The means of the objective's other terms, by name.
    """

    loss: float
    target_tokens: int
    further: Mapping[str, float] = {}

    @property
    def perplexity(self) -> float:
        """The perplexity, exp(loss)."""
        return math.exp(min(self.loss, 700.0))  # a float overflows beyond about 709


def evaluate(
    eval_step: Callable[..., Terms],
    batches: PlannedBatches,
    trainable: Any,
    frozen: Any,
    progress: Callable[[int], None],
    is_stopped: Callable[[], bool],
) -> Evaluation | None:
    """Evaluate all rows once; return `None` if it was stopped before the end.

    Args:
        eval_step: The evaluation from `step.make_eval_step`.
        batches: The batches of the rows, not shuffled, without accumulation.
        trainable: The trained leaves.
        frozen: The other leaves.
        progress: Called with 1 after each batch.
        is_stopped: Called after each batch; returns whether to stop.
    """
    found: list[Terms] = []
    for _, batch in batches.iterate(0, batches.steps_per_epoch):
        found.append(eval_step(trainable, frozen, batch))
        if len(found) > 1:  # waits for the previous batch, so that the device is always busy
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
