"""A tiny run through the Python face, and caches that belong to these tests alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import runs
import small_models
from api_runs import ARGS, HELD_OUT, LORA, MAX_LENGTH, ROWS

import jaxft


@pytest.fixture(scope="session")
def workshop(tmp_path_factory):
    """A folder with a model in it."""
    base = tmp_path_factory.mktemp("api")
    with runs.own_caches(base / "datasets"):
        small_models.write(base / "opt", small_models.OPT)
        yield base


@pytest.fixture(scope="session")
def opt(workshop) -> Path:
    return workshop / "opt"


@pytest.fixture(scope="session")
def make_model(opt):
    """Return a function that makes the model with a fresh adapter."""

    def make(**changes: Any) -> jaxft.PeftModel:
        model = jaxft.AutoModelForCausalLM.from_pretrained(opt, dtype="float32")
        return jaxft.get_peft_model(model, jaxft.LoraConfig(**{**LORA, **changes}))

    return make


@pytest.fixture
def make_trainer(make_model, tmp_path):
    """Return a function that makes a trainer whose run is in this test's folder."""

    def make(kind: Any = jaxft.Trainer, args: Any = (), **options: Any) -> jaxft.Trainer:
        values = {**ARGS, "output_dir": tmp_path / "run", **dict(args)}
        options = {
            "model": options.get("model") or make_model(),
            "train_dataset": ROWS,
            "max_length": MAX_LENGTH,
            **options,
        }
        return kind(args=jaxft.TrainingArguments(**values), **options)

    return make


@pytest.fixture(scope="session")
def straight(make_model, tmp_path_factory):
    """The folder of a run with held-out rows, the model that it trained, and what it returned."""
    path = tmp_path_factory.mktemp("straight") / "run"
    model = make_model()
    trainer = jaxft.Trainer(
        model,
        jaxft.TrainingArguments(path, **ARGS),
        train_dataset=ROWS,
        eval_dataset=HELD_OUT,
        max_length=MAX_LENGTH,
    )
    return path, model, trainer.train()
