"""Reads and writes PEFT's adapter folders: `adapter_config.json`, `adapter_model.safetensors`.

Tensor names come from the family's name table, so that PEFT reads what was trained. The arrays are
float32 and in torch's layout: A is [r, in] as in our tree, B is [out, r], our B transposed. Biases
and modules that are trained as a whole are in the file under their own names. A folder is written
to a temporary place next to its target first, so that it is never half written.
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import safetensors.numpy

from jaxft import tree as trees
from jaxft.adapters import adapter_tensors, card, filed, tables
from jaxft.adapters.tables import PREFIX
from jaxft.config import LoraConfig
from jaxft.errors import AdapterError, nearest
from jaxft.lora import targets, tying
from jaxft.models.families.family import Family
from jaxft.models.network import Network
from jaxft.models.spec import ModelSpec
from jaxft.weights import names, save

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = adapter_tensors.FILE


def adapter_config(
    config: LoraConfig, family: Family, spec: ModelSpec, base_model: str, revision: str | None
) -> dict[str, Any]:
    """Return the content of adapter_config.json: the fields that every PEFT version knows."""
    chosen, tokens = targets.target_modules(config, family), config.trainable_token_indices
    ties = config.ensure_weight_tying
    if chosen == targets.ALL_LINEAR or family.text_families:
        # Resolved to names, as in PEFT: a reader may define "all" differently. Names are in full
        # if the model has other parts (vision), whose modules may have the same endings.
        modules = targets.select(names.adaptable_modules(family, spec), chosen)
        found = [module.name for module in modules]
        endings = dict.fromkeys(name.rpartition(".")[2] for name in found)
        chosen = found if family.text_families else list(endings)
        # The list of names could tie more than the setting that it was made from.
        ties = tying.of(config, family, spec) is not None
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
        "exclude_modules": config.exclude_modules,
        "bias": config.bias,
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "modules_to_save": config.modules_to_save,
        "rank_pattern": config.rank_pattern,
        "alpha_pattern": config.alpha_pattern,
        "layers_to_transform": config.layers_to_transform,
        "layers_pattern": config.layers_pattern,
        "fan_in_fan_out": family.is_conv1d,
        "init_lora_weights": config.init_lora_weights,
        # Old versions of PEFT do not know these fields, so they are written only if they are set.
        **({"lora_bias": True} if config.lora_bias else {}),
        **({"eva_config": config.eva_config.model_dump()} if config.eva_config else {}),
        **({"trainable_token_indices": tokens} if tokens is not None else {}),
        **({"ensure_weight_tying": True} if ties else {}),
    }


def to_tensors(tree: Mapping[str, Any], family: Family, network: Network) -> dict[str, np.ndarray]:
    """Return the trained leaves as PEFT's tensors by name, float32 and in torch's layout.

    `tree` may contain frozen leaves, which are ignored.
    """
    leaves = trees.flatten(tree)
    return {name: place.read(leaves) for name, place in filed.places(family, network).items()}


def refuse_other_parts(tensors: Iterable[str], family: Family, origin: Path) -> None:
    """Refuse an adapter that has tensors for the parts of a model that do not process text.

    Raises:
        AdapterError: If the adapter has such tensors, for example in a vision tower.
    """
    if not family.text_families:
        return
    ignored = re.compile("|".join(family.ignored))
    others = [name for name in tensors if ignored.fullmatch(name.removeprefix(PREFIX))]
    if others:
        module = others[0].removeprefix(PREFIX).partition(".lora_")[0]
        raise AdapterError(
            f"{origin}: the adapter is also on what sees: on {module}, in {len(others)} tensors.",
            f"Of a {family.model_type} model the text part alone is used here. Train an adapter "
            f"with target_modules that name it in full, such as {family.base_prefix}layers.0....",
        )


def names_of(family: Family, network: Network) -> frozenset[str]:
    """Return the names of all tensors that PEFT's file has for the trained parts of a network."""
    return frozenset(filed.places(family, network))


def under_names_of(tensors: Mapping[str, np.ndarray], family: Family) -> dict[str, np.ndarray]:
    """Return the tensors with module names of older versions replaced by the current names.

    For example, the layers of Gemma 3 were called `language_model.model.layers` until
    transformers 4.52.
    """
    return {
        PREFIX + names.renamed(name.removeprefix(PREFIX), family.renames): tensor
        for name, tensor in tensors.items()
    }


def from_tensors(
    tensors: Mapping[str, np.ndarray], family: Family, network: Network, origin: Path
) -> trees.Tree:
    """Return the trained leaves of `network` from PEFT's tensors, float32.

    Raises:
        AdapterError: If tensors are missing, unexpected or misshapen; the message names `origin`.
    """
    places = filed.places(family, network)
    # A frozen embedding or head: `adapters/fitting.py` replaces the base's tables with them.
    frozen = tables.frozen_names(family).keys() - places.keys()
    tensors = {name: tensor for name, tensor in tensors.items() if name not in frozen}
    wrong = sorted(places.keys() ^ tensors.keys())
    if wrong:
        kind = "lacks" if wrong[0] in places else "has an unexpected"
        more = f" (and {len(wrong) - 1} more mismatches)" if len(wrong) > 1 else ""
        raise AdapterError(
            f"{origin}: the adapter {kind} {wrong[0]}{more}.",
            "Use the adapter with the base model and the adapter_config.json it was made with.",
        )
    shapes = names.leaf_shapes(network)
    paths = {slot.path for place in places.values() for slot in place.slots}
    leaves = {path: np.zeros(shapes[path], np.float32) for path in paths}
    for name, place in places.items():
        expected = place.shape(shapes)
        if tensors[name].shape != expected:
            raise AdapterError(
                f"{origin}: {name} has shape {tensors[name].shape}, and this base model's module "
                f"needs {expected}.",
                "Use the adapter with the base model it was made for.",
            )
        place.write(leaves, tensors[name])
    for name, place in places.items():
        # A tied tensor is in the file twice, for the embedding and for the head.
        written = tensors[name].astype(np.float32)
        if not np.array_equal(place.read(leaves), written, equal_nan=True):
            raise AdapterError(
                f"{origin}: {name} is not what the module that it is tied to has.",
                "The tie was lost where it was trained. Set ensure_weight_tying to false in "
                f"{CONFIG_FILE}, and name both modules in target_modules, to use both as they are.",
            )
    return trees.unflatten(leaves)


def save_adapter(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    verify: Callable[[Path], Mapping[str, str]] = lambda _: {},
    facts: Mapping[str, str] | None = None,
    beside: tables.Beside = tables.NOTHING,
) -> None:
    """Write an adapter folder; an existing one is replaced only once the new one is complete.

    Args:
        folder: The adapter's folder.
        tensors: The adapter's tensors, under PEFT's names.
        config: The content of adapter_config.json.
        verify: Called with the new folder before it replaces the old one. It may check the folder
            and add files, and returns further facts for the model card, by label. If it raises,
            the old folder stays as it was.
        facts: Facts for the model card that are not in the config, by label.
        beside: Tensors of the base model that are written to the file too.

    Raises:
        WeightsError: If the folder holds something that is not an adapter.
    """
    save.check_gives_way(folder, CONFIG_FILE)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        # Not sorted: the first matching pattern for a rank or alpha counts.
        text = json.dumps(config, indent=2)
        (new / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
        every = {**tensors, **beside.tensors}
        safetensors.numpy.save_file(every, new / TENSOR_FILE, metadata={"format": "pt"})
        text = card.model_card(config, tensors, {**(facts or {}), **verify(new)}, beside.rows)
        (new / card.FILE).write_text(text, encoding="utf-8")
        save.put_in_place(new, folder)


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read an adapter folder: the content of adapter_config.json, and the tensors.

    Raises:
        AdapterError: If a file is missing or damaged, or a value is not a finite number.
    """
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(
            f"{path} does not exist.",
            f"Give the folder of an adapter, with {CONFIG_FILE} and {TENSOR_FILE}.",
        ) from None
    except OSError as error:
        raise AdapterError(
            f"{path} cannot be read: {error.strerror}.", "Give the folder of an adapter."
        ) from None
    except ValueError as error:
        raise AdapterError(f"{path} is no JSON: {error}.", "Copy the adapter anew.") from None
    if not isinstance(config, dict):
        raise AdapterError(f"{path} holds no object.", "Copy the adapter anew.")
    for key in ("base_model_name_or_path", "revision"):
        if not isinstance(config.get(key), str | None):
            raise AdapterError(
                f"{path}: {key} is {json.dumps(config[key])}.",
                "Expected a name, or null: copy the adapter anew.",
            )
    return config, adapter_tensors.read(folder)


def read_lora_config(config: Mapping[str, Any], folder: Path) -> LoraConfig:
    """Return the `LoraConfig` that an adapter_config.json describes.

    Raises:
        AdapterError: If the adapter is not a LoRA adapter, has an unknown field, uses something
            that is not supported, or is not for the unchanged base model.
    """
    path = folder / CONFIG_FILE
    if config.get("peft_type") != "LORA":
        raise AdapterError(
            f"{path} has peft_type {config.get('peft_type')!r}.",
            "Only LORA adapters are supported.",
        )
    known = LoraConfig.model_fields.keys() | LoraConfig.known_elsewhere.keys()
    fields = {
        key: value
        for key, value in config.items()
        if key not in _DESCRIPTIVE and (key in known or not _asks_for_nothing(value))
    }
    if fields.get("init_lora_weights") != "eva":
        fields.pop("eva_config", None)  # PEFT ignores it too in this case
    try:
        lora = LoraConfig.model_validate(fields)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        raise AdapterError(*_worded(path, key, fields.get(key), first)) from None
    if lora.begins_with_weights:
        raise AdapterError(
            f"{path} has init_lora_weights {lora.init_lora_weights!r}: it is an "
            "adapter for a base that PEFT changed as it began, and that is not in the file.",
            "Save it in PEFT with save_pretrained(folder, path_initial_model_for_weight_conversion"
            "=...), which makes a plain adapter for the unchanged base of it.",
        )
    return lora


def _asks_for_nothing(value: Any) -> bool:
    """Return whether the value of an unknown field means that the feature is not used."""
    return value is None or value is False or value in ("", [], {})


def _worded(path: Path, key: str, value: Any, error: Mapping[str, Any]) -> tuple[str, str]:
    """Return the two parts of an error message: what is wrong with a field, and the remedy."""
    if error["type"] == "conflict":
        return f"{path}: {error['ctx']['found']}.", "No adapter can be like that: copy it anew."
    if error["type"] != "extra_forbidden":
        return (
            f"{path}: {key}: {error['msg']}, and not {json.dumps(value)}.",
            f"Copy the adapter anew, with the {CONFIG_FILE} it was made with.",
        )
    if key in LoraConfig.known_elsewhere:
        return (
            f"{path}: {key} is {json.dumps(value)}, which is not supported here.",
            "Merge the adapter with PEFT (merge_and_unload), and use the merged model.",
        )
    close = nearest(key, LoraConfig.model_fields)
    return (
        f"{path}: unknown field {key}.",
        f"Did you mean {close}?"
        if close
        else "It is none of PEFT's LoraConfig. If a newer PEFT wrote it, merge the adapter there.",
    )


_DESCRIPTIVE = frozenset(
    [
        "peft_type",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "merge_weights",  # PEFT before 0.3: when to merge
        "peft_version",
        "auto_mapping",
    ]
)
