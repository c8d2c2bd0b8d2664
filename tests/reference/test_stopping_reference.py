"""What was exported stops in transformers too, by its own files."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import runs
import stopping_runs
import transformers

pytestmark = [pytest.mark.reference, pytest.mark.slow]


@pytest.mark.parametrize("kind", stopping_runs.KINDS)
def test_a_model_that_learned_to_stop_does_in_transformers(kind, tmp_path):
    run = stopping_runs.train(tmp_path, kind)
    merged = tmp_path / "merged"
    words = ("--adapter", str(run / "adapter"), "--output", str(merged))
    assert runs.status("export", *words) == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(merged)
    model = transformers.AutoModelForCausalLM.from_pretrained(merged)
    chat = [{"role": "user", "content": "go forth 3"}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = model.generate(**prompt, max_new_tokens=20, do_sample=False, pad_token_id=0)
    answer = written[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "yes"
    assert len(answer) <= len(tokenizer("yes")["input_ids"]) + 1
