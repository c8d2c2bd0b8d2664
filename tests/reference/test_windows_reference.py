"""A config of sliding layers without a window is refused, and only where transformers fails."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from jaxft.errors import UnsupportedModelError
from jaxft.models import families
from jaxft.models.families.windows import FULL, SLIDING

pytestmark = pytest.mark.reference

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 88,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 112,
    "pad_token_id": 0,
}
WINDOW = 5
ALTERNATING = [SLIDING, FULL] * 2


def windows(model_type: str, **changes: Any) -> list[int | None] | None:
    """Return the window of each layer as we read it; None if the config is refused."""
    config = {**SIZES, "model_type": model_type, **changes}
    try:
        spec = families.family_of(config).spec_from_config(config)
    except UnsupportedModelError:
        return None
    return [block.window for block in spec.blocks]


# The switch of Qwen and SmolLM 3; other families do not read it where it is off.
SWITCHED = {"qwen2", "qwen3", "smollm3"}
LISTING = [
    (family.model_type, {"use_sliding_window": True} if family.model_type in SWITCHED else {})
    for family in families.FAMILIES
]
LISTING = [
    (name, switch)
    for name, switch in LISTING
    if windows(name, sliding_window=WINDOW, layer_types=ALTERNATING, **switch)
    == [WINDOW, None, WINDOW, None]
]


def runs(model_type: str, changes: dict[str, Any]) -> bool:
    """Tell whether transformers computes hidden states by such a config."""
    try:
        config = transformers.CONFIG_MAPPING[model_type](**SIZES, **changes)
        model = transformers.AutoModel.from_config(config, attn_implementation="eager")
        with torch.no_grad():
            model(torch.arange(2 * WINDOW)[None])
    except (RuntimeError, TypeError, ValueError, ZeroDivisionError, StrictDataclassError):
        return False
    return True


@pytest.mark.parametrize(("model_type", "switch"), LISTING, ids=[name for name, _ in LISTING])
def test_what_is_refused_for_its_windows_transformers_does_not_run(
    model_type: str, switch: dict[str, Any]
) -> None:
    assert runs(model_type, switch | {"sliding_window": WINDOW, "layer_types": ALTERNATING})
    for window in (None, 0):
        for listed in ({}, {"layer_types": ALTERNATING}, {"layer_types": [FULL] * 4}):
            changes = switch | {"sliding_window": window} | listed
            if windows(model_type, **changes) is None:
                assert not runs(model_type, changes)
            else:  # as read, no layer slides
                assert listed.get("layer_types") != ALTERNATING
                assert windows(model_type, **changes) == [None] * 4


def test_the_families_that_list_their_windows_are_those_that_have_some() -> None:
    assert {name for name, _ in LISTING} == {
        *("qwen2", "qwen3", "gemma2", "gemma3_text", "vaultgemma", "olmo3", "smollm3"),
        *("ministral", "muse_glimmer_text", "cohere2", "exaone4", "cwm"),
    }
