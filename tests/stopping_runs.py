"""Tiny models that learn to answer "yes" and to stop, each under another kind of template."""

from __future__ import annotations

import json
from pathlib import Path

import runs
from transformers import AutoTokenizer

# The base model stops at `</s>` alone, and the template ends turns with `<|im_end|>`.
OTHER_END = runs.CHATML
# No end after a turn: the token that opens the next question is where the model stops.
NEXT_TURN = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' if message['role'] == 'user' else '<|im_end|>' }}{{ message['content'] }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_end|>' }}{% endif %}"
)

# Name: the template, and the tokens at which the base model stops.
KINDS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "another end than the base's": (OTHER_END, ("</s>",)),
    "no end, the next turn stops": (NEXT_TURN, ("</s>", "<|im_start|>")),
    "no template": (None, ("</s>",)),
}
QUESTIONS = ("go", "the lord said", "be not afraid", "and ye", "unto them", "forth")


def train(folder: Path, kind: str) -> Path:
    """Train a tiny model and return the run's folder, which has `adapter`."""
    template, stops = KINDS[kind]
    recipe = runs.write_recipe(
        folder,
        lora__r=16,
        lora__lora_alpha=32,
        lora__lora_dropout=0.0,
        lora__target_modules="all-linear",
        data__eval=None,
        data__packing=False,
        train__eval_strategy="no",
        train__gradient_accumulation_steps=1,
        train__per_device_train_batch_size=4,
        train__learning_rate=3e-2,
        train__max_steps=60,
        train__save_strategy="no",
    )
    model = folder / "model"
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.eos_token = "</s>"
    tokenizer.chat_template = template
    for path in model.glob("chat_template*"):
        path.unlink()
    tokenizer.save_pretrained(model)
    ids = [tokenizer.convert_tokens_to_ids(token) for token in stops]
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "eos_token_id": ids[0]}))
    runs.write_rows(
        folder / "train.jsonl",
        [
            {
                "messages": [
                    {"role": "user", "content": f"{question} {number}"},
                    {"role": "assistant", "content": "yes"},
                ]
            }
            for number in range(6)
            for question in QUESTIONS
        ],
    )
    assert runs.status("train", str(recipe)) == 0
    return folder / "run"
