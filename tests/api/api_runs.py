"""The rows and the options of the tiny runs that are made through the Python face."""

from __future__ import annotations

from typing import Any

ROWS = [
    {"prompt": f"Say {word}: ", "completion": word.upper()}
    for word in ("go", "ye", "forth", "unto", "them", "and", "be", "not", "afraid", "lord")
] * 3
HELD_OUT = [{"prompt": "Say hear: ", "completion": "HEAR"}, {"prompt": "A", "completion": "men"}]
# Everything that could make two runs differ is on: dropout, accumulation, clipping, a schedule.
LORA: dict[str, Any] = {
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.3,
    "target_modules": ["q_proj", "v_proj"],
}
ARGS: dict[str, Any] = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "learning_rate": 2e-2,
    "max_steps": 4,
    "logging_steps": 1,
    "seed": 7,
}
MAX_LENGTH = 32
