"""Checks beforehand whether vLLM can serve an adapter.

`peft_format` writes what PEFT reads; vLLM reads less. It reads one rank and one alpha, so it
accepts an adapter with patterns but serves it with the wrong scalings: that counts as an objection
here. Whether vLLM's class for a model supports adapters, and on which modules, does not depend on
the adapter: docs/lora.md has a table by family.

Source: vLLM at 1f486d96a17303ce8db8e02be39545b2be338446, of 3 July 2026 (`vllm/lora/peft_helper.py:
PEFTHelper`, `vllm/lora/lora_model.py: LoRAModel`).
"""

from collections.abc import Iterable, Mapping
from typing import Any

VLLM_RANK = 16  # the default of `--max-lora-rank`
_REQUIRED = ("r", "lora_alpha", "target_modules")


def vllm_objections(content: Mapping[str, Any], tensors: Iterable[str]) -> list[str]:
    """Return the reasons why vLLM cannot serve an adapter, whatever the model; empty if it can.

    Args:
        content: The content of adapter_config.json.
        tensors: The names of the adapter's tensors.
    """
    found = [f"{name} is missing" for name in _REQUIRED if content.get(name) is None]
    if content.get("modules_to_save"):
        found.append("modules_to_save is set")
    if content.get("use_dora"):
        found.append("use_dora is set")
    if content.get("bias", "none") != "none":
        found.append(f"bias is {content['bias']}")
    names = list(tensors)
    if any(name.endswith(".lora_B.bias") for name in names):
        found.append("lora_bias is set")
    if any(name.endswith(".trainable_tokens_delta") for name in names):
        found.append("trainable_token_indices is set")
    is_all_adapters = content.get("bias", "none") == "none" and not content.get("modules_to_save")
    if is_all_adapters and any(
        name.endswith((".embed_tokens.weight", ".lm_head.weight")) for name in names
    ):
        found.append("the base's embedding or head is in it, since the vocabulary was resized")
    if content.get("rank_pattern") or content.get("alpha_pattern"):
        found.append("it reads one r and one lora_alpha, and there are patterns (adapter fold)")
    return found
