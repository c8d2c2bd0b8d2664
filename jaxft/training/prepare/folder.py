"""The folder of a run: checks whether it may be used, makes the run's fingerprint, and opens it.

A folder that holds something else is refused before anything is read into memory, and the folder is
written to only after all other checks. The invariant: a run resumes only from checkpoints that it
would have computed itself, number for number.
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
_WRITTEN = ("adapter", "model", "checkpoints")  # folders that a run makes inside its own
# Options that may change when a run is resumed: where and when it logs and saves, and how a global
# batch is divided (the size of the batch itself is in the fingerprint).
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
    """Return the identity of a run: its recipe, and a fingerprint of all its numbers depend on.

    The fingerprint has the size of the global batch, but not how it is divided over devices and
    micro-batches.

    Args:
        request: The request of the run.
        data: The encoded rows.
        train: The training batches.
        num_steps: The number of steps of the whole run.

    Raises:
        WeightsError: If the headers of the base model's files cannot be read.
    """
    config, base = request.config, request.base
    numeric = config.train.model_dump(mode="json", exclude=set(_NOT_NUMERIC))
    # Only if there are any, so that runs of older versions keep their fingerprints.
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
        # A stream has no digest of its tokens; its files and options identify it.
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
    """Refuse a folder in which a run can neither start nor resume; nothing is written.

    Args:
        identity: The identity of the run; its recipe names the folder.
        base: The base model, which must not be overwritten.

    Raises:
        ConfigError: If the path is not a folder, the folder holds a recipe that no run wrote, or
            it is the base model's.
        WeightsError: If the place of the run's result holds something else.
        CheckpointError: If the checkpoints in the folder belong to another run, or do not fit
            `resume_from_checkpoint`.
    """
    config = identity.recipe
    folder = config.train.output_dir
    save.check_apart(folder, base, replaced=_WRITTEN, called=f"train.output_dir={folder}")
    _check_place(folder)
    _check_initial(config)
    # Reported now, not after hours of training.
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
    """Return the `data` section of the recipe in a run's folder; `None` if it cannot be used.

    A run from Python has its rows in memory, so that its recipe names no files.
    """
    try:
        return load_config(run / _RECIPE_FILE).data
    except ConfigError:
        return None


def open_checkpoints(plan: Plan) -> checkpoint.Checkpoints:
    """Write the recipe and the measured EVA directions to the run's folder; open its checkpoints.

    Raises:
        ConfigError: If the folder cannot be written to.
        CheckpointError: If the checkpoints in the folder belong to another run.
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
    """Record a checksum of a calibrated base, and warn if the run began with another one.

    The calibrated base is not saved, but computed again when a run resumes. On the same devices it
    is bitwise the same; on others it may differ, because they may round sums differently.
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
    """Return the folder and the digest of the adapter from which the run continues, if any."""
    folder, found = request.config.lora.init_from, request.initial
    return None if folder is None or found is None else [folder, found.digest]


def _check_initial(config: RunConfig) -> None:
    """Refuse a run that would overwrite the adapter from which it continues.

    Raises:
        ConfigError: If `lora.init_from` is inside the run's folder.
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
    """Return a digest of the base model's files that is quick to compute.

    It covers the names, shapes and dtypes of all tensors, but only the values of vectors and of the
    first layer of each group. That is enough to detect another model, or another tuning of it.
    """
    source = names.under_full_names(base.source.checkpoint(), base.family)
    # The groups of the base network, which do not depend on what is trained.
    slots = names.slots(base.family, base_network(base.spec))
    digest = hashlib.sha256()
    for name, info in sorted(source.infos().items()):
        digest.update(f"{name} {info.shape} {info.dtype}\n".encode())
        is_first = name in slots and slots[name][0].index == (0,)
        if is_first or len(info.shape) == 1:
            digest.update(source.read(name).tobytes())
    return digest.hexdigest()
