"""Models that also see: adapters stay on the text, and what is written whole is text alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import cases
import reference_adapters
import reference_features
import reference_models
import reference_runs
import reference_texts
import transformers
from jax.sharding import Mesh
from peft.tuners.lora import LoraLayer
from reference_models import TinyModel

from jaxft.errors import UnsupportedModelError
from jaxft.models import families
from jaxft.models.families.multimodal import GEMMA3, MISTRAL3, MUSE_GLIMMER
from jaxft.models.families.muse_glimmer import MUSE_GLIMMER_TEXT
from jaxft.verbs import export

pytestmark = [pytest.mark.reference, *reference_adapters.IGNORED_WARNINGS]


@pytest.mark.parametrize("name", ["gemma3", "mistral3", "muse_glimmer"])
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
    text = reference_texts.draw((41, 29), "left", cases.VOCAB_SIZE, seed=5)
    expected = reference_runs.our_logits(ours.network, ours.tree, text, one_device)
    logits = reference_runs.torch_logits(theirs, text)
    assert reference_runs.difference(logits, expected, text) < reference_runs.TOLERANCE


@pytest.mark.parametrize(
    "name",
    [
        "gemma3",
        "gemma3-tied",
        "mistral3",
        "mistral3-ministral",
        "mistral3-ministral3",
        "muse_glimmer",
    ],
)
def test_what_is_written_whole_opens_as_a_model_of_text(
    name: str, tiny_model: Callable[..., TinyModel], tmp_path: Path
) -> None:
    model = tiny_model(name)
    export.export(
        adapter=None, model=str(model.folder), output=tmp_path / "text", kind="merged", dtype="auto"
    )
    written = reference_models.open_torch(tmp_path / "text")
    config = json.loads((tmp_path / "text" / "config.json").read_text(encoding="utf-8"))
    # There is no class of a Muse Glimmer's text with a head.
    whole = getattr(written, "model", None)
    opened = getattr(whole, "language_model", written)
    assert config["architectures"] == [type(opened).__name__]
    text = reference_texts.draw((41, 29), "left", cases.VOCAB_SIZE, seed=13)
    expected = reference_runs.torch_logits(model.torch_model, text)
    logits = reference_runs.torch_logits(written, text)
    assert reference_runs.difference(logits, expected, text) < reference_runs.TOLERANCE


@pytest.mark.parametrize("name", ["mistral3", "gemma3"])
@pytest.mark.parametrize("of_whole", [None, False, True])
@pytest.mark.parametrize("of_text", [False, True])
def test_a_head_is_tied_as_transformers_ties_it(
    name: str, of_whole: bool | None, of_text: bool, tiny_model: Callable[..., TinyModel]
) -> None:
    model = tiny_model(name, std=reference_models.CALM_STD)
    saved = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    del saved["tie_word_embeddings"]
    saved["text_config"]["tie_word_embeddings"] = of_text
    if of_whole is not None:
        saved["tie_word_embeddings"] = of_whole
    fields = {key: value for key, value in saved.items() if key != "model_type"}
    config = transformers.CONFIG_MAPPING[name](**fields)
    theirs = reference_models.auto_class(config).from_config(config)
    is_tied = theirs.lm_head.weight is theirs.get_input_embeddings().weight
    assert model.family.spec_from_config(saved).tied_head == is_tied


@pytest.mark.parametrize(
    ("name", "text_type"), [("gemma3", "gemma3_text"), ("muse_glimmer", "muse_glimmer_text")]
)
def test_a_text_part_alone_has_the_logits_of_the_whole(
    name: str,
    text_type: str,
    tiny_model: Callable[..., TinyModel],
    tmp_path: Path,
    one_device: Mesh,
    record_property: reference_runs.Record,
) -> None:
    model = tiny_model(name)
    export.export(
        adapter=None, model=str(model.folder), output=tmp_path / "text", kind="merged", dtype="auto"
    )
    config = json.loads((tmp_path / "text" / "config.json").read_text(encoding="utf-8"))
    family = families.family_of(config)
    spec = family.spec_from_config(config)
    assert (family.model_type, spec) == (text_type, model.spec)
    alone = TinyModel(model.torch_model, tmp_path / "text", family, spec)
    tree = alone.load(alone.network, one_device)
    text = reference_texts.draw(reference_texts.PADDED, "left", cases.VOCAB_SIZE, seed=14)
    logits = reference_runs.our_logits(alone.network, tree, text, one_device)
    expected = reference_runs.torch_logits(model.torch_model, text)
    distance = reference_runs.difference(logits, expected, text)
    record_property("family", text_type)
    record_property("format", "safetensors")
    record_property("difference", distance)
    record_property("features", "; ".join(reference_features.features(spec)))
    assert distance < reference_runs.TOLERANCE


def test_muse_glimmers_head_is_tied_where_the_whole_says_so_alone(
    tiny_model: Callable[..., TinyModel],
) -> None:
    model = tiny_model("muse_glimmer")
    saved = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    saved["text_config"]["tie_word_embeddings"] = True
    assert not MUSE_GLIMMER.spec_from_config(saved).tied_head
    whole = reference_models.auto_class(type(model.torch_model.config).from_dict(saved))
    untied = whole.from_config(type(model.torch_model.config).from_dict(saved))
    assert untied.lm_head.weight is not untied.get_input_embeddings().weight
    assert MUSE_GLIMMER.spec_from_config(saved | {"tie_word_embeddings": True}).tied_head


def test_muse_glimmers_layers_have_one_base_or_no_positions() -> None:
    spec = MUSE_GLIMMER_TEXT.spec_from_config({"num_hidden_layers": 6})
    assert [block.window for block in spec.blocks] == [2048, None, 2048, 2048, 2048, None]
    assert all((block.rope is None) == (block.window is None) for block in spec.blocks)
    with pytest.raises(UnsupportedModelError, match="2 layer_rope_theta"):
        MUSE_GLIMMER_TEXT.spec_from_config({"num_hidden_layers": 2, "layer_rope_theta": [5.0, 0]})


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
