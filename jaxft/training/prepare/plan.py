"""The plan of a run: everything that is decided, before the first step is made.

Nothing in it is provisional. Where ranks are measured they have been, and there is one
`LoraConfig`, that of `config`; what the recipe said before is in the run's `Identity` alone.
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
    """What a run is known by in its folder.

    Attributes:
        recipe: The recipe as it was given, from which the same run can be made again.
        fingerprint: Everything that the run's numbers depend on, as JSON values by name.
    """

    recipe: RunConfig
    fingerprint: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A run, decided but not begun.

    Attributes:
        config: The recipe, with the ranks that were measured where it asks for that.
        base: The base model, and how it is held.
        network: The base model's network, with what is trained of it.
        data: The rows as tokens, and how they became that.
        train: The batches to learn from, by step.
        eval: The batches of held-out rows, or `None`.
        num_steps: Steps of the whole run.
        directions: What A begins as, [rank, in] by module name, where that was measured; `None`
            where it is drawn.
        initial: The adapter that training goes on from; `None` for a fresh one.
        identity: What the run is known by in its folder.
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
        """Where the base model is."""
        return self.base.source

    @property
    def family(self) -> Family:
        """The family of the base model."""
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
    def tokenizer(self) -> Any:
        """The tokenizer, with the chat template that is trained with; None for rows of tokens."""
        return self.data.tokenizer

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.config.train.output_dir

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints of the run lie."""
        return checkpoints_in(self.folder)


def checkpoints_in(folder: Path) -> Path:
    """Return where the checkpoints of a run lie in its folder."""
    return folder / "checkpoints"
