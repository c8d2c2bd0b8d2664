"""Adapters on both sides: made by PEFT and read by jaxft, made by jaxft and opened by PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import peft
import pytest
import reference_models
import torch
from jax.sharding import Mesh
from reference_models import TinyModel

from jaxft import tree as trees
from jaxft.config import LoraConfig
from jaxft.lora import mask, peft_format, targets
from jaxft.models import bind
from jaxft.models.network import Network

RANK, ALPHA = 4, 12  # a scaling of 3, which nobody gets by chance
# Of a size with the kernels' own, so that an adapter that is not there is missed.
STD = 0.15

# Of PEFT 0.21 beside transformers 5.23; the first asks for a property under its older name, the
# others speak of an adapter on the head, which is saved with its frozen head and moves it alone.
IGNORED_WARNINGS = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "`is_gradient_checkpointing` is deprecated:FutureWarning",
        "Setting `save_embedding_layers` to `True`:UserWarning",
        "Model has `tie_word_embeddings=True`:UserWarning",
    )
]

Targets = list[str] | str | None


class Adapted(NamedTuple):
    """A network with adapters: their leaves, and the base's."""

    network: Network
    adapters: trees.Tree
    frozen: trees.Tree

    @property
    def tree(self) -> trees.Tree:
        return trees.combine(self.adapters, self.frozen)


def peft_on(model: TinyModel, chosen: Targets, seed: int | None) -> peft.PeftModel:
    """Return PEFT's fresh adapter on a model; with a seed, both A and B are drawn at random."""
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=chosen, task_type="CAUSAL_LM", lora_dropout=0.0
    )
    adapted = peft.get_peft_model(reference_models.open_torch(model.folder), config).eval()
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in adapted.named_parameters():
            if ".lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * STD
    return adapted


def peft_from(model: TinyModel, folder: Path) -> peft.PeftModel:
    """Open an adapter folder with PEFT."""
    return peft.PeftModel.from_pretrained(reference_models.open_torch(model.folder), folder).eval()


def read(model: TinyModel, folder: Path, mesh: Mesh) -> Adapted:
    """Open an adapter folder with jaxft."""
    config, tensors = peft_format.read_adapter(folder)
    lora = peft_format.read_lora_config(config, folder)
    network = targets.adapted_network(lora, model.family, model.spec)
    adapters = peft_format.from_tensors(tensors, model.family, network, folder)
    return Adapted(network, adapters, model.load(network, mesh))


def ours_on(model: TinyModel, chosen: Targets, mesh: Mesh, seed: int) -> Adapted:
    """Return our adapter on a model, A and B drawn at random."""
    network = targets.adapted_network(lora_config(chosen), model.family, model.spec)
    rng = np.random.default_rng(seed)
    leaves = {
        path: (rng.standard_normal(leaf.shape) * STD).astype(np.float32)
        for path, leaf in trees.flatten(bind.abstract_tree(network)).items()
        if mask.is_adapter_leaf(path)
    }
    return Adapted(network, trees.unflatten(leaves), model.load(network, mesh))


def export(
    model: TinyModel, chosen: Targets, network: Network, adapters: Mapping[str, Any], folder: Path
) -> None:
    """Write an adapter folder with jaxft."""
    config = peft_format.adapter_config(
        lora_config(chosen), model.family, model.spec, str(model.folder), None
    )
    tensors = peft_format.to_tensors(jax.device_get(adapters), model.family, network)
    peft_format.save_adapter(folder, tensors, config)


def lora_config(chosen: Targets) -> LoraConfig:
    return LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=chosen)


def gradients_by_name(adapted: peft.PeftModel) -> dict[str, np.ndarray]:
    """Return the gradients that PEFT's adapters have, under the names they are saved by."""
    return {
        name.replace(".default.", "."): parameter.grad.numpy()
        for name, parameter in adapted.named_parameters()
        if parameter.grad is not None
    }
