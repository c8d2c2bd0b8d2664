"""From a recipe to everything a run needs, in the order that finds mistakes soonest.

What can be checked without reading weights is checked before they are read: the output folder,
the rows, the targets of the adapter, whose checkpoints are there.
"""

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxft import console
from jaxft import tree as trees
from jaxft.config import RunConfig, dump_config
from jaxft.data import encode, loader, report, sources
from jaxft.data.loader import Batches
from jaxft.data.rows import Row
from jaxft.errors import CheckpointError, ConfigError
from jaxft.lora import targets
from jaxft.models.families.family import Family
from jaxft.models.network import Network
from jaxft.parallel import devices
from jaxft.parallel import mesh as meshes
from jaxft.training import checkpoint
from jaxft.weights import base, source
from jaxft.weights.source import Source


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run, decided but not begun: no weights are read yet.

    Attributes:
        config: The recipe.
        source: Where the base model is.
        family: Its family.
        network: It, with the adapters to train.
        tokenizer: Its tokenizer.
        mesh: The devices.
        dtype: dtype of base weights and activations.
        train: The rows to learn from, by step.
        eval: The held-out rows, or `None`.
        eval_rows: The same as they were written, for prompts to show.
        num_steps: Steps of the whole run.
    """

    config: RunConfig
    source: Source
    family: Family
    network: Network
    tokenizer: Any
    mesh: Mesh
    dtype: str
    train: Batches
    eval: Batches | None
    eval_rows: list[Row]
    num_steps: int

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.config.train.output_dir

    @property
    def checkpoint_folder(self) -> Path:
        """Where the checkpoints lie."""
        return self.folder / "checkpoints"

    def fingerprint(self) -> dict[str, Any]:
        """Everything that the run's numbers depend on, as JSON values by name.

        The global batch is in it, not how it is divided over devices and micro-batches.
        """
        train = self.config.train.model_dump(mode="json", exclude=set(_NOT_NUMERIC))
        infos = self.source.checkpoint().infos()
        weights = [[name, *map(str, info)] for name, info in sorted(infos.items())]
        return {
            "model": [self.source.name, self.source.revision],
            "weights": _digest(weights),
            "dtype": self.dtype,
            "lora": self.config.lora.model_dump(mode="json"),
            "data": self.train.examples.fingerprint,
            "packing": self.config.data.packing,
            "shuffle": self.config.data.shuffle,
            "sequence_length": self.train.sequence_length,
            "global_batch": self.train.global_batch,
            "num_steps": self.num_steps,
            **{f"train.{key}": value for key, value in train.items()},
        }


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


def make_plan(config: RunConfig) -> Plan:
    """Find the model, read the rows, and decide on the run.

    Raises:
        JaxftError: If anything about the recipe, the rows, the model or the folder is amiss.
    """
    devices.check()
    console.note(f"Devices: {devices.describe()}")
    mesh = meshes.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    train_rows = sources.read_rows(config.data.train)
    eval_rows = [] if config.data.eval is None else sources.read_rows(config.data.eval)
    found = source.resolve(config.model.path, config.model.revision, console.note)
    console.note(f"Base model: {found.name} ({found.origin})")
    _check_output(config.train.output_dir, found)
    family, spec = base.read_spec(found)
    network = targets.adapted_network(config.lora, family, spec)
    tokenizer = found.tokenizer()
    train = _batches(config, train_rows, tokenizer, mesh, is_eval=False)
    held_out = _batches(config, eval_rows, tokenizer, mesh, is_eval=True) if eval_rows else None
    num_steps = config.train.max_steps
    if num_steps <= 0:
        num_steps = math.ceil(config.train.num_train_epochs * train.steps_per_epoch)
    return Plan(
        config=config,
        source=found,
        family=family,
        network=network,
        tokenizer=tokenizer,
        mesh=mesh,
        dtype=base.resolve_dtype(config.model.dtype),
        train=train,
        eval=held_out,
        eval_rows=eval_rows,
        num_steps=num_steps,
    )


def open_checkpoints(plan: Plan) -> checkpoint.Checkpoints:
    """Open the run's folder for checkpoints, and write the resolved recipe there.

    Raises:
        CheckpointError: If what lies there is not what `resume_from_checkpoint` asks for.
    """
    resume, folder = plan.config.train.resume_from_checkpoint, plan.checkpoint_folder
    fingerprint = plan.fingerprint()
    if resume is False:
        _refuse_existing(folder)
    steps = checkpoint.check_folder(folder, fingerprint)
    if resume is True and not steps:
        raise CheckpointError(
            f"{folder} holds no checkpoint, and train.resume_from_checkpoint is true.",
            "Set it to auto to start where there is nothing to resume.",
        )
    plan.folder.mkdir(parents=True, exist_ok=True)
    (plan.folder / "config.yaml").write_text(dump_config(plan.config), encoding="utf-8")
    return checkpoint.Checkpoints(folder, fingerprint, plan.config.train.save_total_limit)


def load_frozen(plan: Plan) -> trees.Tree:
    """Read the base weights onto the mesh."""
    return base.load_base(plan.source, plan.family, plan.network, dtype=plan.dtype, mesh=plan.mesh)


def _batches(
    config: RunConfig, rows: list[Row], tokenizer: Any, mesh: Mesh, *, is_eval: bool
) -> Batches:
    train, shards = config.train, meshes.row_shards(mesh)
    per_device = train.per_device_eval_batch_size if is_eval else train.per_device_train_batch_size
    accumulation = 1 if is_eval else train.gradient_accumulation_steps
    label = "Held-out rows" if is_eval else "Training rows"
    examples = encode.encode_rows(rows, tokenizer, config.data.max_length)
    console.note(f"{label}: {report.describe(examples.report)}")
    return loader.make_batches(
        examples,
        max_length=config.data.max_length,
        packing=config.data.packing,
        shuffle=config.data.shuffle and not is_eval,
        seed=train.seed,
        global_batch=per_device * shards * accumulation,
        accumulation=accumulation,
        shards=shards,
        drop_last=train.dataloader_drop_last and not is_eval,
    )


def _check_output(output: Path, found: Source) -> None:
    """Refuse to write into the folder that the base model lies in.

    Raises:
        ConfigError: If `output` is that folder or in it.
    """
    model, folder = found.folder.resolve(), output.resolve()
    # A GGUF's folder may well be one for all sorts of things.
    if folder == model or (found.gguf is None and model in folder.parents):
        raise ConfigError(
            f"train.output_dir={output} is the base model's folder, or lies in it.",
            "Choose another folder: the tuned model is kept apart from its base.",
        )


def _refuse_existing(folder: Path) -> None:
    if folder.is_dir() and any(entry.name.isdigit() for entry in folder.iterdir()):
        raise CheckpointError(
            f"{folder} holds checkpoints, and train.resume_from_checkpoint is false.",
            "Choose another train.output_dir, or remove the folder if it is not wanted.",
        )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
