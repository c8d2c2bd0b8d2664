"""What jaxft writes is read by transformers 4.57 as by transformers 5.

The older one is in a folder of its own, which the environment variable JAXFT_TRANSFORMERS4 names
(`.ci/run` makes it):

    pip install --no-deps --target FOLDER \\
        transformers==4.57.6 "huggingface_hub<1" "tokenizers<0.23.1"
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import cases
import reference_models
import reference_runs
import runs
import torch
import transformers
from reference_models import TinyModel

from jaxft.errors import WeightsError
from jaxft.verbs import export
from jaxft.weights.places import chat_format, companions, source

FOLDER = os.environ.get("JAXFT_TRANSFORMERS4")
pytestmark = [
    pytest.mark.reference,
    pytest.mark.skipif(FOLDER is None, reason="JAXFT_TRANSFORMERS4 names no transformers 4.57"),
]

TEXTS = [
    "In 1611, 1234567890 people; 3.14159",
    "naïve 你好 🙂\n\n x",
    "<|im_start|>user\nGo<|im_end|>",
]
CHAT = [{"role": "user", "content": "How old is 42?"}]
ASK = """
import json, sys
import torch, transformers
folder, texts, chat, ids = json.loads(sys.stdin.read())
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
found = {
    "version": transformers.__version__,
    "texts": [tokenizer(text)["input_ids"] for text in texts],
    "chat": tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True),
    "eos": tokenizer.eos_token,
}
if ids is not None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    with torch.no_grad():
        found["logits"] = model(torch.tensor(ids)).logits.tolist()
print(json.dumps(found))
"""


def ask(
    folder: Path, ids: Sequence[Sequence[int]] | None, texts: Sequence[str] = TEXTS
) -> dict[str, Any]:
    """Return what transformers 4.57 makes of a folder."""
    assert FOLDER is not None
    result = subprocess.run(
        [sys.executable, "-c", ASK],
        input=json.dumps([str(folder), list(texts), CHAT, ids]),
        env={**os.environ, "PYTHONPATH": FOLDER, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout)
    assert found["version"].startswith("4.57.")
    return found


def of_this_version(tokenizer: Any) -> dict[str, Any]:
    return {
        "texts": [tokenizer(text)["input_ids"] for text in TEXTS],
        "chat": tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True),
        "eos": tokenizer.eos_token,
    }


def test_an_exported_folder_is_the_same_model(
    tiny_model: Callable[..., TinyModel], tmp_path: Path
) -> None:
    model = tiny_model("llama", std=reference_models.CALM_STD)
    base = tmp_path / "base"
    model.torch_model.save_pretrained(base)
    # As the folders of Llama 3 are: written by transformers 4.
    runs.tokenizer().save_pretrained(base)
    path = base / "tokenizer_config.json"
    content = json.loads(path.read_text())
    for key in ("backend", "is_local", "local_files_only", "extra_special_tokens"):
        content.pop(key, None)
    path.write_text(json.dumps({**content, "tokenizer_class": "PreTrainedTokenizerFast"}))
    export.export(
        adapter=None, model=str(base), output=tmp_path / "out", kind="merged", dtype="bfloat16"
    )
    ids = np.random.default_rng(3).integers(0, cases.VOCAB_SIZE, (2, 9))
    found = ask(tmp_path / "out", ids.tolist())
    logits = np.asarray(found["logits"])
    theirs = reference_models.open_torch(tmp_path / "out")
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    assert np.abs(logits - expected).max() < reference_runs.TOLERANCE * np.abs(expected).max()
    now = of_this_version(transformers.AutoTokenizer.from_pretrained(tmp_path / "out"))
    assert {key: found[key] for key in now} == now


def test_the_tokenizer_of_a_gguf_is_the_same(tmp_path: Path) -> None:
    try:
        base = source.resolve("HuggingFaceTB/SmolLM2-135M-Instruct", None, lambda _: None)
    except WeightsError as error:
        pytest.skip(str(error))
    companions.write(tmp_path, base, chat_format.BASE_FORMAT, pytest.fail)
    now = of_this_version(base.tokenizer())
    found = ask(tmp_path, None)
    assert {key: found[key] for key in now} == now


def test_a_tokenizer_with_new_tokens_is_the_same(tmp_path: Path) -> None:
    grown = runs.tokenizer()
    grown.add_tokens(["<tool>", "</tool>"])
    companions.save_tokenizer(grown, tmp_path)
    now = of_this_version(grown) | {
        "texts": [grown(f"{text}<tool>")["input_ids"] for text in TEXTS]
    }
    found = ask(tmp_path, None, [f"{text}<tool>" for text in TEXTS])
    assert {key: found[key] for key in now} == now
