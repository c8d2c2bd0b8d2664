"""Model families: for each, how its config.json and its tensor names map onto ours."""

from collections.abc import Mapping
from typing import Any

from jaxft.errors import UnsupportedModelError, nearest
from jaxft.models.families import (
    biogpt,
    bloom,
    falcon,
    gpt2,
    gpt_bigcode,
    gpt_neo,
    gpt_neox,
    gptj,
    llama,
    mpt,
    opt,
    phi,
    quantised,
    xglm,
)
from jaxft.models.families.family import Family

FAMILIES: tuple[Family, ...] = (
    llama.LLAMA,
    llama.MISTRAL,
    opt.OPT,
    gpt2.GPT2,
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
    """Return the family that a config.json belongs to, by its `model_type`.

    Raises:
        UnsupportedModelError: If no family here has that name, or its weights are quantised.
    """
    quantised.refuse_quantised(config)
    model_type = config.get("model_type")
    by_name = {family.model_type: family for family in FAMILIES}
    if model_type not in by_name:
        close = nearest(str(model_type), by_name)
        hint = f" (the nearest is {close})" if close else ""
        raise UnsupportedModelError(
            f"The model's config.json says model_type {model_type!r}, which is not handled.",
            f"Choose a model of one of these types: {', '.join(sorted(by_name))}{hint}.",
        )
    return by_name[str(model_type)]
