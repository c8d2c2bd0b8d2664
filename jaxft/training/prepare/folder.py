"""The folder of a run: whether it may be used, what the run is known by, and its opening.

Separate because a folder that holds something else is refused before anything is read into memory,
and written to only when everything else is in order. The invariant: a run goes on only from
checkpoints of which every number would have come out the same.
"""

import hashlib
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxft import console
from jaxft import tree as trees
from jaxft.adapters import peft_format
from jaxft.artifacts import verify
from jaxft.config import DataConfig, RunConfig, dump_config, load_config
from jaxft.data.batches.batch import Batches
from jaxft.errors import CheckpointError, ConfigError
from jaxft.models.network import base_network
from jaxft.models.quantized import Quantized
from jaxft.training import checkpoint
from jaxft.training.prepare import measure
from jaxft.training.prepare.plan import Identity, Plan, checkpoints_in
from jaxft.training.prepare.reading import Data
from jaxft.training.prepare.request import Request
from jaxft.weights import names, save
from jaxft.weights.base import Base
from jaxft.weights.places.source import Source

_RECIPE_FILE = "config.yaml"
_RECIPE_HEAD = "# Written by jaxft train: the recipe of this run, every option in it.\n"

_BASE_FILE = "base.crc32"
_WRITTEN = ("adapter", "model", "checkpoints")  # folders that a run makes in its own
# What may change when a run goes on: where and when it speaks and saves, and how a global batch
# is divided (the batch itself is in the fingerprint).
_NOT_NUMERIC = frozenset(
    {
        "output_dir",
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "num_train_epochs",
        "max_steps",
        "logging_steps",
        "eval_strategy",
        "eval_steps",
        "save_strategy",
        "save_steps",
        "save_total_limit",
        "resume_from_checkpoint",
    }
)


def identity(request: Request, data: Data, train: Batches, num_steps: int) -> Identity:
    """Return what a run is known by: its recipe, and all that its numbers depend on.

    The global batch is in the fingerprint, not how it is divided over devices and micro-batches.

    Args:
        request: What is asked of the run.
        data: The rows as tokens.
        train: The batches to learn from.
        num_steps: Steps of the whole run.

    Raises:
        WeightsError: If the headers of the base model's files cannot be read.
    """
    config, base = request.config, request.base
    numeric = config.train.model_dump(mode="json", exclude=set(_NOT_NUMERIC))
    # Only where there are any: runs of before there could be are the same without them.
    added = {"new_tokens": config.model.new_tokens} if config.model.new_tokens else {}
    tokens_read = config.model.calibration_tokens if config.model.is_in_four_bits else None
    fingerprint = {
        "model": [base.source.name, base.source.revision],
        **added,
        "weights": _weights(base),
        "dtype": base.dtype,
        "quantization": config.model.quantization,
        "calibration_tokens": tokens_read,
        "tuning": config.tuning.model_dump(mode="json"),
        "lora": config.lora.model_dump(mode="json", exclude={"init_from"}),
        "lora.init_from": _initial(request),
        # A stream has no digest of its tokens: it is known by its files and options.
        "data.train": data.train.fingerprint or train.fingerprint,
        "data.eval": None if data.eval is None else data.eval.fingerprint,
        "data.weights": [source.weight for source in config.data.train],
        "data.packing": config.data.packing,
        "data.group_by_length": config.data.group_by_length,
        "data.shuffle": config.data.shuffle,
        "sequence_length": train.sequence_length,
        "global_batch": train.global_batch,
        "num_steps": num_steps,
        **{f"train.{key}": value for key, value in numeric.items()},
    }
    return Identity(config, fingerprint)


def check(identity: Identity, base: Source) -> None:
    """Refuse a folder that a run cannot start or go on in; nothing is written.

    Args:
        identity: What the run is known by; its recipe names the folder.
        base: The base model, which is not written over.

    Raises:
        ConfigError: If it is not a folder, holds a recipe that no run wrote, or is the base
            model's.
        WeightsError: If something else lies where its result goes.
        CheckpointError: If the checkpoints there are another run's, or not what
            `resume_from_checkpoint` asks for.
    """
    config = identity.recipe
    folder = config.train.output_dir
    save.check_apart(folder, base, replaced=_WRITTEN, called=f"train.output_dir={folder}")
    _check_place(folder)
    _check_initial(config)
    # Said now, and not after hours of training.
    is_adapter = config.tuning.method == "lora"
    mark = peft_format.CONFIG_FILE if is_adapter else verify.FILE
    save.check_gives_way(folder / ("adapter" if is_adapter else "model"), mark)
    resume, checkpoints = config.train.resume_from_checkpoint, checkpoints_in(folder)
    steps = checkpoint.saved_steps(checkpoints)
    if resume is False and steps:
        raise CheckpointError(
            f"{checkpoints} holds checkpoints, and train.resume_from_checkpoint is false.",
            "Choose another train.output_dir, or remove the folder if it is not wanted.",
        )
    if resume is True and not steps:
        raise CheckpointError(
            f"{checkpoints} holds no checkpoint, and train.resume_from_checkpoint is true.",
            "Set it to auto to start where there is nothing to resume.",
        )
    if steps:
        checkpoint.check_fingerprint(checkpoints, identity.fingerprint)


def data_of(run: Path) -> DataConfig | None:
    """Return what rows a run was made from, by the recipe in its folder, if they are still there.

    A run from Python has them in memory, and there are none to find.
    """
    try:
        return load_config(run / _RECIPE_FILE).data
    except ConfigError:
        return None


def open_checkpoints(plan: Plan) -> checkpoint.Checkpoints:
    """Write recipe and measured start into the run's folder, and open its checkpoints.

    Raises:
        ConfigError: If the folder cannot be written to.
        CheckpointError: If the checkpoints there are another run's.
    """
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        text = _RECIPE_HEAD + dump_config(plan.identity.recipe)
        (plan.folder / _RECIPE_FILE).write_text(text, encoding="utf-8")
        measure.write(plan)
    except OSError as error:
        raise _unusable(plan.folder, f"cannot be written to: {error.strerror}") from error
    limit = plan.config.train.save_total_limit
    return checkpoint.Checkpoints(plan.checkpoints, plan.identity.fingerprint, limit)


def remember_base(plan: Plan, tree: Mapping[str, Any]) -> None:
    """Note what a calibrated base came out as, and warn if the run began over another.

    It is in no file, and made anew when a run goes on: the same to the bit on the same devices, but
    not surely on others, whose sums are rounded otherwise.
    """
    if not plan.config.model.is_calibrated:
        return
    checksum = 0
    for leaf in trees.flatten(tree).values():
        if isinstance(leaf, Quantized):
            for part in (leaf.codes, leaf.blocks):
                checksum = zlib.crc32(np.asarray(part).tobytes(), checksum)
    path, now = plan.folder / _BASE_FILE, f"{checksum:08x}\n"
    if not checkpoint.saved_steps(plan.checkpoints):
        path.write_text(now)
    elif not path.exists() or path.read_text() != now:
        console.warning(
            f"the base, rounded to {plan.config.model.quantization} anew, is not to the bit the "
            f"one that this run began with ({path.name} in its folder): other devices round sums "
            "otherwise. The run goes on, but not bit for bit."
        )


def _check_place(folder: Path) -> None:
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise _unusable(folder, f"cannot be a folder: {existing} is a file")
    if not os.access(existing, os.W_OK):
        raise _unusable(folder, f"cannot be written to: {existing} is not yours to write")
    recipe = folder / _RECIPE_FILE
    if recipe.exists() and not recipe.read_bytes().startswith(_RECIPE_HEAD.encode()):
        raise _unusable(folder, f"holds a {recipe.name} that no run wrote, and that one would lose")


def _initial(request: Request) -> list[str] | None:
    """Return what is known of the adapter that the run goes on from."""
    folder, found = request.config.lora.init_from, request.initial
    return None if folder is None or found is None else [folder, found.digest]


def _check_initial(config: RunConfig) -> None:
    """Refuse a run that would write over what it began with.

    Raises:
        ConfigError: If it would.
    """
    folder, place = config.lora.init_from, config.train.output_dir
    if folder is not None and Path(folder).resolve().is_relative_to(place.resolve()):
        raise ConfigError(
            f"lora.init_from={folder} lies in train.output_dir={place}, and would be written over.",
            "Choose another train.output_dir.",
        )


def _unusable(folder: Path, found: str) -> ConfigError:
    return ConfigError(
        f"train.output_dir={folder} {found}.",
        "Choose another folder; it is made if it does not exist.",
    )


def _weights(base: Base) -> str:
    """Return a digest of what the base model's files say, read in a moment.

    Of the values only the vectors and the first layer of each group are in it: enough to know
    another model, or another tuning of the same one.
    """
    source = names.under_full_names(base.source.checkpoint(), base.family)
    # Of the base, whose groups are there before it is decided what is trained.
    slots = names.slots(base.family, base_network(base.spec))
    digest = hashlib.sha256()
    for name, info in sorted(source.infos().items()):
        digest.update(f"{name} {info.shape} {info.dtype}\n".encode())
        is_first = name in slots and slots[name][0].index == (0,)
        if is_first or len(info.shape) == 1:
            digest.update(source.read(name).tobytes())
    return digest.hexdigest()
