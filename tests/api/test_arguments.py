"""`LoraConfig` and `TrainingArguments` by call: the recipe's options, and its mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

import jaxft
from jaxft.errors import ConfigError


def test_the_output_folder_is_text_a_path_or_the_first_argument():
    for args in (
        jaxft.TrainingArguments(output_dir="./x"),
        jaxft.TrainingArguments("./x"),
        jaxft.TrainingArguments(output_dir=Path("x")),
    ):
        assert args.output_dir == Path("x")
    with pytest.raises(ConfigError, match="output_dir"):
        jaxft.TrainingArguments()


def test_what_asks_for_nothing_is_accepted():
    plain = jaxft.LoraConfig(r=4)
    assert jaxft.LoraConfig(r=4, task_type="CAUSAL_LM", use_qalora=False) == plain
    args = jaxft.TrainingArguments("x", report_to="none", fp16=False, remove_unused_columns=False)
    assert args == jaxft.TrainingArguments("x")


@pytest.mark.parametrize(
    ("make", "values", "found", "remedy"),
    [
        (jaxft.LoraConfig, {"use_qalora": True}, "lora: `lora.use_qalora: true` is known, and", ""),
        (jaxft.LoraConfig, {"task_type": "SEQ_CLS"}, "is known, and not supported yet", ""),
        (jaxft.LoraConfig, {"lora_alhpa": 8}, "unknown key", "`lora.lora_alpha`"),
        (jaxft.LoraConfig, {"r": 0}, "`lora.r` is 0", "at least 1"),
        (jaxft.LoraConfig, {"r": "8"}, '`lora.r` is "8"', "an integer"),
        (jaxft.LoraConfig, {"bias": "some"}, '`lora.bias` is "some"', "lora_only"),
        (jaxft.TrainingArguments, {"report_to": "wandb"}, "`train.report_to", "none"),
        (jaxft.TrainingArguments, {"bf16": True}, "`train.bf16: true`", "model.dtype"),
        (jaxft.TrainingArguments, {"learning_rte": 1.0}, "unknown key", "`train.learning_rate`"),
        (jaxft.TrainingArguments, {"optim": "adafactor"}, "is known, and not supported yet", ""),
        (jaxft.TrainingArguments, {"max_steps": 0}, "which trains nothing", "-1"),
    ],
)
def test_what_is_not_supported_is_a_mistake_in_two_lines(make, values, found, remedy):
    first = {"output_dir": "x"} if make is jaxft.TrainingArguments else {}
    with pytest.raises(ConfigError) as raised:
        make(**first, **values)
    assert found in raised.value.found
    assert remedy in raised.value.remedy
