"""The facts about vLLM's Transformers backend that are transformers' own."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import transformers
import vllm_facts
from transformers.models.auto import modeling_auto

pytestmark = pytest.mark.reference


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, served in vllm_facts.SERVED.items()
        if served.file in ("", vllm_facts.TRANSFORMERS)
    ],
)
def test_the_backend_is_said_to_serve_what_transformers_has_ready_for_it(name: str) -> None:
    # Of a text part that has no class of its own with a head there is none.
    of_the_family = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(name)
    is_ready = of_the_family and getattr(transformers, of_the_family).is_backend_compatible()
    assert bool(is_ready) == (vllm_facts.SERVED[name].file == vllm_facts.TRANSFORMERS)
