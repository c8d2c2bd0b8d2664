"""The lora section of a recipe, which is `LoraConfig` in Python too.

Names, defaults and meanings are those of PEFT's `LoraConfig`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from jaxft.config import known
from jaxft.config.eva import EvaConfig
from jaxft.config.section import Fraction, PositiveInt, Section, conflict

PositiveFloat = Annotated[float, Field(gt=0)]
LayerIndex = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
FastPissa = Annotated[str, Field(pattern=r"^pissa_niter_[0-9]+$")]


class LoraConfig(Section):
    """The adapter, in PEFT's names."""

    known_elsewhere = known.LORA

    r: PositiveInt = 8
    """Rank of the update."""
    lora_alpha: PositiveInt | PositiveFloat = 8
    """Numerator of the scaling, `lora_alpha / r`."""
    use_rslora: bool = False
    """Scale by `lora_alpha / sqrt(r)` instead."""
    rank_pattern: dict[str, PositiveInt] = Field(default_factory=dict)
    """Other ranks by module: endings of names, or regular expressions for them."""
    alpha_pattern: dict[str, PositiveInt | PositiveFloat] = Field(default_factory=dict)
    """Other alphas by module, in the same way."""
    lora_dropout: Fraction = 0.0
    """Share of the adapter's inputs that is dropped while training."""
    target_modules: Annotated[list[str], Field(min_length=1)] | str | None = None
    """Which linear modules and embeddings get an adapter: a list of name endings, one regular
    expression for the whole name, `all-linear`, or null for PEFT's choice for the family."""
    exclude_modules: Annotated[list[str], Field(min_length=1)] | str | None = None
    """Which of them get none after all: a list of name endings, or one regular expression."""
    layers_to_transform: Annotated[list[LayerIndex], Field(min_length=1)] | LayerIndex | None = None
    """Only these layers get adapters, counted from 0; with a list of targets alone."""
    layers_pattern: Annotated[list[str], Field(min_length=1)] | str | None = None
    """The name of the list that `layers_to_transform` counts in, such as `layers` or `h`."""
    init_lora_weights: (
        bool | Literal["gaussian", "orthogonal", "eva", "olora", "pissa"] | FastPissa
    ) = True
    """How adapters begin. true: A uniform, B zero; `gaussian`: A normal, B zero; false: both
    uniform, `orthogonal`: from one orthogonal basis; with these two the start is not the base.
    `pissa`: with the largest singular vectors of the weight, `pissa_niter_4`: the same, faster, by
    4 iterations from a random subspace, `olora`: with the QR decomposition of the weight; with
    these the start is taken away again, so that it is the base. `eva`: A with the directions in
    which the module's inputs vary most, B zero, and ranks where these explain most."""
    init_from: Annotated[str, Field(min_length=1)] | None = None
    """The folder of an adapter to go on from, of the rank, alpha and targets that are given here;
    null begins a fresh one. In a recipe alone."""
    eva_config: EvaConfig | None = None
    """Of `eva`: how inputs are measured."""
    use_dora: bool = False
    """Train the length of each row of the adapted weights apart from its direction (DoRA)."""
    lora_bias: bool = False
    """Also train a bias on the output of B."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained: none, all of the model's, or those of adapted modules."""
    modules_to_save: Annotated[list[str], Field(min_length=1)] | None = None
    """Endings of module names that are trained as a whole and saved with the adapter."""
    trainable_token_indices: (
        TokenIds | Annotated[dict[str, TokenIds], Field(min_length=1)] | None
    ) = None
    """Tokens whose rows of the embedding are trained, of a tied head too; or, by the ending of the
    name of the embedding or the head, which rows of which."""
    ensure_weight_tying: bool = False
    """What is trained of a tied embedding or head is trained of both, as one."""

    @property
    def begins_with_weights(self) -> bool:
        """Whether adapters begin with a part of the weights that they stand beside."""
        return str(self.init_lora_weights).startswith(("pissa", "olora"))

    @model_validator(mode="before")
    @classmethod
    def _eva_has_its_options(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("init_lora_weights") == "eva":
            return data | {"eva_config": data.get("eva_config") or {}}
        return data

    @model_validator(mode="after")
    def _eva_config_belongs_to_eva(self) -> LoraConfig:
        if self.eva_config is not None and self.init_lora_weights != "eva":
            raise conflict(
                "eva_config",
                f"eva_config is set together with init_lora_weights={self.init_lora_weights!r}",
                "Write init_lora_weights=eva, or leave eva_config out.",
            )
        return self

    @model_validator(mode="after")
    def _adapters_begin_once(self) -> LoraConfig:
        if self.init_from is not None and self.init_lora_weights is not True:
            raise conflict(
                "init_from",
                f"init_from is set together with init_lora_weights={self.init_lora_weights!r}",
                "An adapter that goes on has begun already: leave init_lora_weights out.",
            )
        return self

    @model_validator(mode="after")
    def _layers_are_counted_in_lists_of_targets(self) -> LoraConfig:
        if self.layers_pattern is not None and self.layers_to_transform is None:
            raise conflict(
                "layers_pattern",
                "layers_pattern is set, and layers_to_transform is not",
                "Say which layers with layers_to_transform, or leave layers_pattern out.",
            )
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise conflict(
                "layers_to_transform",
                f"layers_to_transform is set together with target_modules={self.target_modules!r}",
                "Give target_modules as a list of name endings, or name the layers in the "
                "regular expression.",
            )
        return self

    @model_validator(mode="after")
    def _biases_need_a_plain_adapter(self) -> LoraConfig:
        if self.lora_bias and not isinstance(self.init_lora_weights, bool):
            raise conflict(
                "lora_bias",
                f"lora_bias is set together with init_lora_weights={self.init_lora_weights!r}",
                "Use init_lora_weights=true with it.",
            )
        if self.lora_bias and self.use_dora:
            raise conflict(
                "lora_bias",
                "lora_bias is set together with use_dora",
                "Leave one of them out; PEFT has no adapter with both.",
            )
        if self.use_dora and self.begins_with_weights:
            raise conflict(
                "use_dora",
                f"use_dora is set together with init_lora_weights={self.init_lora_weights!r}",
                "That is not supported here: leave one of them out.",
            )
        return self
