"""config.json to spec and back: everything that affects numbers, as transformers reads it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import cases
import pydantic
import transformers
from reference_models import TinyModel

import jaxft
from jaxft.config import LoraConfig
from jaxft.models.families.activation_names import read_activation
from jaxft.models.families.config_reader import HARMLESS, TRAINING_ONLY

pytestmark = pytest.mark.reference


def numbers(config: transformers.PreTrainedConfig) -> dict[str, Any]:
    """Return what a config says of a model's numbers: of a larger model, its text part's."""
    return {
        key: value
        for key, value in config.get_text_config().to_dict().items()
        if key not in HARMLESS | TRAINING_ONLY and not key.startswith("_")
    }


def say_the_same(theirs: Any, ours: Any) -> bool:
    """Tell whether a value written from a spec says what the original said.

    Where that left something open, the spec knows what followed from it.
    """
    if isinstance(theirs, dict):
        return all(
            say_the_same(theirs[key], ours[key]) for key in (theirs.keys() & ours) - HARMLESS
        )
    if isinstance(theirs, str) and isinstance(ours, str):
        return theirs == ours or read_activation(theirs) == read_activation(ours)
    return theirs is None or theirs == ours


@pytest.mark.parametrize("name", cases.CASES)
def test_a_config_written_from_its_spec_says_the_same(
    name: str, tiny_model: Callable[..., TinyModel]
) -> None:
    model = tiny_model(name)
    original = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    written = model.family.config_from_spec(model.spec)
    assert model.family.spec_from_config(written) == model.spec
    config_class = type(transformers.AutoConfig.from_pretrained(model.folder))
    theirs = numbers(config_class.from_dict(original))
    tokens = {key: original.get(key) for key in cases.TOKENS}
    ours = numbers(config_class.from_dict(tokens | written))
    differing = {
        key: (value, ours.get(key))
        for key, value in theirs.items()
        if not say_the_same(value, ours.get(key))
    }
    assert not differing


def test_every_field_of_pefts_config_is_in_our_table_and_read_or_refused() -> None:
    peft = pytest.importorskip("peft")
    page = (Path(jaxft.__file__).parents[1] / "docs" / "lora.md").read_text(encoding="utf-8")
    section = page.partition("field by field")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    said = {name: text for names, text in rows for name in re.findall(r"`(\w+)`", names)}
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert fields <= said.keys()
    ours = LoraConfig.model_fields.keys()
    for field in fields:
        assert (field in ours) == said[field].startswith((" As PEFT", " `true`")), field
        if said[field].startswith(" Raise"):
            with pytest.raises(pydantic.ValidationError):
                LoraConfig.model_validate({field: ["something"]})
