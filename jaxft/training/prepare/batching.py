"""The batches of a run: how the options of a recipe divide examples into steps.

A global batch has `per_device_train_batch_size` sequences for each data shard and micro-batch: 4
sequences on 2 shards with 8 micro-batches are 64 sequences. The batches are planned in `data/`;
this module translates the options of a recipe for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from jax.sharding import Mesh

from jaxft.config import RunConfig
from jaxft.data.batches import loader, stream
from jaxft.data.batches.batch import Batches
from jaxft.data.batches.loader import PlannedBatches
from jaxft.data.examples.encode import Examples
from jaxft.errors import ConfigError
from jaxft.parallel import mesh as meshes
from jaxft.training.prepare.reading import Data, Side

# A file in the run's folder that records where the blocks of a stream begin.
_JOURNAL = "stream.jsonl"


def train_batches(config: RunConfig, data: Data, mesh: Mesh, vocab_size: int) -> Batches:
    """Plan the training batches, in the order that the recipe asks for.

    Args:
        config: The recipe.
        data: The encoded rows.
        mesh: The devices.
        vocab_size: The number of rows of the embedding; a stream checks its tokens against it as
            they are read.

    Raises:
        ConfigError: The global batch cannot be divided evenly.
        DataError: There would be no batch.
    """
    train, shards = config.train, meshes.row_shards(mesh)
    global_batch = train.per_device_train_batch_size * shards * train.gradient_accumulation_steps
    if config.data.streaming:
        return stream.make_stream(
            data.train.sources,
            data.train.encodings,
            max_length=config.data.max_length,
            packing=config.data.packing,
            shuffle=config.data.shuffle,
            shuffle_buffer=config.data.shuffle_buffer,
            seed=train.seed,
            global_batch=global_batch,
            accumulation=train.gradient_accumulation_steps,
            shards=shards,
            vocab_size=vocab_size,
            journal=train.output_dir / _JOURNAL,
        )
    weights = [source.weight for source in config.data.train]
    return loader.make_batches(
        data.train.examples,
        weights=[weight for weight in weights if weight is not None] or None,
        max_length=config.data.max_length,
        packing=config.data.packing,
        group_by_length=config.data.group_by_length,
        shuffle=config.data.shuffle,
        seed=train.seed,
        global_batch=global_batch,
        accumulation=train.gradient_accumulation_steps,
        shards=shards,
        drop_last=train.dataloader_drop_last,
    )


def eval_batches(config: RunConfig, side: Side, mesh: Mesh) -> PlannedBatches:
    """Plan the batches of held-out rows, in the order of their files.

    Raises:
        ConfigError: The batch cannot be divided evenly.
    """
    shards = meshes.row_shards(mesh)
    return in_order(
        side.examples,
        max_length=config.data.max_length,
        packing=config.data.packing,
        seed=config.train.seed,
        global_batch=config.train.per_device_eval_batch_size * shards,
        shards=shards,
    )


def in_order(
    examples: Sequence[Examples],
    *,
    max_length: int,
    packing: bool,
    seed: int,
    global_batch: int,
    shards: int,
) -> PlannedBatches:
    """Plan batches that have each example once, in order and without accumulation.

    Args:
        examples: The encoded examples of each source.
        max_length: The largest number of tokens of a sequence.
        packing: Whether several examples share a sequence.
        seed: The random seed for packing.
        global_batch: The number of sequences of a batch.
        shards: The number of data shards.

    Raises:
        ConfigError: The batch cannot be divided evenly.
    """
    return loader.make_batches(
        examples,
        weights=None,
        max_length=max_length,
        packing=packing,
        group_by_length=False,
        shuffle=False,
        seed=seed,
        global_batch=global_batch,
        accumulation=1,
        shards=shards,
        drop_last=False,
    )


def num_steps(config: RunConfig, train: Batches) -> int:
    """Return the number of steps of the whole run.

    Raises:
        ConfigError: The rows are a stream, and the recipe counts epochs or sets no `max_steps`.
    """
    has_epochs = train.steps_per_epoch is not None
    for name in ("eval_strategy", "save_strategy"):
        if getattr(config.train, name) == "epoch" and not has_epochs:
            raise ConfigError(
                f"train.{name} is epoch, and data.streaming is set: a stream has no epochs.",
                f"Set train.{name} to steps.",
            )
    if config.train.max_steps > 0:
        return config.train.max_steps
    if train.steps_per_epoch is None:
        raise ConfigError(
            "data.streaming is set, and train.max_steps is not: a stream has no epochs to count.",
            "Set train.max_steps to the number of steps to train for.",
        )
    return math.ceil(config.train.num_train_epochs * train.steps_per_epoch)
