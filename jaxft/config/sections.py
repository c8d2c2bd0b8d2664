"""The sections of a recipe, one class each; the docstring under an option is its help text.

The same classes serve YAML, the command line and Python. Names and defaults are those of PEFT's
`LoraConfig`, transformers' `TrainingArguments` and TRL's `SFTConfig`. Construction refuses wrong
types, values out of range and contradictions between options, so that every section is valid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from jaxft.config import known
from jaxft.config.data import DataConfig
from jaxft.config.lora import LoraConfig
from jaxft.config.section import Fraction, PositiveInt, Section, conflict

FilePath = Annotated[Path, Field(strict=False)]
# torch has a plain and a fused implementation of AdamW, which differ only in speed. jaxft has one
# and accepts both names.
_ADAMW_NAMES = ("adamw_torch", "adamw_torch_fused")


class ModelConfig(Section):
    """The base model. `model: NAME` is short for `model: {path: NAME}`."""

    known_elsewhere = known.MODEL
    names_from_elsewhere = dict.fromkeys(
        ("revision", "dtype"), "transformers AutoModelForCausalLM.from_pretrained"
    )

    path: Annotated[str, Field(min_length=1)]
    """The base model: a folder, a `.gguf` file, or a name on the Hugging Face Hub such as
    `HuggingFaceTB/SmolLM2-135M-Instruct`."""
    revision: str | None = None
    """A branch, tag or commit on the Hub, such as `main`; null takes the main branch."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The dtype of the frozen weights. `auto` is bfloat16 on devices that compute fast in it, and
    float32 elsewhere."""
    quantization: Literal["nf4", "int4", "int8", "fp8"] | None = None
    """The format to which the frozen matrices of the layers are quantized, such as `nf4` (QLoRA);
    null keeps them as they are."""
    calibration_tokens: Annotated[int, Field(ge=0)] = 16_384
    """How many tokens of the training rows the model reads so that its 4-bit matrices can be fitted
    to give the outputs of the original ones; 0 rounds each weight to the nearest code instead."""
    new_tokens: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Tokens to add to the tokenizer, such as `["<tool>", "</tool>"]`. Each gets a new row in the
    embedding and in the head. These rows have to be trained, through `lora.trainable_token_indices`
    or `lora.modules_to_save`."""

    @property
    def is_in_four_bits(self) -> bool:
        """Whether the base is quantized to so few bits that it can be calibrated."""
        return self.quantization in ("nf4", "int4")

    @property
    def is_calibrated(self) -> bool:
        """Whether the quantized codes depend on the inputs that matrices get."""
        return self.is_in_four_bits and self.calibration_tokens > 0

    @model_validator(mode="after")
    def _calibration_is_of_four_bits(self) -> ModelConfig:
        default = ModelConfig.model_fields["calibration_tokens"].default
        if not self.is_in_four_bits and self.calibration_tokens not in (0, default):
            raise conflict(
                "calibration_tokens",
                f"calibration_tokens is set, and quantization is {self.quantization or 'null'}",
                "Only nf4 and int4 are calibrated: leave it out, or quantize to one of them.",
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _a_string_is_the_path(cls, data: Any) -> Any:
        return {"path": data} if isinstance(data, str) else data


class TuningConfig(Section):
    """Which weights are trained. `tuning: full` is short for `tuning: {method: full}`."""

    method: Literal["lora", "full", "freeze"] = "lora"
    """`lora` trains adapters, which the lora section describes; `full` trains the whole model;
    `freeze` trains the modules and layers named here and freezes the rest."""
    modules: Annotated[list[str], Field(min_length=1)] | str | None = None
    """With `freeze`: the modules to train, with everything inside them. A list of name endings such
    as `[mlp, lm_head]`, or one regular expression that matches the whole name; null trains
    everything in `layers`."""
    layers: Annotated[list[int], Field(min_length=1)] | None = None
    """With `freeze`: the layers to train, such as `[-2, -1]`. Layers count from 0 at the start, or
    from -1 at the end; null allows all layers."""

    @model_validator(mode="before")
    @classmethod
    def _a_string_is_the_method(cls, data: Any) -> Any:
        return {"method": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _freeze_names_modules_or_layers(self) -> TuningConfig:
        chosen = [name for name in ("modules", "layers") if getattr(self, name) is not None]
        if self.method == "freeze" and not chosen:
            raise conflict(
                "method",
                "tuning.method is freeze, and neither tuning.modules nor tuning.layers is set",
                "Say what to train, such as `layers: [-2, -1]`, or write `tuning: full`.",
            )
        if self.method != "freeze" and chosen:
            raise conflict(
                chosen[0],
                f"tuning.{chosen[0]} is set, and tuning.method is {self.method}",
                "Write `method: freeze` to train a part of the model, or take it out.",
            )
        return self


class TrainConfig(Section):
    """The training run: its length, batches, optimizer, evaluations and checkpoints."""

    known_elsewhere = known.TRAIN
    names_from = "transformers TrainingArguments"
    names_from_elsewhere: ClassVar[Mapping[str, str]] = {
        "warmup_ratio": "transformers 4 TrainingArguments",
        "loraplus_lr_ratio": "PEFT create_loraplus_optimizer",
    }

    output_dir: FilePath
    """The folder of the run, such as `runs/mine`, for checkpoints, metrics and the adapter. A
    relative path starts where the command runs."""
    per_device_train_batch_size: PositiveInt = 8
    """Sequences in a micro-batch on each data-parallel device (each device along `mesh.data` and
    `mesh.fsdp`)."""
    per_device_eval_batch_size: PositiveInt = 8
    """Sequences in an evaluation batch on each data-parallel device."""
    gradient_accumulation_steps: PositiveInt = 1
    """Micro-batches whose gradients are added up in one step."""
    num_train_epochs: Annotated[float, Field(gt=0)] = 3.0
    """Passes over the training data, such as 0.5 or 3; used when `max_steps` is -1."""
    max_steps: Annotated[int, Field(ge=-1)] = -1
    """Steps to train for, such as 200; -1 leaves the length to `num_train_epochs`."""

    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    """The highest learning rate of the schedule, such as 2e-4."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """How the learning rate goes on after the warm-up: `linear` and `cosine` fall to zero, the
    others stay constant."""
    warmup_steps: Annotated[float, Field(ge=0)] = 0.0
    """Steps in which the learning rate rises linearly from zero, such as 20; a value below 1 is a
    share of all steps."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of all steps that is warm-up, such as 0.1: an older way to write a `warmup_steps` below
    1."""
    optim: Annotated[
        Literal["adamw"], BeforeValidator(lambda v: "adamw" if v in _ADAMW_NAMES else v)
    ] = "adamw"
    """The optimizer. `adamw_torch` and `adamw_torch_fused` are accepted as other names for
    `adamw`."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay, such as 0.01; norms and biases are exempt."""
    adam_beta1: Fraction = 0.9
    """Decay rate of Adam's first moment."""
    adam_beta2: Fraction = 0.999
    """Decay rate of Adam's second moment."""
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the square root of Adam's second moment, so that nothing is divided by zero."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """The global norm to which larger gradients are clipped; 0 turns clipping off."""
    loraplus_lr_ratio: Annotated[float, Field(gt=0)] | None = None
    """LoRA+: the learning rate of B as a multiple of that of A, such as 16; null gives both the
    same."""
    gradient_checkpointing: bool = False
    """Compute each block again in the backward pass instead of keeping its activations: less
    memory, about a third more time."""

    logging_steps: PositiveInt = 500
    """Steps between two log lines."""
    eval_strategy: Literal["no", "steps", "epoch"] = "no"
    """When the loss on held-out rows is measured: never, every `eval_steps` steps, or after each
    epoch."""
    eval_steps: PositiveInt | None = None
    """Steps between two evaluations; null takes `logging_steps`."""
    save_strategy: Literal["no", "steps", "epoch"] = "steps"
    """When a checkpoint is written: never, every `save_steps` steps, or after each epoch."""
    save_steps: PositiveInt = 500
    """Steps between two checkpoints."""
    save_total_limit: PositiveInt | None = None
    """How many checkpoints to keep: older ones are deleted. Null keeps all."""
    resume_from_checkpoint: bool | Literal["auto"] = "auto"
    """`auto` continues from the last checkpoint in `output_dir` if there is one; true requires that
    there is one; false starts from the beginning."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """The random seed for initialising adapters, ordering the data and dropout."""
    dataloader_drop_last: bool = False
    """Leave out the last batch of an epoch if it is not full."""

    def warmup(self, num_steps: int) -> int:
        """Return the number of warm-up steps in a run of `num_steps`.

        Source: transformers 5.23.0 `TrainingArguments.get_warmup_steps`.
        """
        if self.warmup_steps >= 1:
            return int(self.warmup_steps)
        return math.ceil(num_steps * (self.warmup_ratio or self.warmup_steps))

    @property
    def evaluation_interval(self) -> int:
        """Return the steps between two evaluations under `eval_strategy: steps`."""
        return self.eval_steps or self.logging_steps

    @model_validator(mode="after")
    def _max_steps_is_a_number_of_steps(self) -> TrainConfig:
        if self.max_steps == 0:
            raise conflict(
                "max_steps",
                "train.max_steps is 0, which trains nothing",
                "Expected at least 1, or -1 to train for `num_train_epochs`.",
            )
        return self

    @model_validator(mode="after")
    def _warmup_is_said_once(self) -> TrainConfig:
        if self.warmup_steps and self.warmup_ratio:
            raise conflict(
                "warmup_ratio",
                f"both train.warmup_steps ({self.warmup_steps:g}) and train.warmup_ratio "
                f"({self.warmup_ratio:g}) are set",
                "Keep one of them; `warmup_steps` below 1 is a ratio too.",
            )
        if self.warmup_steps > 1 and not self.warmup_steps.is_integer():
            raise conflict(
                "warmup_steps",
                f"train.warmup_steps is {self.warmup_steps:g}",
                "Expected a whole number of steps, or a share of all steps below 1.",
            )
        return self

    @model_validator(mode="after")
    def _warmup_has_a_schedule(self) -> TrainConfig:
        if self.lr_scheduler_type == "constant" and (self.warmup_steps or self.warmup_ratio):
            raise conflict(
                "lr_scheduler_type",
                "train.lr_scheduler_type is constant, which has no warm-up, and a warm-up is set",
                "Write `lr_scheduler_type: constant_with_warmup`, or take the warm-up out.",
            )
        return self


class MeshConfig(Section):
    """How devices share the work. The product of the three is the number of devices in use."""

    data: PositiveInt | Literal["auto"] = "auto"
    """How many groups of devices share the batch, each with the whole model; `auto` uses the
    devices that the other two leave."""
    fsdp: PositiveInt = 1
    """Devices over which the weights are stored in parts; each layer is gathered when it is
    used."""
    tensor: PositiveInt = 1
    """Devices over which each matrix product is divided."""


class RunConfig(Section):
    """A whole recipe."""

    model: ModelConfig
    tuning: TuningConfig = TuningConfig()
    lora: LoraConfig = LoraConfig()
    data: DataConfig
    train: TrainConfig
    mesh: MeshConfig = MeshConfig()

    @model_validator(mode="after")
    def _adapters_belong_to_lora(self) -> RunConfig:
        if self.tuning.method != "lora" and self.lora != LoraConfig():
            raise conflict(
                "tuning.method",
                f"tuning.method is {self.tuning.method}, and the lora section asks for adapters",
                "Take the lora section out, or write `tuning: lora`.",
            )
        return self

    @model_validator(mode="after")
    def _quantized_weights_are_frozen_and_whole(self) -> RunConfig:
        if self.model.quantization is None:
            return self
        if self.tuning.method != "lora":
            # Such a run ends with a whole model, for which the original weights are needed.
            raise conflict(
                "model.quantization",
                f"model.quantization is {self.model.quantization}, and tuning is "
                f"{self.tuning.method}",
                "Adapters alone are trained over a quantized base: write `tuning: lora`, or take "
                "it out.",
            )
        if max(self.mesh.fsdp, self.mesh.tensor) > 1:
            raise conflict(
                "model.quantization",
                f"model.quantization is {self.model.quantization}, and the mesh divides weights "
                f"(fsdp={self.mesh.fsdp}, tensor={self.mesh.tensor})",
                "Quantized weights are not divided yet: use `mesh.data` alone.",
            )
        return self

    @model_validator(mode="after")
    def _evaluation_has_rows(self) -> RunConfig:
        if self.train.eval_strategy != "no" and not self.data.has_held_out_rows:
            raise conflict(
                "train.eval_strategy",
                f"train.eval_strategy is {self.train.eval_strategy}, and no rows are held out",
                "Add `eval:` or `hold_out:` to the data section, or write `eval_strategy: no`.",
            )
        return self
