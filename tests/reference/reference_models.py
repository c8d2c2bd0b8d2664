"""Tiny random models, made by transformers and opened by jaxft: what every comparison starts from.

Which models, the package `cases` says. Weights are drawn at a standard deviation of 0.5, biases
too, norm scales around what they start from (1, or 0 where one is added to them): at transformers'
own 0.02 a tiny model hides a wrong feature, because attention is then nearly uniform.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import cases
import torch
import transformers
from cases import COMMON
from jax.sharding import Mesh

from jaxft import tree as trees
from jaxft.models import families
from jaxft.models.families.family import Family
from jaxft.models.network import Network, base_network
from jaxft.models.spec import ModelSpec
from jaxft.weights import load
from jaxft.weights.formats import safetensors
from jaxft.weights.formats.checkpoint import Checkpoint

STD = 0.5
# Where gradients or adapted models are compared: at 0.5 attention is so sharp that rounding alone
# moves them by up to 1e-4 of their norm, and so does torch's own rounding.
CALM_STD = 0.2
# Cases whose logits rounding alone moves by more than half of the tolerance at `STD`.
CALMER = dict.fromkeys(
    ("gemma-one-kv-head-legacy-gelu", "glm4", "ministral", "ministral3", "mistral3-ministral3"),
    0.35,
)
SHARD_BYTES = 40_000  # a few tensors a file, in the sharded variant


@dataclasses.dataclass(frozen=True)
class TinyModel:
    """One model on both sides.

    Attributes:
        torch_model: transformers' model, float32, in evaluation mode; never changed.
        folder: Where it was saved: config.json and safetensors.
        family: Ours, by that config.json.
        spec: Ours, by that config.json.
    """

    torch_model: transformers.PreTrainedModel
    folder: Path
    family: Family
    spec: ModelSpec

    @property
    def network(self) -> Network:
        return base_network(self.spec)

    def checkpoint(self) -> Checkpoint:
        return safetensors.open_safetensors(self.folder)

    def load(self, network: Network, mesh: Mesh, dtype: str = "float32") -> trees.Tree:
        """Read the saved weights for `network`, which may have adapters or another spec."""
        return load.load_base(
            self.checkpoint(),
            self.family,
            network,
            dtype=dtype,
            mesh=mesh,
            progress=lambda _: None,
            quantization=None,
            rounding=None,
        )


def make(
    name: str,
    folder: Path,
    *,
    std: float | None = None,
    dtype: torch.dtype = torch.float32,
    shard_bytes: int | None = None,
) -> TinyModel:
    """Draw the weights of a case at `dtype`, save them in `folder`, and open them there.

    Args:
        name: The case.
        folder: Where it is saved.
        std: Of the weights; by default `STD`, or less where that is too much.
        dtype: Of the weights.
        shard_bytes: The largest size of a file; by default that of transformers.
    """
    config = cases.config_of(name)
    model = auto_class(config).from_config(config, dtype=dtype)
    randomise(model, std or CALMER.get(name, STD), seed=sum(name.encode()))
    sharding = {} if shard_bytes is None else {"max_shard_size": shard_bytes}
    model.save_pretrained(folder, **sharding)
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family = families.family_of(saved)
    return TinyModel(open_torch(folder), folder, family, family.spec_from_config(saved))


def auto_class(config: transformers.PreTrainedConfig) -> Any:
    """Return the class that opens a model: not every model that also sees is one of text to it."""
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM
    return transformers.AutoModelForImageTextToText


def open_torch(folder: Path, dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
    """Open a saved model with transformers, as a user would, in evaluation mode."""
    config = transformers.AutoConfig.from_pretrained(folder)
    if config.model_type == "muse_glimmer_text":
        return _around_text(folder, dtype).eval()
    # Not `.to(dtype)` of a model: that would round the rotary frequencies as well.
    model = auto_class(config).from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.eval()


def _around_text(folder: Path, dtype: torch.dtype) -> transformers.PreTrainedModel:
    """Return a model that also sees with the text model of a folder, of which there is no class."""
    text = transformers.AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    kind = transformers.MuseGlimmerConfig
    sees = {key: each for key, each in COMMON[kind].items() if key != "text_config"}
    whole = auto_class(kind(text_config=text.config, **sees)).from_config(
        kind(text_config=text.config, **sees), dtype=dtype
    )
    whole.model.language_model = text
    head = safetensors.open_safetensors(folder).read("lm_head.weight")
    whole.lm_head.weight.data = torch.tensor(head.astype("float32"), dtype=dtype)
    return whole


@torch.no_grad()
def randomise(model: torch.nn.Module, std: float, seed: int) -> None:
    """Draw every parameter anew."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator) * std
        is_norm_scale = parameter.ndim == 1 and name.endswith(".weight")
        parameter.copy_(parameter + drawn if is_norm_scale else drawn)
