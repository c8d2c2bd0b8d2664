"""The Python face, in the names that people know from transformers and PEFT.

The same parts serve it and the command line: a model here is a handle on a `Source`, a `Network`
and a tree; training is `training.run.loop`. What is known there and not supported here raises.
"""

from jaxft.api.arguments import LoraConfig, TrainingArguments
from jaxft.api.auto import AutoModelForCausalLM
from jaxft.api.callbacks import TrainerCallback, TrainerControl, TrainerState
from jaxft.api.model import CausalLM
from jaxft.api.peft_model import PeftModel, get_peft_model
from jaxft.api.predictions import EvalPrediction
from jaxft.api.trainer import Trainer, TrainOutput

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
