"""Keys of config.json that no family here reads: which of them say nothing of a model's numbers.

A file has keys of other programs (`unsloth_fixed`), of generation (`temperature`) and of
transformers itself (`_attn_implementation`). What counts is what transformers makes of a key: one
that neither its configuration class for the model has nor its code asks for cannot change a number
there, so it cannot here. One that the class has, and that is not read here, may.

Source: transformers `configuration_utils.py: PreTrainedConfig`, `configuration_*.py` of each model.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any

# Keys that transformers asks any configuration for, whether or not its class has them. A test
# holds this to its source.
READ_FROM_ANY = frozenset(
    {
        "attention_chunk_size",
        "fusion_config",
        "head_dim",
        "hidden_dropout",
        "is_causal",
        "kv_sharing_modes",
        "layer_types",
        "n_embed",
        "num_local_experts",
        "original_max_position_embeddings",
        "partial_rotary_factor",
        "per_layer_config",
        "quantization_config",
        "rope_local_base_freq",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "rotary_emb_base",
        "rotary_pct",
        "sliding_window",
        "sliding_window_pattern",
        "tie_word_embeddings",
        "transformers_weights",
        "use_bidirectional_attention",
    }
)


def unhandled(config: Mapping[str, Any], left: list[str]) -> list[str]:
    """Return those of the keys that nobody read which may change a model's numbers.

    Args:
        config: The config.json, or the part of it that is a model's own.
        left: Its keys that no family reads.
    """
    names = [name for name in left if not _asks_for_nothing(name, config[name])]
    if not names:
        return []
    own = _fields(str(config.get("model_type")))
    return [
        name
        for name in names
        if name not in _of_any_model()
        and (own is None or (name in own and config[name] != own[name]) or name in READ_FROM_ANY)
    ]


def is_foreign(config: Mapping[str, Any], name: str) -> bool:
    """Return whether a key is of no configuration class of transformers that has to do with it."""
    own = _fields(str(config.get("model_type")))
    return own is not None and name not in {*own, *_of_any_model(), *READ_FROM_ANY}


def _asks_for_nothing(name: str, value: Any) -> bool:
    """Return whether a value leaves a model as it is without the key, whatever the key is for."""
    is_plain = (
        name == "layer_types" and isinstance(value, list) and set(value) == {"full_attention"}
    )
    return is_plain or value is None or value is False or value in ("", [], {})


@functools.cache
def _fields(model_type: str) -> Mapping[str, Any] | None:
    """Return the fields of a model's configuration and their defaults; None if there is no class.

    A field under another of its names has the same default.
    """
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        return None
    kind = CONFIG_MAPPING[model_type]
    fields = _defaults(kind)
    return fields | {name: fields.get(meant) for name, meant in kind.attribute_map.items()}


@functools.cache
def _of_any_model() -> frozenset[str]:
    """Return the keys of every configuration, and those of generation that files have in it."""
    from transformers import GenerationConfig, PretrainedConfig

    numbers = READ_FROM_ANY  # of every configuration too, and not without meaning
    return frozenset({*_defaults(PretrainedConfig), *GenerationConfig().to_dict()} - numbers)


def _defaults(kind: type) -> dict[str, Any]:
    """Return the names that a configuration class takes, and their defaults."""
    if dataclasses.is_dataclass(kind):
        return {each.name: each.default for each in dataclasses.fields(kind)}
    parameters = inspect.signature(kind).parameters.values()
    return {each.name: each.default for each in parameters}
