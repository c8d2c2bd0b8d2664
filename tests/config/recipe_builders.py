"""A recipe with a line for each common section, and what is wrong with a changed one."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxft import config
from jaxft.errors import ConfigError

RECIPE = """\
# a comment
model: some/model
lora:
  r: 4
  target_modules: [q_proj, v_proj]
data:
  train: data/rows.jsonl
  eval: data/held_out.jsonl
train:
  output_dir: runs/test
  learning_rate: 2e-3
  eval_strategy: no
"""


def mistake(recipe: Path, *overrides: str, text: str = "") -> ConfigError:
    """Return the error of loading a recipe, after `text` is appended to it."""
    recipe.write_bytes(recipe.read_bytes() + text.encode())
    with pytest.raises(ConfigError) as raised:
        config.load_config(recipe, overrides)
    return raised.value
