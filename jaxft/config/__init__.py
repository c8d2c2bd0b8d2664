"""The recipe of a run: its sections, and how they are read and written.

Public here: the sections, `load_config`, `dump_config`. The private files hold the sections, the
names from other libraries, the YAML reader, and the wording of errors. The room loads neither jax
nor transformers, so that a mistake in a recipe is reported at once.
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
