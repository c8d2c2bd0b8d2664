"""The model card of an adapter: README.md, with the header that the Hugging Face Hub reads.

It is separate from `peft_format`, which writes it to disk, because it is prose. The invariants: the
card states only what the adapter's files or the caller state. It holds no date, so that equal runs
write equal folders. It links the base model only if that is on the Hub, since a local path means
nothing to others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import jaxft
from jaxft.adapters import kinds
from jaxft.weights.places import hub

FILE = "README.md"


def model_card(
    content: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    facts: Mapping[str, str],
    resized_to: int | None = None,
) -> str:
    """Return the text of a model card.

    Args:
        content: The content of adapter_config.json.
        tensors: The adapter's tensors, by name.
        facts: Further facts by label, such as the number of steps and the held-out loss.
        resized_to: The number of token rows that the base must be resized to before the adapter is
            loaded, such as 32,001; `None` if it need not be resized.
    """
    name = content.get("base_model_name_or_path") or ""
    is_linked = _is_on_hub(name)
    shown = name if is_linked else Path(name).name or "a base model"
    called = f"[{name}](https://huggingface.co/{name})" if is_linked else f"`{shown}`"
    rows = {**_facts(content, tensors), **facts}
    return "\n".join(
        [
            "---",
            *_header(name if is_linked else None),
            "---",
            "",
            f"# LoRA adapter for {shown}",
            "",
            f"Made with jaxft {jaxft.__version__} for {called}, in PEFT's format.",
            "",
            "| | |",
            "| --- | --- |",
            *(f"| {label} | {_cell(value)} |" for label, value in rows.items()),
            "",
            "## Use",
            "",
            "With PEFT, `adapter` being this folder or its name on the Hub:",
            "",
            "```python",
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("{shown}")',
            *([] if resized_to is None else [f"model.resize_token_embeddings({resized_to})"]),
            "model = PeftModel.from_pretrained(model, adapter)",
            "```",
            "",
            "With jaxft:",
            "",
            "    jaxft generate --adapter FOLDER --prompt 'Hello.'",
            "    jaxft export --adapter FOLDER --output merged",
            "",
        ]
    )


def _header(base_model: str | None) -> list[str]:
    """Return the YAML header that the Hub reads, line by line."""
    linked = [] if base_model is None else [f"base_model: {base_model}"]
    tags = ["lora", "jaxft"]
    if base_model is not None:
        tags.insert(0, f"base_model:adapter:{base_model}")
    return [
        "library_name: peft",
        *linked,
        "pipeline_tag: text-generation",
        "tags:",
        *(f"- {tag}" for tag in tags),
    ]


def _facts(content: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Return the facts that the adapter's files state, by label."""
    facts = {"Rank": str(content["r"]), "Alpha": str(content["lora_alpha"])}
    if content.get("use_rslora"):
        facts["Alpha"] += ", rank-stabilised (over the root of the rank)"
    for field, label in (("rank_pattern", "Other ranks"), ("alpha_pattern", "Other alphas")):
        if content.get(field):
            by_name = (f"`{key}`: {each}" for key, each in content[field].items())
            facts[label] = kinds.shortened(by_name)
    for field, label in (
        ("target_modules", "Adapted modules"),
        ("exclude_modules", "but not"),
        ("layers_to_transform", "in layers"),
        ("modules_to_save", "Trained as a whole"),
    ):
        value = content.get(field)
        if value not in (None, []):
            several = value if isinstance(value, list) else [value]
            facts[label] = kinds.shortened(f"`{each}`" for each in several)
    if content.get("init_lora_weights") == "eva":
        facts["EVA"] = "begun along the directions in which the modules' inputs vary most"
    if content.get("use_dora"):
        facts["DoRA"] = "yes: the lengths of the adapted weights' rows are trained too"
    tokens = content.get("trainable_token_indices")
    if tokens:
        named = tokens if isinstance(tokens, dict) else {"the embedding": tokens}
        counts = (f"{len(each):,} rows of {name}" for name, each in named.items())
        facts["Trained tokens"] = ", ".join(counts)
    if content.get("ensure_weight_tying"):
        facts["Embedding and head"] = "trained as one where they are tied"
    if content.get("bias", "none") != "none":
        facts["Biases"] = f"trained (`{content['bias']}`)"
    facts["Parameters"] = f"{sum(tensor.size for tensor in tensors.values()):,}"
    return facts


def _is_on_hub(name: str) -> bool:
    """Return whether a name is a Hub id, not a path on this disk."""
    is_path = name.endswith(".gguf") or Path(name).exists()
    return bool(name) and not is_path and hub.is_name(name)


def _cell(value: str) -> str:
    return value.replace("|", r"\|").replace("\n", " ")
