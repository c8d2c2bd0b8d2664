"""The options of `init_lora_weights: eva`, a section within the lora section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from jaxft.config.section import Section


class EvaConfig(Section):
    """How `init_lora_weights: eva` measures the inputs of modules and divides ranks among them."""

    names_from = "PEFT EvaConfig"

    rho: Annotated[float, Field(ge=1)] = 2.0
    """The largest rank that a module can get, as a multiple of `lora.r`; 1 leaves all ranks as they
    are."""
    tau: Annotated[float, Field(ge=0, le=1)] = 0.99
    """A direction counts as found once its cosine with the same direction one batch earlier reaches
    this value."""
    use_label_mask: bool = True
    """Measure inputs only at supervised tokens, those that have a label."""
    label_mask_value: Literal[-100] = -100
    """The label of tokens that are not supervised."""
    whiten: bool = False
    """Divide each direction by the square root of its singular value."""
    adjust_scaling_factors: bool = True
    """Change alpha together with the rank of a module, so that `lora_alpha / r` stays the same."""
