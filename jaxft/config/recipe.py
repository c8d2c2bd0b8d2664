"""Reading and writing recipes: from a file and overrides to a `RunConfig`, and back to YAML.

Every command on a recipe begins with `load_config(Path("recipe.yaml"), ["lora.r=16"])`. `draft`
parses the YAML, and `placing` finds the files that the recipe names. A mistake is reported with its
file and line, or with its override.
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
    """Read a recipe, apply `key=value` overrides, and check the result.

    Relative paths in the recipe start at its folder. Relative paths in an override start where the
    command runs or, if nothing exists there, at the recipe's folder. `train.output_dir` always
    starts where the command runs.

    Args:
        recipe: The YAML file.
        overrides: Overrides such as `train.learning_rate=3e-4`; later ones win.

    Raises:
        ConfigError: The recipe cannot be read, or jaxft cannot follow it.
    """
    recipe = Path(recipe)
    draft = drafts.read(recipe)
    for override in overrides:
        drafts.apply(draft, override, recipe)
    drafts.open_sections(draft.values)
    placing.place_files(draft)
    return _checked(draft)


def dump_config(config: RunConfig) -> str:
    """Return a configuration as a recipe that `load_config` reads back as an equal one."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    # Keys keep the order of the sections and are not sorted. (ruamel declares the flag as None.)
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = io.StringIO()
    yaml.dump(config.model_dump(mode="json"), text)
    return text.getvalue()


def _checked(draft: Draft) -> RunConfig:
    """Return the configuration of a draft.

    Raises:
        ConfigError: The draft has a mistake; the error names the place of the first one.
    """
    try:
        return RunConfig.model_validate(draft.values)
    except ValidationError as invalid:
        error, path, value = _cause(invalid, draft.values)
        raise problems.problem(error, path, draft.place(path).label, value) from None


def section_error(invalid: ValidationError, name: str, values: dict[str, Any]) -> ConfigError:
    """Return the error for a section that was built from wrong values in Python.

    Args:
        invalid: The error of pydantic.
        name: The name of the section in a recipe.
        values: The values.
    """
    error, path, value = _cause(invalid, {name: values}, name)
    return problems.problem(error, path, name, value)


def _cause(invalid: ValidationError, values: Any, *above: str) -> tuple[ErrorDetails, KeyPath, Any]:
    """Return the error to show, the keys that lead to its value, and the value."""
    # A misspelled key is often also missing under its right name. The spelling is the cause.
    errors = invalid.errors(include_url=False)
    error = min(errors, key=lambda each: each["type"] != "extra_forbidden")
    path = _existing(values, (*above, *error["loc"]))
    if error["type"] == "conflict":
        path = (*path, *error["ctx"]["key"].split("."))
    for key in _existing(values, path):
        values = values[key]
    return error, path, values


def _existing(values: Any, location: Sequence[str | int]) -> KeyPath:
    """Return the keys in an error's location that exist in the draft.

    Pydantic puts the names of a union's members between the keys.
    """
    path: KeyPath = ()
    for key in location:
        inside = isinstance(values, dict) and key in values
        if inside or (isinstance(values, list) and isinstance(key, int)):
            path, values = (*path, key), values[key]
    return path
