"""Decide which unread keys of a config.json may change the model's numbers.

A config.json also has keys of other programs (`unsloth_fixed`), of generation (`temperature`) and
of transformers itself (`_attn_implementation`). transformers decides what a key means: a key that
is not a field of the model's configuration class, and that no code of transformers asks for,
cannot change a number. A field of the class that jaxft does not read may change one.

Source: transformers `configuration_utils.py: PreTrainedConfig`, `configuration_*.py` of each model.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any

# Keys that transformers looks up in any configuration, whether or not its class has them. A test
# compares them with transformers' source.
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
    """Return the unread keys that may change a model's numbers.

    Args:
        config: The config.json, or its text part.
        left: The keys that the family did not read.
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
    """Return whether transformers does not know a key: neither for this model nor for any model."""
    own = _fields(str(config.get("model_type")))
    return own is not None and name not in {*own, *_of_any_model(), *READ_FROM_ANY}


def _asks_for_nothing(name: str, value: Any) -> bool:
    """Return whether a value means "off" for any key, as None, False and "" do."""
    is_plain = (
        name == "layer_types" and isinstance(value, list) and set(value) == {"full_attention"}
    )
    return is_plain or value is None or value is False or value in ("", [], {})


@functools.cache
def _fields(model_type: str) -> Mapping[str, Any] | None:
    """Return the fields of a model's configuration class and their defaults.

    `None` if transformers has no such class. Another name of a field has the field's default.
    """
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        return None
    kind = CONFIG_MAPPING[model_type]
    fields = _defaults(kind)
    return fields | {name: fields.get(meant) for name, meant in kind.attribute_map.items()}


@functools.cache
def _of_any_model() -> frozenset[str]:
    """Return the keys that any configuration may have, those of generation included.

    The keys in `READ_FROM_ANY` are left out, as they may change numbers.
    """
    from transformers import GenerationConfig, PretrainedConfig

    return frozenset({*_defaults(PretrainedConfig), *GenerationConfig().to_dict()} - READ_FROM_ANY)


def _defaults(kind: type) -> dict[str, Any]:
    """Return the fields of a configuration class and their defaults."""
    if dataclasses.is_dataclass(kind):
        return {each.name: each.default for each in dataclasses.fields(kind)}
    parameters = inspect.signature(kind).parameters.values()
    return {each.name: each.default for each in parameters}
