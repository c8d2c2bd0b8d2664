"""The tiny models of every family: a case is a config class, and what sets it apart.

A module a group of families, and in it a line a case, so a further family, or a further feature of
one, is a further line. The first case of a family stands for it where one is enough: in training,
generation and export: its activation is smooth, because where a ReLU's input is 0 but for rounding,
rounding decides whether a gradient passes.
"""

from __future__ import annotations

import transformers

from cases import (
    classic,
    gemma,
    gpt,
    layer_normed,
    llama,
    llama_like,
    multimodal,
    newest,
    olmo,
    qwen,
    recent,
)
from cases.shapes import Cases, Common

_GROUPS = (
    llama,
    qwen,
    gemma,
    olmo,
    gpt,
    recent,
    layer_normed,
    llama_like,
    classic,
    multimodal,
    newest,
)

COMMON: Common = {config: shape for group in _GROUPS for config, shape in group.COMMON.items()}
CASES: Cases = {name: case for group in _GROUPS for name, case in group.CASES.items()}
VOCAB_SIZE = 112
TOKENS = {
    "vocab_size": VOCAB_SIZE,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
# The first case of each family, by its model_type.
FIRST: dict[str, str] = {}
for _name, (_config, _) in CASES.items():
    FIRST.setdefault(_config.model_type, _name)


def config_of(name: str) -> transformers.PreTrainedConfig:
    """Return the config of a case."""
    config_class, features = CASES[name]
    fields = COMMON[config_class] | features
    if "text_config" in fields:
        return config_class(**fields | {"text_config": TOKENS | fields["text_config"]})
    return config_class(**TOKENS | fields)
