"""The source that an option names has an option of that name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")

import datasets
import peft
import transformers
from peft.optimizers import create_loraplus_optimizer

from jaxft.config import options

pytestmark = pytest.mark.reference

SOURCES: dict[str, Callable[..., Any]] = {
    "PEFT LoraConfig": peft.LoraConfig,
    "PEFT EvaConfig": peft.EvaConfig,
    "PEFT create_loraplus_optimizer": create_loraplus_optimizer,
    "transformers TrainingArguments": transformers.TrainingArguments,
    "datasets load_dataset": datasets.load_dataset,
}
# Not installed for the tests, or their parameters are not in the signature.
UNSEEN = {
    "TRL SFTConfig",
    "transformers 4 TrainingArguments",
    "transformers AutoModelForCausalLM.from_pretrained",
}
NAMED = [
    option.source.rpartition(".")
    for part in options.parts()
    for option in part.options
    if option.source != "jaxft"
]


def test_every_name_is_in_the_library_it_is_said_to_come_from() -> None:
    assert {library for library, _, _ in NAMED} == SOURCES.keys() | UNSEEN
    for library, _, name in NAMED:
        if library in SOURCES:
            assert name in inspect.signature(SOURCES[library]).parameters, (library, name)
