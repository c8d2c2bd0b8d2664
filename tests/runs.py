"""Everything that `jaxft train` needs, tiny: a model folder, rows, a recipe; and ways to run it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import byte_tokenizer
import datasets
import numpy as np
import pytest
import small_models
from transformers import PreTrainedTokenizerFast

from jaxft import config
from jaxft.cli import main
from jaxft.config import RunConfig

LAYERS, WIDTH, MLP, HEADS, KV_HEADS = 2, 32, 48, 4, 2
SPECIAL_TOKENS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]  # which make 260, an even number
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_WORDS = ["the", "lord", "said", "unto", "them", "go", "ye", "forth", "and", "be", "not", "afraid"]

# What a recipe of these tests says, by dotted key. Dropout, accumulation, packing and shuffling
# are on, so that resuming has to carry them all. A step has 4 devices x 1 row x 2 micro-batches.
RECIPE: dict[str, Any] = {
    "lora.r": 4,
    "lora.lora_alpha": 8,
    "lora.lora_dropout": 0.2,
    "data.max_length": 64,
    "data.packing": True,
    "train.per_device_train_batch_size": 1,
    "train.per_device_eval_batch_size": 1,
    "train.gradient_accumulation_steps": 2,
    "train.learning_rate": 2e-2,
    "train.max_steps": 6,
    "train.logging_steps": 1,
    "train.eval_strategy": "steps",
    "train.eval_steps": 3,
    "train.save_steps": 2,
    "train.seed": 7,
    "model.dtype": "float32",
}


def write_model(folder: Path, *, seed: int = 0, width: int = WIDTH, biases: bool = False) -> Path:
    """Write a random Llama with a ChatML tokenizer; `biases` are those of attention."""
    fast = tokenizer()
    content = {
        **small_models.LLAMA,
        "attention_bias": biases,
        "hidden_size": width,
        "intermediate_size": MLP,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": len(fast),
        "eos_token_id": fast.eos_token_id,
    }
    small_models.write_weights(folder, content, dtype="float32", seed=seed)
    fast.save_pretrained(folder)
    return folder


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes with a ChatML template."""
    return byte_tokenizer.make(
        last=SPECIAL_TOKENS,
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=CHATML,
    )


def make_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Return chats whose answers are their questions in capitals: there is something to learn."""
    rng = np.random.default_rng(seed)
    said = [" ".join(rng.choice(_WORDS, rng.integers(1, 4))) for _ in range(count)]
    return [
        {
            "messages": [
                {"role": "user", "content": text},
                {"role": "assistant", "content": text.upper()},
            ]
        }
        for text in said
    ]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_recipe(folder: Path, **changes: Any) -> Path:
    """Write model, rows and recipe into `folder`; `changes` are by key, with `__` for the dot.

    The run's folder is `folder`/run.
    """
    if not (folder / "model").exists():
        write_model(folder / "model")
    write_rows(folder / "train.jsonl", make_rows(60, seed=1))
    write_rows(folder / "eval.jsonl", make_rows(9, seed=2))
    values = {
        "model.path": str(folder / "model"),
        "data.train": "train.jsonl",
        "data.eval": "eval.jsonl",
        "train.output_dir": str(folder / "run"),
        **RECIPE,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    sections: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(sections, indent=1))  # JSON is YAML
    return path


def load(recipe: Path, *overrides: str) -> RunConfig:
    """Read a recipe as the command line does."""
    return config.load_config(recipe, overrides)


def status(*words: str) -> int:
    """Run the command line in this process and return its exit status."""
    with pytest.raises(SystemExit) as ended:
        main.main(words)
    code = ended.value.code
    assert code is None or isinstance(code, int)
    return code or 0


def records(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without the one figure that differs from run to run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name != "tokens_per_second"}
        for line in lines
    ]


def adapter_bytes(run: Path) -> dict[str, bytes]:
    """Return every file of the run's adapter."""
    return {path.name: path.read_bytes() for path in sorted((run / "adapter").iterdir())}


def calls(function: Callable[..., Any], at: int, act: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that has `act` done just after it was called for the `at`-th time.

    What `act` returns of the result, if anything, takes its place.
    """
    count = itertools.count(1)

    def called(*arguments: Any) -> Any:
        result = function(*arguments)
        return (act(result) or result) if next(count) == at else result

    return called


def send(number: int) -> Callable[..., None]:
    """Return an act that sends this process a signal."""
    return lambda _: os.kill(os.getpid(), number)


def after_step(number: int, act: Callable[..., Any]) -> Callable[..., Any]:
    """Return a change of a run's programs that has `act` done just after a step was begun."""
    return lambda programs: programs._replace(train_step=calls(programs.train_step, number, act))


def saved_steps(run: Path) -> list[int]:
    """Return the steps of which there are checkpoints."""
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())


@contextlib.contextmanager
def own_caches(folder: Path) -> Iterator[pytest.MonkeyPatch]:
    """Keep the caches of rows in `folder`, of this process and of those that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        patch.setenv("HF_DATASETS_CACHE", str(folder))
        yield patch
