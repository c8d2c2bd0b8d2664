"""Model families. Each maps its config.json and its tensor names onto the decoder's."""

from collections.abc import Mapping
from typing import Any

from jaxft.errors import UnsupportedModelError, nearest
from jaxft.models.families import (
    apertus,
    biogpt,
    bloom,
    cohere,
    config_reader,
    falcon,
    foreign_keys,
    foreign_quantization,
    gemma,
    glm,
    gpt2,
    gpt_bigcode,
    gpt_neo,
    gpt_neox,
    gptj,
    granite,
    hunyuan,
    layer_normed,
    lfm2,
    llama,
    llama_like,
    llama_renamed,
    ministral,
    mpt,
    multimodal,
    muse_glimmer,
    olmo,
    opt,
    phi,
    phi3,
    qwen,
    refused,
    smollm3,
    xglm,
)
from jaxft.models.families.family import Family

FAMILIES: tuple[Family, ...] = (
    llama.LLAMA,
    llama.MISTRAL,
    llama_renamed.EXAONE,
    llama_renamed.IQUESTCODER,
    ministral.MINISTRAL,
    ministral.MINISTRAL3,
    smollm3.SMOLLM3,
    qwen.QWEN2,
    qwen.QWEN3,
    gemma.GEMMA,
    gemma.GEMMA2,
    gemma.GEMMA3_TEXT,
    gemma.VAULTGEMMA,
    multimodal.GEMMA3,
    multimodal.MISTRAL3,
    muse_glimmer.MUSE_GLIMMER_TEXT,
    multimodal.MUSE_GLIMMER,
    olmo.OLMO,
    olmo.OLMO2,
    olmo.OLMO3,
    opt.OPT,
    gpt2.GPT2,
    phi3.PHI3,
    granite.GRANITE,
    layer_normed.STARCODER2,
    layer_normed.STABLELM,
    cohere.COHERE,
    cohere.COHERE2,
    glm.GLM,
    glm.GLM4,
    hunyuan.HUNYUAN_DENSE,
    llama_like.EXAONE4,
    llama_like.SEED_OSS,
    apertus.APERTUS,
    llama_like.ARCEE,
    llama_like.HELIUM,
    llama_like.ERNIE,
    llama_like.CWM,
    lfm2.LFM2,
    granite.GRANITE4,
    granite.HYPERCLOVAX,
    layer_normed.NEMOTRON,
    layer_normed.JAIS2,
    gpt_neo.GPT_NEO,
    gptj.GPTJ,
    bloom.BLOOM,
    xglm.XGLM,
    gpt_neox.GPT_NEOX,
    phi.PHI,
    falcon.FALCON,
    gpt_bigcode.GPT_BIGCODE,
    mpt.MPT,
    biogpt.BIOGPT,
)


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the family of a config.json by its `model_type`.

    Raises:
        UnsupportedModelError: No family has this `model_type`, or the weights are quantized.
    """
    foreign_quantization.refuse_quantized(config)
    model_type = config.get("model_type")
    by_name = {family.model_type: family for family in FAMILIES}
    if model_type not in by_name:
        close = nearest(str(model_type), by_name)
        hint = f" (the nearest is {close})" if close else ""
        kind = refused.kind_of(str(model_type))
        raise UnsupportedModelError(
            f"The model's config.json says model_type {model_type!r}, which is not handled"
            f"{f': {kind}' if kind else ''}.",
            f"Choose a model of one of these types: {', '.join(sorted(by_name))}{hint}.",
        )
    return by_name[str(model_type)]


def passed_over(family: Family, config: Mapping[str, Any]) -> list[str]:
    """Return the keys of a config.json that are foreign to the model and do not change its spec."""
    spec = family.spec_from_config(config)
    foreign = [
        name
        for name in config
        if name not in config_reader.HARMLESS and foreign_keys.is_foreign(config, name)
    ]
    return [
        name
        for name in foreign
        if family.spec_from_config({key: config[key] for key in config if key != name}) == spec
    ]
