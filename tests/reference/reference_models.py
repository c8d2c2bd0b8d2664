"""Tiny random models, made by transformers and opened by jaxft: what every comparison starts from.

A case is one line of `CASES`: a config class and what sets it apart from the common shape, so a
further family, or a further feature of one, is a further line. Weights are drawn at a standard
deviation of 0.5, biases too, norm scales around 1: at transformers' own 0.02 a tiny model
hides a wrong feature, because attention is then nearly uniform.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from jax.sharding import Mesh

from jaxft import tree as trees
from jaxft.models import families
from jaxft.models.families.family import Family
from jaxft.models.network import Network, base_network
from jaxft.models.spec import ModelSpec
from jaxft.weights import load, safetensors
from jaxft.weights.checkpoint import Checkpoint

STD = 0.5
# Where gradients are compared: at 0.5 attention is so sharp that rounding alone moves them by
# up to 1e-4 of their norm, and so does torch's own rounding.
CALM_STD = 0.2
SHARD_BYTES = 40_000  # a few tensors a file, in the sharded variant
WINDOW = 11  # tokens; a third of the shortest row

VOCAB_SIZE = 112
TOKENS = {
    "vocab_size": VOCAB_SIZE,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
# All sizes differ, so that no dimension can stand in for another: heads x head_dim is the width.
GROUPED = {
    "hidden_size": 64,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-2,  # large enough that a norm without it is another norm
    "tie_word_embeddings": False,
}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}
# Head width 16 gives wavelengths 6, 20, 63, 199, ...: with these factors the first is left alone,
# the next two are interpolated and the others are stretched, all within a row's length.
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 64,
    "truncate": False,
}
# Two of the rows drawn are longer than the length that the model began with, two are not.
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0 + n / 8 for n in range(8)],
    "long_factor": [2.0 + n for n in range(8)],
    "original_max_position_embeddings": 40,
}

LLAMA, MISTRAL = transformers.LlamaConfig, transformers.MistralConfig
OPT, GPT2 = transformers.OPTConfig, transformers.GPT2Config
COMMON: dict[type[transformers.PreTrainedConfig], dict[str, Any]] = {
    LLAMA: GROUPED,
    MISTRAL: GROUPED,
    OPT: {
        "hidden_size": 64,
        "word_embed_proj_dim": 64,
        "ffn_dim": 88,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 96,
    },
    GPT2: {
        "n_embd": 64,
        "n_head": 4,
        "n_layer": 3,
        "n_positions": 96,
        "layer_norm_epsilon": 1e-2,
    },
}
# The embedding of the 350m model is narrower than its layers.
OPT_350M = {"do_layer_norm_before": False, "word_embed_proj_dim": 40}

CASES: dict[str, tuple[type[transformers.PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LLAMA, {}),
    "llama-tied": (LLAMA, {"tie_word_embeddings": True}),
    "llama-attention-bias-gelu": (LLAMA, {"attention_bias": True, "hidden_act": "gelu"}),
    "llama-mlp-bias-gelu-tanh": (LLAMA, {"mlp_bias": True, "hidden_act": "gelu_pytorch_tanh"}),
    "llama-ungrouped-relu": (LLAMA, {"num_key_value_heads": 4, "hidden_act": "relu"}),
    "llama-one-kv-head-wide": (LLAMA, {"num_key_value_heads": 1, "head_dim": 24}),
    "llama-rope-linear": (LLAMA, {"rope_parameters": LINEAR}),
    "llama-rope-llama3": (LLAMA, {"rope_parameters": LLAMA3}),
    "llama-rope-yarn": (LLAMA, {"rope_parameters": YARN}),
    "llama-rope-long": (LLAMA, {"rope_parameters": LONG}),
    "mistral-window": (MISTRAL, {"sliding_window": WINDOW, "head_dim": 16}),
    "mistral-no-window": (MISTRAL, {"sliding_window": None, "head_dim": 16}),
    "opt": (OPT, {}),
    "opt-350m": (OPT, OPT_350M),
    "opt-350m-smooth": (OPT, OPT_350M | {"activation_function": "gelu"}),
    "opt-smooth": (OPT, {"activation_function": "gelu"}),
    "opt-no-bias-untied-gelu": (
        OPT,
        {"enable_bias": False, "tie_word_embeddings": False, "activation_function": "gelu"},
    ),
    "opt-no-final-norm": (OPT, {"_remove_final_layer_norm": True}),
    "gpt2": (GPT2, {}),
    "gpt2-untied-inner-relu": (
        GPT2,
        {"tie_word_embeddings": False, "n_inner": 88, "activation_function": "relu"},
    ),
}


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
            self.checkpoint(), self.family, network, dtype=dtype, mesh=mesh, progress=lambda _: None
        )


def make(
    name: str,
    folder: Path,
    *,
    std: float = STD,
    dtype: torch.dtype = torch.float32,
    shard_bytes: int | None = None,
) -> TinyModel:
    """Draw the weights of a case at `dtype`, save them in `folder`, and open them there."""
    config_class, features = CASES[name]
    config = config_class(**(TOKENS | COMMON[config_class] | features))
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    randomise(model, std, seed=sum(name.encode()))
    sharding = {} if shard_bytes is None else {"max_shard_size": shard_bytes}
    model.save_pretrained(folder, **sharding)
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family = families.family_of(saved)
    return TinyModel(open_torch(folder), folder, family, family.spec_from_config(saved))


def open_torch(folder: Path, dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
    """Open a saved model with transformers, as a user would, in evaluation mode."""
    # Not `.to(dtype)` of a model: that would round the rotary frequencies as well.
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager"
    )
    return model.eval()


@torch.no_grad()
def randomise(model: torch.nn.Module, std: float, seed: int) -> None:
    """Draw every parameter anew."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator) * std
        is_norm_scale = parameter.ndim == 1 and name.endswith(".weight")
        parameter.copy_(1 + drawn if is_norm_scale else drawn)
