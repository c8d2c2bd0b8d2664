"""The sections of a recipe, one class each, and what each option means.

One set of classes serves YAML, the command line and Python. Names and defaults are those of
PEFT's `LoraConfig`, transformers' `TrainingArguments` and TRL's `SFTConfig`; the docstring under
an option is its help text. The invariant: a section that exists is valid. Wrong types, values
out of range and contradictions between options never get past construction.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from jaxft.config import known
from jaxft.config.data import DataConfig
from jaxft.config.lora import LoraConfig
from jaxft.config.section import Fraction, PositiveInt, Section, conflict

FilePath = Annotated[Path, Field(strict=False)]
# One update under three names: torch's plain and fused implementations of AdamW are a matter
# of speed there, and have no counterpart here.
_ADAMW_NAMES = ("adamw_torch", "adamw_torch_fused")


class ModelConfig(Section):
    """The base model. A bare string in a recipe is its `path`."""

    known_elsewhere = known.MODEL

    path: Annotated[str, Field(min_length=1)]
    """A folder, a `.gguf` file, or a Hub id such as `HuggingFaceTB/SmolLM2-135M-Instruct`."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; null is its main branch."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the frozen base. `auto`: bfloat16 where the device is fast in it, else float32."""
    quantization: Literal["nf4", "int4", "int8", "fp8"] | None = None
    """To what the frozen matrices of the layers are quantised (QLoRA); null is not at all."""
    calibration_tokens: Annotated[int, Field(ge=0)] = 16_384
    """On how many tokens of the training rows 4-bit matrices are made to give what the original
    ones do; 0 rounds each weight to the nearest code."""
    new_tokens: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Tokens to add to the tokenizer, such as `["<tool>", "</tool>"]`, each with a row of its own
    in embedding and head. Their rows have to be trained, by `lora.trainable_token_indices` or
    `lora.modules_to_save`."""

    @property
    def is_in_four_bits(self) -> bool:
        """Whether the base is quantised to so few bits that it can be calibrated."""
        return self.quantization in ("nf4", "int4")

    @property
    def is_calibrated(self) -> bool:
        """Whether codes depend on what matrices read."""
        return self.is_in_four_bits and self.calibration_tokens > 0

    @model_validator(mode="after")
    def _calibration_is_of_four_bits(self) -> ModelConfig:
        default = ModelConfig.model_fields["calibration_tokens"].default
        if not self.is_in_four_bits and self.calibration_tokens not in (0, default):
            raise conflict(
                "calibration_tokens",
                f"calibration_tokens is set, and quantization is {self.quantization or 'null'}",
                "Only nf4 and int4 are calibrated: leave it out, or quantise to one of them.",
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _a_string_is_the_path(cls, data: Any) -> Any:
        return {"path": data} if isinstance(data, str) else data


class TuningConfig(Section):
    """What is trained. A bare string in a recipe is its `method`."""

    method: Literal["lora", "full", "freeze"] = "lora"
    """`lora`: adapters, by the lora section. `full`: the whole model. `freeze`: the modules and
    layers named here, and nothing else."""
    modules: Annotated[list[str], Field(min_length=1)] | str | None = None
    """Of `freeze`: modules to train, with all in them: a list of name endings such as
    `[mlp, lm_head]`, or one regular expression for the whole name; null is all in `layers`."""
    layers: Annotated[list[int], Field(min_length=1)] | None = None
    """Of `freeze`: only these layers, counted from 0, or from the end: -1 is the last."""

    @model_validator(mode="before")
    @classmethod
    def _a_string_is_the_method(cls, data: Any) -> Any:
        return {"method": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _freeze_says_what_is_trained(self) -> TuningConfig:
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
    """The run, in the names of `TrainingArguments`."""

    known_elsewhere = known.TRAIN

    output_dir: FilePath
    """Folder of the run: checkpoints, metrics, the adapter. Relative to where the command runs."""
    per_device_train_batch_size: PositiveInt = 8
    """Sequences in a micro-batch on each data shard."""
    per_device_eval_batch_size: PositiveInt = 8
    """Sequences in an evaluation batch on each data shard."""
    gradient_accumulation_steps: PositiveInt = 1
    """Micro-batches in one step."""
    num_train_epochs: Annotated[float, Field(gt=0)] = 3.0
    """Passes over the data, where `max_steps` does not say how long to train."""
    max_steps: Annotated[int, Field(ge=-1)] = -1
    """Steps to train for; -1 leaves it to `num_train_epochs`."""

    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    """Highest learning rate of the schedule."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """How the learning rate falls after the warm-up."""
    warmup_steps: Annotated[float, Field(ge=0)] = 0.0
    """Steps of linear warm-up; below 1, a share of all steps."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of all steps that is warm-up: the older spelling of a `warmup_steps` below 1."""
    optim: Annotated[
        Literal["adamw"], BeforeValidator(lambda v: "adamw" if v in _ADAMW_NAMES else v)
    ] = "adamw"
    """The optimizer. `adamw_torch` and `adamw_torch_fused` name the same update."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay; norms and biases are exempt."""
    adam_beta1: Fraction = 0.9
    """Decay of Adam's first moment."""
    adam_beta2: Fraction = 0.999
    """Decay of Adam's second moment."""
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of Adam's second moment."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Global norm to which gradients are clipped; 0 does not clip."""
    loraplus_lr_ratio: Annotated[float, Field(gt=0)] | None = None
    """LoRA+: how many times the learning rate of A that of B is; null is once."""
    gradient_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""

    logging_steps: PositiveInt = 500
    """Steps between two log lines."""
    eval_strategy: Literal["no", "steps", "epoch"] = "no"
    """When the held-out loss is measured during training."""
    eval_steps: PositiveInt | None = None
    """Steps between two evaluations; null means `logging_steps`."""
    save_strategy: Literal["no", "steps", "epoch"] = "steps"
    """When a checkpoint is written."""
    save_steps: PositiveInt = 500
    """Steps between two checkpoints."""
    save_total_limit: PositiveInt | None = None
    """Checkpoints to keep; null keeps all."""
    resume_from_checkpoint: bool | Literal["auto"] = "auto"
    """`auto` goes on from the run's last checkpoint where there is one, true insists that there is
    one, false starts anew."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Of everything random: adapter initialisation, order of the data, dropout."""
    dataloader_drop_last: bool = False
    """Leave out an epoch's last batch when it is not full."""

    def warmup(self, num_steps: int) -> int:
        """Return the warm-up in steps, for a run of `num_steps`.

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
    """How the devices are laid out. Their product is the number of devices in use."""

    data: PositiveInt | Literal["auto"] = "auto"
    """Copies of the model that share the batch; `auto` takes the devices that the others leave."""
    fsdp: PositiveInt = 1
    """Devices over which weights are stored in parts and gathered layer by layer."""
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
    def _what_is_quantised_is_frozen_and_whole(self) -> RunConfig:
        if self.model.quantization is None:
            return self
        if self.tuning.method != "lora":
            # Such a run ends with a whole model, for which the original weights are needed.
            raise conflict(
                "model.quantization",
                f"model.quantization is {self.model.quantization}, and tuning is "
                f"{self.tuning.method}",
                "Adapters alone are trained over a quantised base: write `tuning: lora`, or take "
                "it out.",
            )
        if max(self.mesh.fsdp, self.mesh.tensor) > 1:
            raise conflict(
                "model.quantization",
                f"model.quantization is {self.model.quantization}, and the mesh divides weights "
                f"(fsdp={self.mesh.fsdp}, tensor={self.mesh.tensor})",
                "Quantised weights are not divided yet: use `mesh.data` alone.",
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
