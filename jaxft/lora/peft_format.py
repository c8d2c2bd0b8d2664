"""An adapter on disk as PEFT has it: `adapter_config.json` and `adapter_model.safetensors`.

Tensor names come from the family's name table, so what PEFT reads is what was trained; the
arrays are float32 and in torch's layout: A is [r, in] as ours, B [out, r] is ours transposed.
Writing goes through a temporary folder beside the target, so nothing is ever half written.

Source: `peft/utils/save_and_load.py: get_peft_model_state_dict` (key names).
"""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import safetensors
import safetensors.numpy

from jaxft import tree as trees
from jaxft.config import LoraConfig
from jaxft.errors import AdapterError
from jaxft.lora import targets
from jaxft.models.bind import abstract_tree
from jaxft.models.families.family import Family
from jaxft.models.network import Network
from jaxft.models.spec import ModelSpec
from jaxft.weights import names

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."


def adapter_config(
    config: LoraConfig, family: Family, spec: ModelSpec, base_model: str, revision: str | None
) -> dict[str, Any]:
    """Return the content of adapter_config.json: the fields that every PEFT version knows."""
    chosen = targets.target_modules(config, family)
    if chosen == targets.ALL_LINEAR:
        # Resolved, as PEFT does: a reader may define "all" otherwise.
        modules = targets.select(names.linear_modules(family, spec), chosen)
        chosen = list(dict.fromkeys(module.name.rpartition(".")[2] for module in modules))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "revision": revision,
        "inference_mode": True,
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "target_modules": chosen,
        "exclude_modules": None,
        "bias": config.bias,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "layers_to_transform": None,
        "layers_pattern": None,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }


def to_tensors(
    adapters: Mapping[str, Any], family: Family, network: Network
) -> dict[str, np.ndarray]:
    """Return adapter leaves as PEFT's tensors by name, float32 and in torch's layout."""
    tensors = {}
    for name, (path, index) in _places(family, network).items():
        leaf = np.asarray(trees.flatten(adapters)[path], dtype=np.float32)
        part = leaf if index is None else leaf[index]
        tensors[name] = np.ascontiguousarray(part.T if path.endswith("lora_b") else part)
    return tensors


def from_tensors(
    tensors: Mapping[str, np.ndarray], family: Family, network: Network, origin: Path
) -> trees.Tree:
    """Return the adapter leaves of `network` from PEFT's tensors.

    Raises:
        AdapterError: If tensors are missing, unexpected or misshapen; `origin` is named.
    """
    places = _places(family, network)
    # Beside an adapter on the head, PEFT stores the frozen head that it belongs to.
    head = f"{_PREFIX}{family.head_name}.base_layer.weight"
    tensors = {name: tensor for name, tensor in tensors.items() if name != head}
    wrong = sorted(places.keys() ^ tensors.keys())
    if wrong:
        kind = "lacks" if wrong[0] in places else "has an unexpected"
        raise AdapterError(
            f"{origin}: the adapter {kind} {wrong[0]} (and {len(wrong) - 1} more mismatches).",
            "Use the adapter with the base model and the adapter_config.json it was made with.",
        )
    leaves = {
        path: np.zeros(leaf.shape, np.float32)
        for path, leaf in trees.flatten(abstract_tree(network)).items()
        if path in {place for place, _ in places.values()}
    }
    for name, (path, index) in places.items():
        part = tensors[name].T if path.endswith("lora_b") else tensors[name]
        slot = leaves[path] if index is None else leaves[path][index]
        if part.shape != slot.shape:
            raise AdapterError(
                f"{origin}: {name} has shape {tensors[name].shape}, which this base model's "
                f"module does not fit.",
                "Use the adapter with the base model it was made for.",
            )
        slot[...] = part
    return trees.unflatten(leaves)


def save_adapter(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    verify: Callable[[Path], None] = lambda _: None,
) -> None:
    """Write an adapter folder, replacing one that is there only once the new one is complete.

    Args:
        folder: The adapter's folder.
        tensors: Under PEFT's names.
        config: The content of adapter_config.json.
        verify: Given the new folder before it takes its place; if it raises, all is as before.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        text = json.dumps(config, indent=2, sort_keys=True)
        (new / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
        safetensors.numpy.save_file(dict(tensors), new / TENSOR_FILE, metadata={"format": "pt"})
        verify(new)
        old = Path(temporary) / "old"
        try:
            if folder.exists():
                os.replace(folder, old)
            os.replace(new, folder)
        except BaseException:
            # An interrupt between the two: the temporary folder must not take the old one along.
            if old.exists() and not folder.exists():
                os.replace(old, folder)
            raise


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read an adapter folder: its config as written, and its tensors.

    Raises:
        AdapterError: If a file is missing or damaged.
    """
    config_path, tensor_path = folder / CONFIG_FILE, folder / TENSOR_FILE
    for path in (config_path, tensor_path):
        if not path.is_file():
            raise AdapterError(
                f"{path} does not exist.",
                f"Give the folder of an adapter, with {CONFIG_FILE} and {TENSOR_FILE}.",
            )
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdapterError(
            f"{config_path} is no JSON: {error}.", "Copy the adapter anew."
        ) from None
    try:
        tensors = safetensors.numpy.load_file(tensor_path)
    except safetensors.SafetensorError as error:
        raise AdapterError(
            f"{tensor_path} cannot be read: {error}.", "It is damaged or cut short: copy it anew."
        ) from None
    return config, tensors


def read_lora_config(config: Mapping[str, Any], folder: Path) -> LoraConfig:
    """Return the `LoraConfig` that an adapter_config.json describes.

    Raises:
        AdapterError: If it is no LoRA, or uses a feature that is not supported.
    """
    if config.get("peft_type") != "LORA":
        raise AdapterError(
            f"{folder / CONFIG_FILE} has peft_type {config.get('peft_type')!r}.",
            "Only LORA adapters are supported.",
        )
    fields = {key: value for key, value in config.items() if key not in _DESCRIPTIVE}
    try:
        return LoraConfig.model_validate(fields)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise AdapterError(
            f"{folder / CONFIG_FILE}: {'.'.join(map(str, first['loc']))}: {first['msg']}.",
            "The adapter uses something that is not supported here.",
        ) from None


_DESCRIPTIVE = frozenset(
    [
        "peft_type",
        "task_type",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "peft_version",
        "auto_mapping",
    ]
)


def _places(family: Family, network: Network) -> dict[str, tuple[str, int | None]]:
    """Return the (leaf, slice) of every tensor that the network's adapters have in PEFT's file."""
    leaves = trees.flatten(abstract_tree(network))
    where = {
        layer: (prefix, index)
        for prefix, _, layers in network.stacked_blocks()
        for index, layer in enumerate(layers)
    }
    places: dict[str, tuple[str, int | None]] = {}
    for module in names.linear_modules(family, network.spec):
        prefix, index = ("", None) if module.layer is None else where[module.layer]
        for ours, theirs in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
            path = f"{prefix}/{module.path}/{ours}".lstrip("/")
            if path in leaves:
                places[f"{_PREFIX}{module.name}.{theirs}.weight"] = (path, index)
    return places
