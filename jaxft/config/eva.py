"""The options of `init_lora_weights: eva`, a section within the lora section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from jaxft.config.section import Section


class EvaConfig(Section):
    """How `init_lora_weights: eva` measures the inputs of modules, in PEFT's names."""

    rho: Annotated[float, Field(ge=1)] = 2.0
    """How many times its rank a module can get; 1 leaves all ranks as they are."""
    tau: Annotated[float, Field(ge=0, le=1)] = 0.99
    """The cosine between a direction and what it was a batch before, from which it counts as
    found."""
    use_label_mask: bool = True
    """Measure only at tokens that are learned from."""
    label_mask_value: Literal[-100] = -100
    """What labels have where nothing is learned."""
    whiten: bool = False
    """Divide each direction by the root of its singular value."""
    adjust_scaling_factors: bool = True
    """Give modules of another rank another alpha, so that alpha / r stays."""
