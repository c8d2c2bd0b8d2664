"""The lora section of a recipe: names, defaults and meanings are those of PEFT's `LoraConfig`.

In Python it is the class `LoraConfig` too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from jaxft.config import known
from jaxft.config.eva import EvaConfig
from jaxft.config.section import OWN, Fraction, PositiveInt, Section, conflict

PositiveFloat = Annotated[float, Field(gt=0)]
LayerIndex = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
FastPissa = Annotated[str, Field(pattern=r"^pissa_niter_[0-9]+$")]


class LoraConfig(Section):
    """The adapter: its rank, the modules that get one, and how it starts."""

    known_elsewhere = known.LORA
    names_from = "PEFT LoraConfig"
    names_from_elsewhere: ClassVar[Mapping[str, str]] = {"init_from": OWN}

    r: PositiveInt = 8
    """The rank of the update, such as 16."""
    lora_alpha: PositiveInt | PositiveFloat = 8
    """Numerator of the scaling: the update is multiplied by `lora_alpha / r`."""
    use_rslora: bool = False
    """Multiply the update by `lora_alpha / sqrt(r)` instead."""
    rank_pattern: dict[str, PositiveInt] = Field(default_factory=dict)
    """Other ranks for some modules, such as `{q_proj: 16}`. A key is the ending of a module's name
    or a regular expression for it."""
    alpha_pattern: dict[str, PositiveInt | PositiveFloat] = Field(default_factory=dict)
    """Other values of `lora_alpha` for some modules, such as `{q_proj: 32}`, with keys as in
    `rank_pattern`."""
    lora_dropout: Fraction = 0.0
    """Share of the adapter's inputs that is set to zero while training, such as 0.05."""
    target_modules: Annotated[list[str], Field(min_length=1)] | str | None = None
    """The linear modules and embeddings that get an adapter: a list of name endings such as
    `[q_proj, v_proj]`, one regular expression that matches the whole name, `all-linear` for every
    linear module but the head, or null for the modules that PEFT chooses for the family."""
    exclude_modules: Annotated[list[str], Field(min_length=1)] | str | None = None
    """Modules that get no adapter although `target_modules` names them: a list of name endings, or
    one regular expression that matches the whole name."""
    layers_to_transform: Annotated[list[LayerIndex], Field(min_length=1)] | LayerIndex | None = None
    """The layers that get adapters, counted from 0, such as `[0, 1]`; null is all. Needs
    `target_modules` as a list."""
    layers_pattern: Annotated[list[str], Field(min_length=1)] | str | None = None
    """The name of the list of layers in which `layers_to_transform` counts, such as `layers` or
    `h`."""
    init_lora_weights: (
        bool | Literal["gaussian", "orthogonal", "eva", "olora", "pissa"] | FastPissa
    ) = True
    """How the adapter's matrices A and B start. True: A uniform, B zero. `gaussian`: A normal, B
    zero. `eva`: A from the directions in which the module's inputs vary most, B zero, with larger
    ranks for modules where these directions explain more. `pissa`: both from the largest singular
    vectors of the weight; `pissa_niter_4` finds them faster, by 4 iterations from a random
    subspace. `olora`: both from the QR decomposition of the weight. For `pissa` and `olora` the
    start is subtracted again, so that the model starts as the base. False (both uniform) and
    `orthogonal` (both from one orthogonal basis) start from a model that differs from the base."""
    init_from: Annotated[str, Field(min_length=1)] | None = None
    """The folder of an adapter to continue training from, such as `runs/mine/adapter`; its rank,
    alpha and targets must be those given here. Null starts a new adapter. For recipes only: in
    Python use `PeftModel.from_pretrained`."""
    eva_config: EvaConfig | None = None
    """With `init_lora_weights: eva`: how the inputs are measured."""
    use_dora: bool = False
    """Train the length of each row of the adapted weights separately from its direction (DoRA)."""
    lora_bias: bool = False
    """Also train a bias that is added to the output of B."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases of the model are trained: none, all, or those of the modules with an adapter."""
    modules_to_save: Annotated[list[str], Field(min_length=1)] | None = None
    """Modules that are trained as a whole and saved with the adapter, such as `[lm_head]`: a list
    of name endings."""
    trainable_token_indices: (
        TokenIds | Annotated[dict[str, TokenIds], Field(min_length=1)] | None
    ) = None
    """Ids of tokens whose rows of the embedding are trained, such as `[49152, 49153]`; a tied head
    shares them. A mapping such as `{embed_tokens: [5], lm_head: [5]}` names the embedding or the
    head by the ending of its name."""
    ensure_weight_tying: bool = False
    """When the embedding and the head are tied and one of them is trained, train both as one
    matrix."""

    @property
    def begins_with_weights(self) -> bool:
        """Whether adapters start as a part of their modules' weights, as under PiSSA and OLoRA."""
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
