"""Reading and writing recipes: from a file and overrides to a `RunConfig`, and back to YAML.

`load_config(Path("recipe.yaml"), ["lora.r=16"])` is what every verb begins with. Separate from
draft, which knows YAML, and from placing, which finds the files that a recipe names. The invariant:
a mistake is reported with the file and line, or the override, that it came from.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML

from jaxft.config import draft as drafts
from jaxft.config import placing, problems
from jaxft.config.draft import Draft
from jaxft.config.options import KeyPath
from jaxft.config.sections import RunConfig
from jaxft.errors import ConfigError


def load_config(recipe: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe, apply `key=value` overrides, and check the whole.

    Paths in the recipe start at its folder. Paths in an override start where the command runs
    or, where nothing is there, at the recipe's folder. `train.output_dir` always starts where
    the command runs.

    Args:
        recipe: The YAML file.
        overrides: Such as `train.learning_rate=3e-4`, later ones winning.

    Raises:
        ConfigError: The recipe cannot be read, or asks for something that jaxft cannot do.
    """
    recipe = Path(recipe)
    draft = drafts.read(recipe)
    for override in overrides:
        drafts.apply(draft, override, recipe)
    drafts.open_sections(draft.values)
    placing.place_files(draft)
    return _checked(draft)


def dump_config(config: RunConfig) -> str:
    """Write a configuration as a recipe that `load_config` reads back as the same."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    # The order of the sections, not of the alphabet. (ruamel declares the flag as None.)
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = io.StringIO()
    yaml.dump(config.model_dump(mode="json"), text)
    return text.getvalue()


def _checked(draft: Draft) -> RunConfig:
    """Build the configuration from a draft.

    Raises:
        ConfigError: The first thing that is wrong, with its place.
    """
    try:
        return RunConfig.model_validate(draft.values)
    except ValidationError as invalid:
        error, path, value = _cause(invalid, draft.values)
        raise problems.problem(error, path, draft.place(path).label, value) from None


def section_error(invalid: ValidationError, name: str, values: dict[str, Any]) -> ConfigError:
    """Word the mistake in the values that one section was built from in Python.

    Args:
        invalid: What pydantic found.
        name: The section, as a recipe calls it.
        values: The values.
    """
    error, path, value = _cause(invalid, {name: values}, name)
    return problems.problem(error, path, name, value)


def _cause(invalid: ValidationError, values: Any, *above: str) -> tuple[ErrorDetails, KeyPath, Any]:
    """Return the error to show, the keys that lead to it, and what stands there."""
    # A misspelt key is often missing too, under its right name: the spelling is the cause.
    errors = invalid.errors(include_url=False)
    error = min(errors, key=lambda each: each["type"] != "extra_forbidden")
    path = _existing(values, (*above, *error["loc"]))
    if error["type"] == "conflict":
        path = (*path, *error["ctx"]["key"].split("."))
    for key in _existing(values, path):
        values = values[key]
    return error, path, values


def _existing(values: Any, location: Sequence[str | int]) -> KeyPath:
    """Return the keys of an error's location that the draft has.

    Pydantic puts the names of a union's members between them.
    """
    path: KeyPath = ()
    for key in location:
        inside = isinstance(values, dict) and key in values
        if inside or (isinstance(values, list) and isinstance(key, int)):
            path, values = (*path, key), values[key]
    return path
