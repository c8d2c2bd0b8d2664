"""The script of the course chapter, section 4.6: two import lines changed, a data set put in.

    python scripts/chapter_4_6.py

It stands here as it is printed there, so no formatter may touch it.
"""
# ruff: noqa: I001
# fmt: off

import json
from pathlib import Path

from jaxft import LoraConfig, get_peft_model
from jaxft import AutoModelForCausalLM, Trainer, TrainingArguments

# 데이터셋 불러오기
rows = Path(__file__).parent.parent / "configs" / "data" / "style.train.jsonl"
chats = [json.loads(line)["messages"] for line in rows.read_text(encoding="utf-8").splitlines()]
your_train_dataset = [
    {"question": user["content"], "answer": assistant["content"]} for user, assistant in chats
]

# 모델 불러오기
model = AutoModelForCausalLM.from_pretrained("facebook/opt-125m")

# LoRA 설정
config = LoraConfig(
    r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], lora_dropout=0.1, bias="none"
)
model = get_peft_model(model, config)

# 학습 설정
training_args = TrainingArguments(
    output_dir="./lora_ft_model",
    per_device_train_batch_size=4,
    learning_rate=2e-4,
    num_train_epochs=3
)

# Trainer로 학습 진행
trainer = Trainer(
    model=model,
    args=training_args,
    train_dataset=your_train_dataset
)
trainer.train()
