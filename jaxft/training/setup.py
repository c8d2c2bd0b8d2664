"""From a recipe to everything a run needs, in the order that finds mistakes soonest.

What can be checked without reading weights is checked before they are read: the rows, the targets
of the adapter.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxft import console
from jaxft import tree as trees
from jaxft.config import LoraConfig, RunConfig
from jaxft.data import encode, loader, report, sources
from jaxft.data.encode import Examples
from jaxft.data.loader import Batches
from jaxft.data.rows import Row
from jaxft.errors import ConfigError
from jaxft.lora import eva, starts, tuning
from jaxft.models.families.config_reader import unapplied_dropout
from jaxft.models.families.family import Family
from jaxft.models.network import Network
from jaxft.parallel import devices
from jaxft.parallel import mesh as meshes
from jaxft.training import calibrate
from jaxft.weights import base, source
from jaxft.weights.quantising import Plans
from jaxft.weights.source import Source

_SILENT_S = 2.0  # of encoding; from the cache it takes none


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A run, decided but not begun: no weights are read yet.

    Attributes:
        config: The recipe.
        source: Where the base model is.
        family: Its family.
        network: It, with what is trained of it.
        tokenizer: Its tokenizer.
        mesh: The devices.
        dtype: dtype of base weights and activations.
        train: The rows to learn from, by step.
        eval: The held-out rows, or `None`.
        eval_rows: The same as they were written, for prompts to show.
        num_steps: Steps of the whole run.
        lora: The recipe's section, but for what `measure.decided` has decided.
        directions: What A begins as, by module, where that was measured; `None` where it is drawn.
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
    lora: LoraConfig
    directions: Mapping[str, np.ndarray] | None

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.config.train.output_dir

    @property
    def checkpoints(self) -> Path:
        """Where its checkpoints lie."""
        return self.folder / "checkpoints"


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
    family, spec = base.read_spec(found)
    network = tuning.tuned_network(config.tuning, config.lora, family, spec)
    return plan_rows(
        config,
        found,
        family,
        network,
        found.tokenizer(),
        mesh,
        base.resolve_dtype(config.model.dtype),
        train_rows,
        eval_rows,
    )


def plan_rows(
    config: RunConfig,
    found: Source,
    family: Family,
    network: Network,
    tokenizer: Any,
    mesh: Mesh,
    dtype: str,
    train_rows: list[Row],
    eval_rows: list[Row],
) -> Plan:
    """Encode rows and decide on the run of a model that was found.

    Raises:
        JaxftError: If the rows cannot be used, or are too long for the model.
    """
    max_tokens, dropouts = network.spec.max_tokens, unapplied_dropout(found.config())
    if max_tokens is not None and config.data.max_length > max_tokens:
        raise ConfigError(
            f"data.max_length={config.data.max_length}, and the model has {max_tokens} positions.",
            f"Set data.max_length to {max_tokens} or less.",
        )
    if dropouts:
        console.note(f"Of the base model, {', '.join(dropouts)} is not applied in training.")
    train = _batches(config, train_rows, tokenizer, mesh, is_eval=False)
    held_out = _batches(config, eval_rows, tokenizer, mesh, is_eval=True) if eval_rows else None
    for batches in filter(None, (train, held_out)):
        batches.examples.check_ids(network.spec.vocab_size)
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
        dtype=dtype,
        train=train,
        eval=held_out,
        eval_rows=eval_rows,
        num_steps=num_steps,
        lora=config.lora,
        directions=None,
    )


def load_tree(plan: Plan) -> trees.Tree:
    """Read the base weights onto the mesh, and begin the adapters, if there are any.

    A base in 4 bits is first calibrated.
    """
    asked = plan.config.model
    own = base.load_base(
        plan.source,
        plan.family,
        plan.network,
        dtype=plan.dtype,
        mesh=plan.mesh,
        quantization=asked.quantization,
        rounding=_rounding(plan) if asked.is_calibrated else None,
    )
    base.note_quantised(own)
    kind, seed = plan.config.lora.init_lora_weights, plan.config.train.seed
    tree = starts.with_adapters(
        own, plan.family, plan.network, kind=kind, seed=seed, mesh=plan.mesh
    )
    if plan.directions is None:
        return tree
    return eva.begun(tree, plan.directions, plan.family, plan.network)


def _rounding(plan: Plan) -> Plans:
    quantization = plan.config.model.quantization
    assert quantization is not None
    return calibrate.rounding(
        plan.source,
        plan.family,
        plan.network,
        plan.train,
        plan.config.model.calibration_tokens,
        dtype=plan.dtype,
        mesh=plan.mesh,
        quantization=quantization,
    )


def _batches(
    config: RunConfig, rows: list[Row], tokenizer: Any, mesh: Mesh, *, is_eval: bool
) -> Batches:
    train, shards = config.train, meshes.row_shards(mesh)
    per_device = train.per_device_eval_batch_size if is_eval else train.per_device_train_batch_size
    accumulation = 1 if is_eval else train.gradient_accumulation_steps
    label = "Held-out rows" if is_eval else "Training rows"
    examples = encoded(label, rows, tokenizer, config.data.max_length)
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


def encoded(label: str, rows: list[Row], tokenizer: Any, max_length: int) -> Examples:
    """Encode rows, with a sign of life if that takes a while."""
    num_counted = 0

    with console.loading(f"{label}: encoding", len(rows), silent_s=_SILENT_S) as count:

        def progress(done: int, total: int) -> None:
            nonlocal num_counted
            count(done - num_counted)
            num_counted = done

        return encode.encode_rows(rows, tokenizer, max_length, progress)
