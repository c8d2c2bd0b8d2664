"""The text part of models of text and images.

They are Gemma 3 from 4b on, Mistral Small from 3.1 on, Ministral 3 and Muse Glimmer.

config.json has the config of the text part under `text_config`. The name table has the module
names of transformers' class for the whole model, so that adapters load there; files have other
names. The tensors of the vision part are ignored by name, and the model is written as a model of
text alone.

Source: transformers `configuration_gemma3.py`, `modeling_gemma3.py`, `configuration_mistral3.py`,
`modeling_mistral3.py`; `conversion_mapping.py` for the names in files.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jaxft.errors import UnsupportedModelError
from jaxft.models.families import gemma, llama, ministral, muse_glimmer
from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.families.family import IGNORED, Family, Tensor
from jaxft.models.spec import ModelSpec

_BASE = "model.language_model"
_RENAMES = (
    (r"language_model\.lm_head\.(.*)", r"lm_head.\1"),
    (r"language_model\.model\.(.*)", rf"{_BASE}.\1"),
)
_VISION = r"(model\.)?(vision_tower|multi_modal_projector|vision_adapter|vision_projection)\..*"
_IGNORED = (*IGNORED, _VISION)
# Keys of config.json about images.
_UNUSED = (
    "boi_token_index",
    "eoi_token_index",
    "image_token_id",
    "image_token_index",
    "mm_tokens_per_image",
    "multimodal_projector_bias",
    "out_hidden_size",
    "projector_hidden_act",
    "projector_hidden_size",
    "spatial_merge_size",
    "video_token_id",
    "vision_config",
    "vision_feature_layer",
)
# transformers' class of each text part; other readers need it in config.json.
_CLASSES = {
    "gemma3_text": "Gemma3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "ministral": "MinistralForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    # transformers has no class with a head for it; this one has none.
    "muse_glimmer_text": "MuseGlimmerTextModel",
}
# Keys that the whole model's config decides; its text part's count only if the whole lacks them.
_OF_THE_WHOLE = ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
# Defaults of the whole model's config, which count before the text part's keys.
_MEANT = {"muse_glimmer": {"tie_word_embeddings": False}}


def text_part(family: Family, config: Mapping[str, Any]) -> tuple[Family, dict[str, Any]]:
    """Return the family and the config.json of the text part of a model.

    For a model of text alone they are the model's own.

    Raises:
        UnsupportedModelError: The text part belongs to none of the family's `text_families`.
    """
    if not family.text_families:
        return family, dict(config)
    text = dict(ConfigReader(config).get("text_config"))
    by_name = {each.model_type: each for each in family.text_families}
    named = text.get("model_type", family.text_families[0].model_type)
    if named not in by_name:
        raise UnsupportedModelError(
            f"The model's config.json has a text part of model_type {named!r}, which is not "
            "handled.",
            f"Handled in a model of type {family.model_type}: {', '.join(by_name)}.",
        )
    said = {key: config[key] for key in _OF_THE_WHOLE if config.get(key) is not None}
    # The head is tied by default, whatever the text part says.
    whole = {"tie_word_embeddings": True} | _MEANT.get(family.model_type, {}) | said
    own = {"architectures": [_CLASSES[named]], "model_type": named}
    return by_name[named], text | whole | own


def _read(family: Family, reader: ConfigReader) -> ModelSpec:
    for key in (*_UNUSED, *_OF_THE_WHOLE, "text_config"):
        reader.get(key, None)
    text_family, text = text_part(family, reader.config)
    if text_family is not muse_glimmer.MUSE_GLIMMER_TEXT:
        # The classes of the text parts apply it; the other classes of the whole model do not.
        ConfigReader(text).require("final_logit_softcapping", (None,))
    return text_family.spec_from_config(text)


def _written(family: Family, spec: ModelSpec) -> dict[str, Any]:
    """Return the config.json of a spec; its text part is of the first family that can hold it."""
    written = (
        (each, each.config_from_spec(spec) | {"model_type": each.model_type})
        for each in family.text_families
    )
    text = next(config for each, config in written if each.spec_from_config(config) == spec)
    return {"text_config": text, "tie_word_embeddings": spec.tied_head}


def _family(
    name: str, tensors: Callable[[str], tuple[Tensor, ...]], *text_families: Family
) -> Family:
    family = Family(
        name,
        lambda reader: _read(family, reader),
        lambda spec: _written(family, spec),
        tensors(_BASE),
        _IGNORED,
        ("q_proj", "v_proj"),
        "lm_head",
        f"{_BASE}.",
        renames=_RENAMES,
        text_families=text_families,
    )
    return family


GEMMA3 = _family("gemma3", gemma.gemma_tensors, gemma.GEMMA3_TEXT)
MISTRAL3 = _family(
    "mistral3",
    llama.llama_tensors,
    llama.MISTRAL,
    ministral.MINISTRAL,
    ministral.MINISTRAL3,
)
MUSE_GLIMMER = _family("muse_glimmer", muse_glimmer.muse_tensors, muse_glimmer.MUSE_GLIMMER_TEXT)
