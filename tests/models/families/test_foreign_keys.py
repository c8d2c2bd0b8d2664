"""A key of config.json that cannot change a number refuses no model; one that may does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import family_configs
import pytest

from jaxft.errors import UnsupportedModelError
from jaxft.models import families
from jaxft.models.families import foreign_keys

# What files in the world have: of generation, of transformers itself, of other programs.
HARMLESS = {
    "temperature": 0.6,
    "top_p": 0.9,
    "do_sample": True,
    "max_length": 4096,
    "repetition_penalty": 1.1,
    "suppress_tokens": [1, 2],
    "_attn_implementation": "flash_attention_2",
    "attn_implementation": "eager",
    "_flash_attn_2_enabled": True,
    "_model_name_or_path": "someone/something",
    "_commit_hash": "0123abcd",
    "num_labels": 2,
    "finetuning_task": "chat",
    "rope_interleaved_": True,
    "onnx": {"opset": 17},
    "quantization": None,
    "aux_loss_alpha": 0.001,
    "my_own_note": "trained on Tuesday",
}
LLAMA = next(each for each in family_configs.CONFIGS if each["model_type"] == "llama")
by_config = pytest.mark.parametrize(
    "config", family_configs.CONFIGS, ids=lambda config: config["model_type"]
)


@by_config
def test_no_key_that_means_nothing_refuses_a_model(config):
    family = families.family_of(config)
    assert family.spec_from_config(config | HARMLESS) == family.spec_from_config(config)


@by_config
def test_a_key_that_the_class_has_and_nobody_reads_is_refused_unless_it_asks_for_nothing(
    config, monkeypatch
):
    family = families.family_of(config)
    own = foreign_keys._fields(config["model_type"])
    monkeypatch.setattr(foreign_keys, "_fields", lambda _: own | {"novelty": 4})
    for nothing in (4, None, False, "", [], {}):
        family.spec_from_config(config | {"novelty": nothing})
    for something in (5, True, "yes", [1], {"a": 1}, 0, 0.5):
        with pytest.raises(UnsupportedModelError, match="not handled: novelty"):
            family.spec_from_config(config | {"novelty": something})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("per_layer_config", {"0": {"num_attention_heads": 2}}),
        ("attention_chunk_size", 64),
        ("is_causal", 1),
        ("use_bidirectional_attention", True),
        ("kv_sharing_modes", ["own"]),
    ],
)
def test_what_transformers_asks_any_configuration_for_is_refused(name, value):
    with pytest.raises(UnsupportedModelError, match=name):
        families.family_of(LLAMA).spec_from_config(LLAMA | {name: value})


def test_keys_of_a_type_that_transformers_does_not_know_are_all_refused():
    config = {**LLAMA, "model_type": "unheard-of", "temperature": 1.0, "anything": 1}
    with pytest.raises(UnsupportedModelError, match=r"not handled: anything\.\n"):
        families.family_of(LLAMA).spec_from_config(config)


@by_config
def test_what_is_passed_over_is_named(config):
    family = families.family_of(config)
    assert families.passed_over(family, config) == []
    found = families.passed_over(family, config | HARMLESS)
    assert {"_attn_implementation", "my_own_note", "onnx"} <= set(found)
    assert not {"temperature", *config} & set(found)


def test_every_name_that_transformers_asks_a_configuration_for_is_known():
    """Read the source of transformers, of the families here: `getattr(config, "head_dim", ...)`."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None
    root = Path(spec.origin).parent
    files = [*(root / name for name in ("modeling_rope_utils.py", "masking_utils.py"))]
    files += [root / "modeling_utils.py", root / "cache_utils.py"]
    for family in families.FAMILIES:
        folder = family.model_type.removesuffix("_text")
        files += sorted((root / "models" / folder).glob("*.py"))
    asked = set()
    for file in files:
        text = file.read_text(encoding="utf-8")
        asked |= set(re.findall(r'getattr\((?:self\.)?config, "(\w+)"', text))
        if file.name.startswith("configuration_") or file.name == "modeling_rope_utils.py":
            asked |= set(re.findall(r'kwargs\.(?:pop|get)\("(\w+)"', text))
    assert {"head_dim", "rope_theta", "sliding_window_pattern"} <= asked
    # Words about training, about other tasks, and about where tensors are kept.
    besides = {
        *("classifier_dropout", "distributed_config", "gradient_checkpointing", "sep_token_id"),
        *("summary_activation", "summary_type"),
        # Of LFM2 alone, which reads them here too.
        *("block_ff_dim", "tie_embedding"),
    }
    assert asked - besides <= foreign_keys.READ_FROM_ANY
