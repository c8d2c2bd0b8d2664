"""Models that also see: adapters stay on the text, and what is written whole is text alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import reference_adapters
import reference_models
import reference_runs
import reference_texts
import transformers
from jax.sharding import Mesh
from peft.tuners.lora import LoraLayer
from reference_models import TinyModel

from jaxft import export
from jaxft.errors import UnsupportedModelError
from jaxft.models.families.multimodal import GEMMA3, MISTRAL3

pytestmark = [pytest.mark.reference, *reference_adapters.IGNORED_WARNINGS]


@pytest.mark.parametrize("name", ["gemma3", "mistral3"])
@pytest.mark.parametrize("targets", ["all-linear", None, ["k_proj"]], ids=str)
def test_adapters_of_ours_stay_on_the_text_in_peft(
    name: str,
    targets: list[str] | str | None,
    tiny_model: Callable[..., TinyModel],
    tmp_path: Path,
    one_device: Mesh,
) -> None:
    model = tiny_model(name, std=reference_models.CALM_STD)
    choice = {"target_modules": targets}
    ours = reference_adapters.ours_on(model, choice, one_device, seed=2)
    reference_adapters.export(model, choice, ours.network, ours.adapters, tmp_path / "adapter")
    theirs = reference_adapters.peft_from(model, tmp_path / "adapter")
    adapted = [name for name, module in theirs.named_modules() if isinstance(module, LoraLayer)]
    assert adapted
    assert all(".language_model.layers." in name for name in adapted)
    text = reference_texts.draw((41, 29), "left", reference_models.VOCAB_SIZE, seed=5)
    expected = reference_runs.our_logits(ours.network, ours.tree, text, one_device)
    logits = reference_runs.torch_logits(theirs, text)
    assert reference_runs.difference(logits, expected, text) < reference_runs.TOLERANCE


@pytest.mark.parametrize(
    "name", ["gemma3", "gemma3-tied", "mistral3", "mistral3-ministral", "mistral3-ministral3"]
)
def test_what_is_written_whole_opens_as_a_model_of_text(
    name: str, tiny_model: Callable[..., TinyModel], tmp_path: Path
) -> None:
    model = tiny_model(name)
    export.export(
        adapter=None, model=str(model.folder), output=tmp_path / "text", kind="merged", dtype="auto"
    )
    written = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "text", attn_implementation="eager"
    ).eval()
    config = json.loads((tmp_path / "text" / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == [type(written).__name__]
    text = reference_texts.draw((41, 29), "left", reference_models.VOCAB_SIZE, seed=13)
    expected = reference_runs.torch_logits(model.torch_model, text)
    logits = reference_runs.torch_logits(written, text)
    assert reference_runs.difference(logits, expected, text) < reference_runs.TOLERANCE


def test_what_the_whole_leaves_open_its_text_part_says(
    tiny_model: Callable[..., TinyModel],
) -> None:
    saved = json.loads((tiny_model("mistral3").folder / "config.json").read_text(encoding="utf-8"))
    del saved["tie_word_embeddings"]
    for is_tied in (False, True):
        saved["text_config"]["tie_word_embeddings"] = is_tied
        assert MISTRAL3.spec_from_config(saved).tied_head == is_tied


def test_a_text_part_that_is_not_handled_raises_naming_it(
    tiny_model: Callable[..., TinyModel],
) -> None:
    saved = json.loads((tiny_model("mistral3").folder / "config.json").read_text(encoding="utf-8"))
    saved["text_config"]["model_type"] = "mistral4"
    with pytest.raises(UnsupportedModelError, match="'mistral4'"):
        MISTRAL3.spec_from_config(saved)
    with pytest.raises(UnsupportedModelError, match="final_logit_softcapping"):
        GEMMA3.spec_from_config({"text_config": {"final_logit_softcapping": 20.0}})
    with pytest.raises(UnsupportedModelError, match="audio_config"):
        GEMMA3.spec_from_config({"text_config": {}, "audio_config": {"hidden_size": 2}})
