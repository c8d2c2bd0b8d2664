"""The Python API, with the names of transformers and PEFT.

The API and the command line share their implementation: a model here is a handle on a `Source`, a
`Network` and a tree, and training is `training.run.loop`. An argument of transformers or PEFT that
is not supported here raises an error.
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
