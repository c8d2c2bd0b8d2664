"""The plan of a run: everything that is decided before the first step.

Everything in it is final. If ranks are measured, they are in it: the only `LoraConfig` is that of
`config`, and only the run's `Identity` still has the recipe as it was given.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxft.artifacts.initial import Initial
from jaxft.config import RunConfig
from jaxft.data.batches.batch import Batches
from jaxft.data.batches.loader import PlannedBatches
from jaxft.models.families.family import Family
from jaxft.models.network import Network
from jaxft.training.prepare.reading import Data
from jaxft.weights.base import Base
from jaxft.weights.places.source import Source


class Identity(NamedTuple):
    """What identifies a run in its folder.

    Attributes:
        recipe: The recipe as it was given, from which the same run can be made again.
        fingerprint: Everything that the run's numbers depend on, as JSON values by name.
    """

    recipe: RunConfig
    fingerprint: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A run that is decided but has not begun.

    Attributes:
        config: The recipe, with the measured ranks if it asks for EVA.
        base: The base model, with its mesh, dtype and quantization.
        network: The base model's network, with its trained parts.
        data: The encoded rows, and how they were encoded.
        train: The training batches, by step.
        eval: The batches of held-out rows; `None` without them.
        num_steps: The number of steps of the whole run.
        directions: The measured initial A [rank, in] of each module, by its full name; `None` if A
            is drawn at random.
        initial: The adapter from which training continues; `None` for a fresh one.
        identity: What identifies the run in its folder.
    """

    config: RunConfig
    base: Base
    network: Network
    data: Data
    train: Batches
    eval: PlannedBatches | None
    num_steps: int
    directions: Mapping[str, np.ndarray] | None
    initial: Initial | None
    identity: Identity

    @property
    def source(self) -> Source:
        """The files of the base model."""
        return self.base.source

    @property
    def family(self) -> Family:
        """The family of the base model."""
        return self.base.family

    @property
    def mesh(self) -> Mesh:
        """The mesh of devices."""
        assert isinstance(self.base.mesh, Mesh), "a run has devices"
        return self.base.mesh

    @property
    def dtype(self) -> str:
        """The dtype of base weights and activations."""
        return self.base.dtype

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, with the chat template used in training; `None` if all rows are tokens."""
        return self.data.tokenizer

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.config.train.output_dir

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's checkpoints."""
        return checkpoints_in(self.folder)


def checkpoints_in(folder: Path) -> Path:
    """Return the folder of the checkpoints in a run's folder."""
    return folder / "checkpoints"
