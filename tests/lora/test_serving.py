"""What vLLM's rules make of adapters for each family: the table in docs/lora.md."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from jaxft.config import LoraConfig
from jaxft.lora import algebra, peft_format, serving, targets
from jaxft.models.families import llama, opt

# The last parts of names of modules that vLLM's classes have for LoRA, packed ones unpacked:
# anything else in an adapter is refused. Of vLLM's llama.py and opt.py, summer of 2026.
EXPECTED = {
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "opt": {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "project_in", "project_out"},
}
KINDS = {
    "llama": (llama.LLAMA, tiny.SPEC),
    "opt": (opt.OPT, tiny.LEARNED),
    "opt-350m": (opt.OPT, tiny.POST),
}


def adapter_of(name: str, **lora) -> algebra.LoraAdapter:
    """Return an adapter on a family's network, as its file has it."""
    family, spec = KINDS[name]
    config = LoraConfig(r=4, **lora)
    network = targets.adapted_network(config, family, spec)
    trained = tiny.split(tiny.random_leaves(network), network)[0]
    tensors = peft_format.to_tensors(trained, family, network)
    content = peft_format.adapter_config(config, family, spec, "someone/model", None)
    return algebra.parse(content, tensors, Path("adapter"))


@pytest.mark.parametrize("name", KINDS)
def test_an_adapter_on_every_linear_module_can_be_served(name):
    adapter = adapter_of(name, target_modules="all-linear")
    assert serving.vllm_objections(adapter.content, algebra.tensors_of(adapter)) == []
    family = name.partition("-")[0]
    assert {module.rpartition(".")[2] for module in adapter.updates} <= EXPECTED[family]
    # Names of tensors must be full ones: what vLLM finds no module for, it drops.
    assert all(name.startswith("base_model.model.model.") for name in algebra.tensors_of(adapter))


@pytest.mark.parametrize("name", KINDS)
def test_one_with_patterns_can_be_served_once_it_is_folded(name):
    adapter = adapter_of(name, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 2})
    assert serving.vllm_objections(adapter.content, algebra.tensors_of(adapter))
    folded = algebra.fold(adapter)
    assert serving.vllm_objections(folded.content, algebra.tensors_of(folded)) == []
