"""A base model: read its spec, its stop tokens and its leaves from its source.

Training and generation both use this module, so that they read a model in the same way. The
invariant: everything comes from the model's own files; nothing is assumed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from jaxft import console
from jaxft import tree as trees
from jaxft.models import families
from jaxft.models.families.family import Family
from jaxft.models.network import Network
from jaxft.models.quantized import Quantized
from jaxft.models.spec import ModelSpec
from jaxft.weights import load, quantizing
from jaxft.weights.formats.checkpoint import Checkpoint
from jaxft.weights.formats.regions import Region
from jaxft.weights.places import chat_format
from jaxft.weights.places.source import Source

_FAST_BF16_ON_CPU = (0, 12)  # the first jax whose bf16 products on a CPU beat its float32 ones


def read_spec(source: Source) -> tuple[Family, ModelSpec]:
    """Return the family and the spec of a model.

    If config.json ties the head to the embedding but the weights have another head, the spec has
    a head of its own.

    Raises:
        UnsupportedModelError: The architecture, or a feature of it, is not supported.
        WeightsError: The config.json is missing or damaged, or the weights cannot be opened.

    Source: transformers `modeling_utils.py: PreTrainedModel.tie_weights`.
    """
    config = source.config()
    family = families.family_of(config)
    spec = family.spec_from_config(config)
    if spec.tied_head and _has_other_head(source.folder, source.gguf, _stamps(source)):
        spec = dataclasses.replace(spec, tied_head=False)
    return family, spec


def _stamps(source: Source) -> tuple[tuple[str, int, int], ...]:
    """Return path, size and time of change of each weight file: other files, other stamps."""
    found = [(path, path.stat()) for path in source.weight_files().files]
    return tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in found)


@functools.lru_cache(maxsize=16)
def _has_other_head(folder: Path, gguf: Path | None, stamps: Any) -> bool:
    """Return whether a model's files have a head that differs from its embedding; warn if so.

    The answer takes reading both tensors, so it is cached; `stamps` tell when the files changed.
    """
    files = Source(str(folder), folder, gguf, None, "")
    family = families.family_of(files.config())
    if not load.has_other_head(files.checkpoint(), family):
        return False
    console.warning(
        f"config.json ties {family.head_name} to the embedding, and the weights have another "
        "one: it is used as it is there (tie_word_embeddings: false)."
    )
    return True


def read_stop_ids(source: Source, tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens that end an answer: the tokenizer's and those that the model declares.

    Args:
        source: The model.
        tokenizer: Its tokenizer; `None` leaves out the tokenizer's token.

    Raises:
        WeightsError: The model's generation_config.json is damaged.

    Source: transformers `GenerationConfig.from_model_config`: the tokens come from
    generation_config.json, or from config.json if there is no such file.
    """
    declared = read_generation(source) or source.config()
    own = None if tokenizer is None else tokenizer.eos_token_id
    ends = {*chat_format.declared_stops(declared), own}
    return tuple(sorted(end for end in ends if end is not None))


def read_generation(source: Source) -> dict[str, Any]:
    """Return the model's generation_config.json; {} if it has none.

    Raises:
        WeightsError: The file is damaged.
    """
    return {} if source.gguf is not None else chat_format.read_generation(source.folder)


def resolve_dtype(choice: str) -> str:
    """Return the dtype of base weights and activations, "float32" or "bfloat16".

    Args:
        choice: One of the two, or "auto" for the faster one on this machine.
    """
    if choice != "auto":
        return choice
    is_slow = jax.default_backend() == "cpu" and jax.__version_info__ < _FAST_BF16_ON_CPU
    return "float32" if is_slow else "bfloat16"


@dataclasses.dataclass(frozen=True)
class Base:
    """A base model: its source, and how its leaves are held when they are loaded.

    Attributes:
        source: The model's place.
        family: The model's family.
        spec: The model's spec.
        mesh: The devices that share its leaves; an abstract mesh is enough if none is loaded.
        dtype: The dtype of frozen leaves, "bfloat16"; trained leaves are float32.
        quantization: The kind to which the frozen matrices of the layers are quantized, "nf4";
            `None` for no quantization.
    """

    source: Source
    family: Family
    spec: ModelSpec
    mesh: Mesh | AbstractMesh
    dtype: str
    quantization: str | None

    def abstract(self, network: Network) -> trees.Tree:
        """Return the tree of `load` without values: `ShapeDtypeStruct`s with shardings.

        Args:
            network: The base's network, with adapters or without.

        Raises:
            DeviceError: A dimension does not divide by the mesh axis that its rule names.
        """
        return load.abstract(
            network, dtype=self.dtype, mesh=self.mesh, quantization=self.quantization
        )

    def load(self, network: Network, rounding: quantizing.Plans | None = None) -> trees.Tree:
        """Read the base's leaves of a network onto the mesh, and show the progress.

        Args:
            network: The base's network, with adapters or without.
            rounding: How each slice of a 4-bit leaf is rounded; `None` rounds to the nearest code.

        Raises:
            WeightsError: Tensors are missing, unexpected or misshapen, or a file is damaged.
        """
        assert isinstance(self.mesh, Mesh), "leaves lie on devices"
        checkpoint = self.source.checkpoint()
        what = f"Rounding the base model to {self.quantization}"
        what = what if rounding else "Loading the base model"
        with console.loading(what, _num_bytes(checkpoint)) as progress:
            tree = load.load_base(
                checkpoint,
                self.family,
                network,
                dtype=self.dtype,
                mesh=self.mesh,
                progress=progress,
                quantization=self.quantization,
                rounding=rounding,
            )
            return jax.block_until_ready(tree)

    def read(self, network: Network, path: str, region: Region) -> np.ndarray:
        """Return a region of a leaf with the values of the files, neither cast nor quantized.

        Args:
            network: The base's network.
            path: The leaf's path, "groups/0/0/attn/q/kernel".
            region: The region of the leaf; the first dimension of a stacked leaf is its layers.

        Raises:
            WeightsError: A value is infinite or NaN, or a file is damaged.
        """
        return load.read_leaf(self.source.checkpoint(), self.family, network, path, region)


def note_quantized(tree: trees.Tree) -> None:
    """Say how much memory quantization saves; nothing if no leaf is quantized."""
    leaves = {
        path: leaf for path, leaf in trees.flatten(tree).items() if isinstance(leaf, Quantized)
    }
    if leaves:
        parameters, taken = trees.num_parameters(leaves), trees.num_bytes(leaves)
        kind = next(iter(leaves.values())).kind
        console.note(
            f"Quantized to {kind}: {parameters:,} parameters in {taken / 1e6:,.1f} MB, "
            f"{taken / (2 * parameters):.1%} of what they take in bfloat16."
        )


def _num_bytes(checkpoint: Checkpoint) -> int:
    return sum(math.prod(info.shape) * info.dtype.itemsize for info in checkpoint.infos().values())
