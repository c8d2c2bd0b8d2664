"""Held-out loss along a line of adapters, to see how much of a tuning to keep.

Separate from `trainer`, which trains one adapter. The base model is read once and the evaluation
compiled once: along the line only the adapter's numbers change, not their shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from jaxft import console
from jaxft import tree as trees
from jaxft.adapters import algebra, fitting, peft_format
from jaxft.adapters.algebra import LoraAdapter
from jaxft.artifacts import loaded
from jaxft.config import DataConfig, SourceConfig
from jaxft.lora import mask
from jaxft.parallel import mesh as meshes
from jaxft.parallel import rules
from jaxft.training import evaluate
from jaxft.training import step as steps
from jaxft.training.evaluate import Evaluation
from jaxft.training.objective import CAUSAL_LM
from jaxft.training.prepare import batching, reading
from jaxft.weights import base
from jaxft.weights.places.source import Source


def evaluate_line(
    found: Source,
    adapter_at: Callable[[float], LoraAdapter],
    points: Sequence[float],
    data: Path,
    *,
    max_length: int,
    batch_size: int,
) -> list[Evaluation]:
    """Measure the held-out loss at points on a line of adapters.

    Args:
        found: The base model.
        adapter_at: Returns the adapter at a point, of the same shapes at every point.
        points: Where to measure.
        data: The file of held-out rows.
        max_length: Tokens in a row; longer ones are cut, as they are at the model's own limit.
        batch_size: Rows at once.

    Raises:
        JaxftError: If the rows or the model cannot be read, or the adapter does not fit it.
    """
    mesh, dtype = meshes.single_device_mesh(), base.resolve_dtype("auto")
    first = adapter_at(points[0])
    found, lora, tensors = fitting.fitted(
        found, first.lora, algebra.tensors_of(first), first.origin
    )
    model = loaded.load(found, lora, tensors, origin=first.origin, mesh=mesh, dtype=dtype)
    network = model.network
    limit = min(max_length, network.spec.max_tokens or max_length)
    tokenizer = model.chat_format.apply(found.tokenizer())
    recipe = DataConfig(
        train=[SourceConfig(path=str(data))],
        eval=[SourceConfig(path=str(data))],
        max_length=limit,
    )
    examples = reading.held_out_examples(recipe, tokenizer, base.read_stop_ids(found, tokenizer))
    assert examples is not None
    examples.check_ids(network.spec.vocab_size)
    batches = batching.in_order(
        [examples],
        max_length=limit,
        packing=False,
        seed=0,
        global_batch=min(batch_size, len(examples)),
        shards=1,
    )
    _, frozen = trees.partition(model.tree, mask.trainable_mask(network, model.tree))
    program = steps.Program(
        network=network,
        mesh=mesh,
        dtype=dtype,
        capacity=batches.target_capacity,
        remat=False,
        objective=CAUSAL_LM,
    )
    eval_step = steps.make_eval_step(program)
    results = []
    with console.loading("Evaluating", len(points) * batches.steps_per_epoch) as count:
        for point in points:
            own = peft_format.under_names_of(algebra.tensors_of(adapter_at(point)), model.family)
            trained = peft_format.from_tensors(own, model.family, network, first.origin)
            placed = jax.device_put(trained, rules.shardings(trained, mesh))
            result = evaluate.evaluate(eval_step, batches, placed, frozen, count, lambda: False)
            assert result is not None  # nothing stops it
            results.append(result)
    return results
