"""Converts the arguments of a `Trainer` to a recipe.

It is separate from the trainer because nothing here trains: arguments become a `RunConfig`, and
arguments that are not supported are refused before anything is read.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pydantic

from jaxft import config as configs
from jaxft import console
from jaxft.api.model import CausalLM
from jaxft.api.peft_model import PeftModel
from jaxft.config import (
    DataConfig,
    LoraConfig,
    ModelConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
    TuningConfig,
)
from jaxft.errors import ConfigError, nearest

# Arguments of transformers' Trainer that are not supported, and what to use instead.
_KNOWN = {
    "data_collator": "Rows are batched by jaxft: give rows of text, or of input_ids and labels.",
    "optimizers": "The optimizer and its schedule are in the TrainingArguments.",
    "optimizer_cls_and_kwargs": "The optimizer is in the TrainingArguments: optim, adam_beta1, ...",
    "model_init": "Pass the model itself; a run starts from its seed every time.",
    "peft_config": "Put the adapter on with get_peft_model(model, LoraConfig(...)).",
    "formatting_func": "Give rows of a known shape, such as prompt and completion.",
}


def refuse(others: Mapping[str, Any], taken: Sequence[str]) -> None:
    """Refuse the arguments that a Trainer does not take.

    Args:
        others: The values of the other arguments, by name.
        taken: The names of the arguments that a Trainer takes.

    Raises:
        ConfigError: If a name is unknown, or transformers has it and the value is not `None`.
    """
    for name, value in others.items():
        if name in _KNOWN and value not in (None, (None, None)):
            raise ConfigError(
                f"The Trainer's argument {name} is known, and not supported.", _KNOWN[name]
            )
        if name not in _KNOWN:
            names = [each for each in taken if each not in ("self", "others", "tokenizer")]
            near = nearest(name, names)
            raise ConfigError(
                f"The Trainer has no argument {name}.",
                f"Did you mean {near}?" if near else f"It takes {', '.join(names)}.",
            )


def tuning_section(
    tuning: str | Mapping[str, Any] | TuningConfig | None, model: CausalLM
) -> TuningConfig:
    """Return the `tuning` section of the recipe, which says what is trained.

    Raises:
        ConfigError: If a name is unknown or a value out of range.
    """
    if isinstance(tuning, TuningConfig):
        return tuning
    if tuning is None:
        tuning = "lora" if isinstance(model, PeftModel) else "full"
        if tuning == "full":
            console.note("The model has no adapter: all of it is trained.")
    values = {"method": tuning} if isinstance(tuning, str) else dict(tuning)
    try:
        return TuningConfig(**values)
    except pydantic.ValidationError as invalid:
        raise configs.section_error(invalid, "tuning", values) from None


def recipe(
    model: CausalLM,
    args: TrainConfig,
    tuning: TuningConfig,
    mesh: configs.MeshConfig,
    max_length: int,
    packing: bool,
) -> RunConfig:
    """Return the recipe of the run.

    Raises:
        ConfigError: If its sections contradict each other.
    """
    lora = model.asked if isinstance(model, PeftModel) and tuning.method == "lora" else LoraConfig()
    try:
        return RunConfig(
            model=ModelConfig(
                path=model.source.name,
                revision=model.source.revision,
                quantization=model.quantization,  # type: ignore[arg-type]  # checked there
                calibration_tokens=model.calibration_tokens,
            ),
            tuning=tuning,
            lora=lora,
            # Names, not paths, because the rows are in memory.
            data=DataConfig(
                train=[SourceConfig(path="train_dataset")],
                eval=[SourceConfig(path="eval_dataset")],
                max_length=max_length,
                packing=packing,
            ),
            train=args,
            mesh=mesh,
        )
    except pydantic.ValidationError as invalid:
        raise configs.section_error(invalid, "Trainer", {}) from None


def prepare(model: CausalLM, tuning: TuningConfig) -> None:
    """Set which parts of the model are trained.

    Raises:
        ConfigError: If these parts of the model cannot be trained.
    """
    if tuning.method != "lora":
        model.tune(tuning)
    elif not isinstance(model, PeftModel):
        raise ConfigError(
            "The model has no adapter, and tuning is lora.",
            "Put one on with get_peft_model(model, LoraConfig(...)), or train the model itself "
            "with tuning='full'.",
        )
    elif not model.is_trainable:
        raise ConfigError(
            "The adapter was read with is_trainable=False.",
            "Read it with PeftModel.from_pretrained(model, folder, is_trainable=True).",
        )
