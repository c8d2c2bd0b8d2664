"""Reads the adapter from which training continues: `lora.init_from` of a recipe.

`starts` makes fresh adapters; this one was trained before, by jaxft or by PEFT. The invariants: the
recipe decides what is trained, so the adapter must have the recipe's rank, alpha and targets; and
the loss "before" is measured on the plain base model, without the adapter.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxft import console
from jaxft import tree as trees
from jaxft.adapters import fitting, peft_format, tables
from jaxft.artifacts import loaded
from jaxft.config import LoraConfig
from jaxft.errors import AdapterError
from jaxft.lora import numbers, targets
from jaxft.models.families.family import Family
from jaxft.models.spec import ModelSpec
from jaxft.weights import base
from jaxft.weights.places import vocabulary
from jaxft.weights.places.source import Source

# The config fields that decide which parameters there are, and how they are scaled.
_TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
_SCALES = (
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "use_dora", "lora_bias"),
    *("bias", "modules_to_save", "trainable_token_indices", "ensure_weight_tying"),
)


class Initial(NamedTuple):
    """The adapter and the base model from which training continues.

    Attributes:
        source: The base model, with those of its weights that the adapter's folder replaces.
        leaves: The trained leaves, on the host.
        digest: A SHA-256 digest of the adapter's tensors and of the base's tensors in its folder.
    """

    source: Source
    leaves: trees.Tree
    digest: str


def read(folder: Path, lora: LoraConfig, source: Source) -> Initial:
    """Read the adapter from which a recipe continues training.

    Args:
        folder: The adapter's folder.
        lora: The `lora` section of the recipe.
        source: The base model of the recipe.

    Raises:
        AdapterError: If the adapter cannot be read, or differs from what the recipe describes.
    """
    content, tensors = peft_format.read_adapter(folder)
    described = peft_format.read_lora_config(content, folder)
    loaded.note_other_base(content, source, folder)
    wanted = source
    source, described, own = fitting.fitted(source, described, tensors, folder)
    family, spec = base.read_spec(source)
    _check_new_tokens(folder, wanted, source, spec.vocab_size)
    network = targets.adapted_network(lora, family, spec)
    # Dropout matters only in training, and may differ from before.
    described = described.model_copy(update={"lora_dropout": lora.lora_dropout})
    is_same = loaded.network_of(described, own, family, spec, folder) == network
    now, then = (trees.flatten(numbers.leaves(each, family, network)) for each in (lora, described))
    if not (is_same and all(np.array_equal(now[path], then[path]) for path in now)):
        same = _modules(described, family, spec) == _modules(lora, family, spec)
        raise _another(folder, described, lora, _SCALES if same else _TARGETS + _SCALES)
    leaves = peft_format.from_tensors(own, family, network, folder)
    console.note(f"Going on from the adapter in {folder}.")
    beside = tables.to_write(source, family, network).tensors
    digest = hashlib.sha256()
    for name, tensor in sorted({**own, **beside}.items()):
        digest.update(f"{name} {tensor.shape}\n".encode())
        digest.update(np.ascontiguousarray(tensor, np.float32).tobytes())
    return Initial(source, leaves, digest.hexdigest())


def _check_new_tokens(folder: Path, wanted: Source, found: Source, rows: int) -> None:
    """Refuse an adapter whose vocabulary lacks the recipe's new tokens or changes their ids."""
    added = vocabulary.new_ids(wanted)
    if not added:
        return
    words, now = wanted.tokenizer().get_vocab(), found.tokenizer().get_vocab()
    new = {word: number for word, number in words.items() if number in added}
    lost = [word for word, number in new.items() if now.get(word) != number or number >= rows]
    if lost:
        first = min(lost, key=lambda word: new[word])
        raise AdapterError(
            f"model.new_tokens adds {first!r}, and the adapter of lora.init_from={folder} was "
            f"trained beside {rows:,} tokens without it.",
            "Train the new tokens in a run of their own, or leave model.new_tokens out.",
        )


def _modules(lora: LoraConfig, family: Family, spec: ModelSpec) -> set[str]:
    return {module.name for module in targets.targeted(lora, family, spec)}


def _another(
    folder: Path, described: LoraConfig, lora: LoraConfig, fields: Sequence[str]
) -> AdapterError:
    """Return the error for an adapter that differs from the recipe in some of these fields."""
    differing = {
        field: getattr(described, field)
        for field in fields
        if _comparable(getattr(described, field)) != _comparable(getattr(lora, field))
    }
    found = "; ".join(
        f"{field} {json.dumps(value)} there and {json.dumps(getattr(lora, field))} in the recipe"
        for field, value in differing.items()
    )
    wanted = ", ".join(f"{field}: {json.dumps(value)}" for field, value in differing.items())
    return AdapterError(
        f"lora.init_from={folder} is another adapter than the recipe describes: {found}.",
        f"Write `{wanted}` in the lora section, or leave init_from out.",
    )


def _comparable(value: Any) -> Any:
    """Return a value for comparison; a list of names is sorted, as its order does not matter."""
    is_names = isinstance(value, list) and all(isinstance(each, str) for each in value)
    return sorted(value) if is_names else value


def placed(initial: Initial, like: trees.Tree) -> trees.Tree:
    """Return the adapter's leaves with the shardings of the leaves of `like` at the same paths."""
    return jax.device_put(initial.leaves, jax.tree.map(lambda leaf: leaf.sharding, like))
