"""The names and layouts of the Flax classes of transformers, and their torch names, both ways.

Reading and writing follow one rule: the path joined by dots is the torch name; `kernel`, `scale`
and `embedding` are the torch `weight`; and a kernel is the transpose of the torch weight. For every
family in `FAMILIES`, `torch_name` inverts `flax_paths`.

The rule holds for GPT-2 too. Its kernels are (out, in), unlike those of all other families, but the
weights of torch's Conv1D are (in, out), unlike those of all other linears.

Source: transformers 4.57, `modeling_flax_pytorch_utils.py` and `models/*/modeling_flax_*.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from jaxft.errors import UnsupportedModelError
from jaxft.weights.formats.checkpoint import TensorInfo

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


class _Family(NamedTuple):
    """Facts about a family that its torch names do not show.

    Attributes:
        norm_leaf: The Flax name of a norm's weight.
        embeddings: The modules whose weight is an embedding.
        has_own_head: Whether the file has a head even if config.json ties it to the embedding.
    """

    norm_leaf: str
    embeddings: frozenset[str]
    has_own_head: bool


_TOKENS = frozenset({"embed_tokens"})
_GPT = frozenset({"wte", "wpe"})

# Every causal language model that transformers had in Flax.
FAMILIES = {
    "bloom": _Family("scale", frozenset({"word_embeddings"}), False),
    "gemma": _Family("weight", _TOKENS, False),
    "gpt2": _Family("scale", _GPT, False),
    "gpt_neo": _Family("scale", _GPT, False),
    "gptj": _Family("scale", _GPT, False),
    # Source: `FlaxLlamaForCausalLMModule` and `FlaxMistralForCausalLMModule`.
    "llama": _Family("weight", _TOKENS, True),
    "mistral": _Family("weight", _TOKENS, True),
    "opt": _Family("scale", _TOKENS | {"embed_positions"}, False),
    "xglm": _Family("scale", _TOKENS, False),
}

_TORCH_LEAF = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def torch_name(path: str) -> str:
    """Return the torch name of a path: "a.b.weight" for "a/b/kernel"."""
    *modules, leaf = path.split("/")
    return ".".join([*modules, _TORCH_LEAF.get(leaf, leaf)])


def is_transposed(path: str) -> bool:
    """Return whether the array at a path is the transpose of the torch tensor."""
    return path.split("/")[-1] == "kernel"


def flax_paths(infos: Mapping[str, TensorInfo], model_type: str) -> dict[str, str]:
    """Return the paths of a checkpoint that a family's Flax class loads.

    Args:
        infos: The tensors under their torch names.
        model_type: The family, as in config.json.

    Returns:
        The torch name of the tensor at each path. The embedding stands twice if the Flax class
        does not know tied heads.

    Raises:
        UnsupportedModelError: The family had no Flax class.
    """
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"transformers never had {model_type} in Flax.",
            f"Expected one of {', '.join(FAMILIES)}; export it as merged safetensors instead.",
        )
    family = FAMILIES[model_type]
    paths = {_flax_path(name, len(info.shape), family): name for name, info in infos.items()}
    if family.has_own_head and _HEAD not in infos and _EMBEDDING in infos:
        paths[_flax_path(_HEAD, 2, family)] = _EMBEDDING
    return paths


def _flax_path(name: str, num_dims: int, family: _Family) -> str:
    *modules, leaf = name.split(".")
    if leaf == "weight" and modules and modules[-1] in family.embeddings:
        leaf = "embedding"
    elif leaf == "weight":
        leaf = "kernel" if num_dims == 2 else family.norm_leaf
    return "/".join([*modules, leaf])
