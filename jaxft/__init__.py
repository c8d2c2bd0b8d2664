"""Fine-tune Hugging Face language models with LoRA, in JAX.

The public names are imported on first use, so that `import jaxft` costs nothing: it loads
neither jax nor transformers, and the command line can answer `--help` at once.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Each public name, and the module that is its home.
_HOMES = {
    "JaxftError": "jaxft.errors",
    "RunConfig": "jaxft.config",
    "load_config": "jaxft.config",
    "dump_config": "jaxft.config",
    "AutoModelForCausalLM": "jaxft.api",
    "EvalPrediction": "jaxft.api",
    "LoraConfig": "jaxft.api",
    "PeftModel": "jaxft.api",
    "Trainer": "jaxft.api",
    "TrainerCallback": "jaxft.api",
    "TrainingArguments": "jaxft.api",
    "get_peft_model": "jaxft.api",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name from its home when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxft' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted(__all__)
