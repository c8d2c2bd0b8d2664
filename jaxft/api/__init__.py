"""The Python face, in the names that people know from transformers and PEFT.

The same parts serve it and the command line: a model here is a handle on a `Source`, a `Network`
and a tree; training is `training.trainer`. What is known there and not supported here raises.
"""

from jaxft.api.arguments import LoraConfig, TrainingArguments
from jaxft.api.callbacks import TrainerCallback, TrainerControl, TrainerState
from jaxft.api.model import AutoModelForCausalLM, CausalLM
from jaxft.api.peft_model import PeftModel, get_peft_model
from jaxft.api.trainer import EvalPrediction, Trainer, TrainOutput

__all__ = [
    "AutoModelForCausalLM",
    "CausalLM",
    "EvalPrediction",
    "LoraConfig",
    "PeftModel",
    "TrainOutput",
    "Trainer",
    "TrainerCallback",
    "TrainerControl",
    "TrainerState",
    "TrainingArguments",
    "get_peft_model",
]
