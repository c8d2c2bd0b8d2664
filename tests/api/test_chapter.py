"""The chapter's script: word for word but for its imports and its data, and it runs."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import small_models

import jaxft

pytestmark = pytest.mark.slow

REPO = Path(jaxft.__file__).parent.parent
SCRIPT = REPO / "scripts" / "chapter_4_6.py"
CHAPTER = REPO.parent / "shared" / "seeds" / "chapter-4-fine-tuning.md"
DATA = """\
# 데이터셋 불러오기
rows = Path(__file__).parent.parent / "configs" / "data" / "style.train.jsonl"
chats = [json.loads(line)["messages"] for line in rows.read_text(encoding="utf-8").splitlines()]
your_train_dataset = [
    {"question": user["content"], "answer": assistant["content"]} for user, assistant in chats
]
"""


@pytest.mark.skipif(not CHAPTER.exists(), reason="the chapter is not part of the repository")
def test_only_the_imports_and_the_data_differ_from_the_chapter():
    section = CHAPTER.read_text(encoding="utf-8").split("## 4.6 ")[1]
    printed = section.split("```python\n")[1].split("```")[0]
    ours = SCRIPT.read_text(encoding="utf-8").split("\nimport json\nfrom pathlib import Path\n\n")[
        1
    ]
    assert ours.count(DATA + "\n") == 1
    imports = {
        "from peft import": "from jaxft import",
        "from transformers import": "from jaxft import",
    }
    for old, new in imports.items():
        assert printed.count(old) == 1
        printed = printed.replace(old, new)
    assert ours.replace(DATA + "\n", "") == printed


def test_the_script_runs(workshop, tmp_path, monkeypatch, capsys):
    # Where the script is run there is a folder of the model's name: nothing is looked for online.
    small_models.write(tmp_path / "facebook" / "opt-125m", small_models.OPT)
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(SCRIPT))
    run = tmp_path / "lora_ft_model"
    assert names["your_train_dataset"][0]["answer"].startswith("And he said unto his disciples")
    written = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "facebook/opt-125m"
    assert (written["r"], written["lora_alpha"], written["lora_dropout"]) == (8, 16, 0.1)
    assert (written["target_modules"], written["bias"]) == (["q_proj", "v_proj"], "none")
    tensors = safetensors.numpy.load_file(run / "adapter" / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * 2  # A and B of two modules in two layers
    assert all(np.abs(tensor).max() > 0 for tensor in tensors.values())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == names["trainer"].state.global_step
    assert lines[-1]["epoch"] == 3.0
