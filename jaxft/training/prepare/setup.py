"""From a recipe to everything a run needs, in the order that finds mistakes soonest.

What can be checked without reading weights is checked before they are read: the rows, the targets
of the adapter.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxft import console
from jaxft import tree as trees
from jaxft.adapters import tables
from jaxft.artifacts import initial
from jaxft.artifacts.initial import Initial
from jaxft.config import LoraConfig, RunConfig
from jaxft.data.batches.batch import Batches
from jaxft.data.batches.loader import PlannedBatches
from jaxft.errors import ConfigError
from jaxft.lora import eva, starts, tuning
from jaxft.models import families
from jaxft.models.families.config_reader import unapplied_dropout
from jaxft.models.families.family import Family
from jaxft.models.network import Network
from jaxft.parallel import devices
from jaxft.parallel import mesh as meshes
from jaxft.training.prepare import batching, calibrate, checking, reading
from jaxft.training.prepare.reading import Data
from jaxft.weights import base
from jaxft.weights.base import Base
from jaxft.weights.places import new_tokens, source
from jaxft.weights.places.source import Source
from jaxft.weights.quantizing import Plans


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A run, decided but not begun: no weights are read yet.

    Attributes:
        config: The recipe.
        base: The base model, and how it is held.
        network: It, with what is trained of it.
        tokenizer: Its tokenizer, with the chat template that is trained with.
        data: The rows as tokens, and how they became that.
        train: The batches to learn from, by step.
        eval: The batches of held-out rows, or `None`.
        num_steps: Steps of the whole run.
        lora: The recipe's section, but for what `measure.decided` has decided.
        directions: What A begins as, by module, where that was measured; `None` where it is drawn.
        initial: The adapter that training goes on from; `None` for a fresh one.
    """

    config: RunConfig
    base: Base
    network: Network
    tokenizer: Any
    data: Data
    train: Batches
    eval: PlannedBatches | None
    num_steps: int
    lora: LoraConfig
    directions: Mapping[str, np.ndarray] | None
    initial: Initial | None

    @property
    def source(self) -> Source:
        """Where the base model is."""
        return self.base.source

    @property
    def family(self) -> Family:
        """Its family."""
        return self.base.family

    @property
    def mesh(self) -> Mesh:
        """The devices."""
        assert isinstance(self.base.mesh, Mesh), "a run has devices"
        return self.base.mesh

    @property
    def dtype(self) -> str:
        """The dtype of base weights and activations."""
        return self.base.dtype

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
    rows = reading.open_recipe(config.data)
    found = source.resolve(config.model.path, config.model.revision, console.note)
    console.note(f"Base model: {found.name} ({found.origin})")
    found = new_tokens.with_new_tokens(found, config.model.new_tokens, console.note)
    begun = None
    if config.lora.init_from is not None:
        begun = initial.read(Path(config.lora.init_from), config.lora, found)
        found = begun.source
    family, spec = base.read_spec(found)
    network = tuning.tuned_network(config.tuning, config.lora, family, spec)
    tables.refuse_untrained(found, family, network, config.tuning.method)
    dtype = base.resolve_dtype(config.model.dtype)
    plan = plan_rows(config, found, family, network, found.tokenizer(), mesh, dtype, rows)
    return dataclasses.replace(plan, initial=begun)


def plan_rows(
    config: RunConfig,
    found: Source,
    family: Family,
    network: Network,
    tokenizer: Any,
    mesh: Mesh,
    dtype: str,
    rows: reading.OpenRows,
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
    if left := families.passed_over(family, found.config()):
        console.note(f"Keys of config.json that mean nothing for this model: {', '.join(left)}.")
    tables.warn_of_untrained(found, family, network, config.tuning.method)
    if dropouts:
        console.note(f"Of the base model, {', '.join(dropouts)} is not applied in training.")
    if tokenizer is not None:
        new_tokens.note_beyond(tokenizer, network.spec.vocab_size, console.note)
    stop_ids = base.read_stop_ids(found, tokenizer)
    data = reading.read_data(config.data, rows, tokenizer, stop_ids)
    data.check_ids(network.spec.vocab_size)
    data.warn_of_untrained_positions(found.config().get("max_position_embeddings"))
    train = batching.train_batches(config, data, mesh, network.spec.vocab_size)
    held_out = batching.eval_batches(config, data.eval, mesh) if data.eval else None
    if data.train.examples and rows.eval is not rows.train:
        checking.say(checking.run_check(config.data, data, train))
    return Plan(
        config=config,
        base=Base(found, family, network.spec, mesh, dtype, config.model.quantization),
        network=network,
        tokenizer=data.tokenizer,
        data=data,
        train=train,
        eval=held_out,
        num_steps=batching.num_steps(config, train),
        lora=config.lora,
        directions=None,
        initial=None,
    )


def load_tree(plan: Plan) -> trees.Tree:
    """Read the base weights onto the mesh, and begin the adapters, if there are any.

    A base in 4 bits is first calibrated.
    """
    asked = plan.config.model
    own = plan.base.load(plan.network, _rounding(plan) if asked.is_calibrated else None)
    base.note_quantized(own)
    kind, seed = plan.config.lora.init_lora_weights, plan.config.train.seed
    tree = starts.with_adapters(
        own, plan.family, plan.network, kind=kind, seed=seed, mesh=plan.mesh
    )
    if plan.directions is None:
        return tree
    return eva.begun(tree, plan.directions, plan.family, plan.network)


def _rounding(plan: Plan) -> Plans:
    return calibrate.rounding(
        plan.base, plan.network, plan.train, plan.config.model.calibration_tokens
    )
