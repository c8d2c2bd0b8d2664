"""Prepares a run, for `jaxft train` and for Python: turns a request into a plan.

The order is the one that finds mistakes soonest: rows, targets and the run's folder are checked
before any weights are read. If the recipe asks for it, the base then reads training rows to decide
the ranks of adapters (EVA) and how its weights are rounded to 4 bits.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh

from jaxft import console
from jaxft.adapters import tables
from jaxft.config import RunConfig
from jaxft.data.batches.loader import PlannedBatches
from jaxft.data.sources.source import RowSource
from jaxft.errors import ConfigError
from jaxft.models import families
from jaxft.models.families.config_reader import unapplied_dropout
from jaxft.training.prepare import batching, calibrate, checking, folder, measure, reading
from jaxft.training.prepare.leaves import Held, Leaves
from jaxft.training.prepare.plan import Plan
from jaxft.training.prepare.reading import Data, Side
from jaxft.training.prepare.request import Request
from jaxft.weights import base
from jaxft.weights.base import Base
from jaxft.weights.places import new_tokens


class Prepared(NamedTuple):
    """A run that is ready to begin.

    Attributes:
        plan: The plan of the run.
        leaves: Provide all leaves before the first step.
    """

    plan: Plan
    leaves: Leaves


def prepare(request: Request, held: Held | None) -> Prepared:
    """Read the rows, check the run's folder, measure ranks and calibrate, and return the plan.

    Args:
        request: The request of the run.
        held: The base model in memory; `None` if it is not in memory.

    Raises:
        JaxftError: If the rows cannot be used or are too long for the model, if the folder cannot
            be used, or if the weights are needed and cannot be read.
    """
    config, held_by = request.config, request.base
    data = _read_data(request)
    mesh, vocab_size = request.mesh, held_by.spec.vocab_size
    train = batching.train_batches(config, data, mesh, vocab_size)
    held_out = batching.eval_batches(config, data.eval, mesh) if data.eval else None
    if data.train.examples:
        checking.say(checking.run_check(config.data, data, train))
    num_steps = batching.num_steps(config, train)
    identity = folder.identity(request, data, train, num_steps)
    folder.check(identity, held_by.source)
    leaves = Leaves(held_by, held, request.tuned)
    decided = measure.decided(request, train, leaves)
    if config.model.is_calibrated:
        wanted = config.model.calibration_tokens
        leaves.round_by(calibrate.rounding(held_by, leaves.bare(), decided.network, train, wanted))
    plan = Plan(
        config=config.model_copy(update={"lora": decided.lora}),
        base=held_by,
        network=decided.network,
        data=data,
        train=train,
        eval=held_out,
        num_steps=num_steps,
        directions=decided.directions,
        initial=request.initial,
        identity=identity,
    )
    return Prepared(plan, leaves)


def held_out_batches(
    config: RunConfig, held_by: Base, rows: Sequence[RowSource], tokenizer: Any
) -> PlannedBatches:
    """Read only held-out rows, and plan their batches.

    Args:
        config: The recipe.
        held_by: The base model, with its mesh, dtype and quantization.
        rows: The held-out rows.
        tokenizer: The tokenizer of the model; `None` if all rows are tokens.

    Raises:
        JaxftError: If the rows cannot be used, or are too long for the model.
    """
    _check_length(config, held_by)
    stop_ids = base.read_stop_ids(held_by.source, tokenizer)
    side = reading.read_held_out(config.data, rows, tokenizer, stop_ids)
    _check_tokens([side], held_by)
    return batching.eval_batches(config, side, _mesh(held_by))


def _read_data(request: Request) -> Data:
    """Print which keys of the model's config are ignored, and read and encode the rows."""
    config, held_by, tokenizer = request.config, request.base, request.tokenizer
    found, family, method = held_by.source, held_by.family, config.tuning.method
    _check_length(config, held_by)
    if left := families.passed_over(family, found.config()):
        console.note(f"Keys of config.json that mean nothing for this model: {', '.join(left)}.")
    tables.warn_of_untrained(found, family, request.network, method)
    if dropouts := unapplied_dropout(found.config()):
        console.note(f"Of the base model, {', '.join(dropouts)} is not applied in training.")
    if tokenizer is not None:
        new_tokens.note_beyond(tokenizer, held_by.spec.vocab_size, console.note)
    stop_ids = base.read_stop_ids(found, tokenizer)
    data = reading.read_data(config.data, request.rows, tokenizer, stop_ids)
    _check_tokens(data.sides, held_by)
    return data


def _check_length(config: RunConfig, held_by: Base) -> None:
    """Raise a ConfigError if `max_length` is more than the model's table of positions has."""
    max_tokens = held_by.spec.max_tokens
    if max_tokens is not None and config.data.max_length > max_tokens:
        raise ConfigError(
            f"data.max_length={config.data.max_length}, and the model has {max_tokens} positions.",
            f"Set data.max_length to {max_tokens} or less.",
        )


def _check_tokens(sides: Sequence[Side], held_by: Base) -> None:
    """Raise a DataError for tokens without an embedding, and warn of very long rows."""
    for side in sides:
        side.check_ids(held_by.spec.vocab_size)
    num_positions = held_by.source.config().get("max_position_embeddings")
    reading.warn_of_untrained_positions(sides, num_positions)


def _mesh(held_by: Base) -> Mesh:
    assert isinstance(held_by.mesh, Mesh), "a run has devices"
    return held_by.mesh
