"""What a run is told: the recipe's sections, and reading and writing them.

Public here: the sections, `load_config`, `dump_config`. The private files behind it are the
sections themselves, the names known from elsewhere, the YAML reader, and the wording of errors.
The invariant of the room: it loads neither jax nor transformers, so a mistake in a recipe is
answered at once.
"""

from __future__ import annotations

from jaxft.config.data import DataConfig, HoldOutConfig, SourceConfig
from jaxft.config.eva import EvaConfig
from jaxft.config.lora import LoraConfig
from jaxft.config.recipe import dump_config, load_config, section_error
from jaxft.config.sections import (
    MeshConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    TuningConfig,
)

__all__ = [
    "DataConfig",
    "EvaConfig",
    "HoldOutConfig",
    "LoraConfig",
    "MeshConfig",
    "ModelConfig",
    "RunConfig",
    "SourceConfig",
    "TrainConfig",
    "TuningConfig",
    "dump_config",
    "load_config",
    "section_error",
]
