"""A recipe before it is checked: nested dicts from a YAML 1.2 file and from `key=value`.

The same parser reads values in the file and on the command line, so `3e-4` is a number and `no` is
a word in both. Each value keeps the place where it was written, such as `recipe.yaml:7` or
"override `lora.r=3`".
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from jaxft.config import options, paths, problems
from jaxft.config.options import KeyPath
from jaxft.errors import ConfigError


class RecipePlace(NamedTuple):
    """The place of a value in a recipe.

    Attributes:
        label: The place for errors, such as `recipe.yaml:7`.
        folders: The folders from which a relative path written there may start.
    """

    label: str
    folders: tuple[Path, ...]


class Draft(NamedTuple):
    """A recipe before it is checked: nested dicts, and the place of each key."""

    values: dict[str, Any]
    places: dict[KeyPath, RecipePlace]

    def place(self, path: KeyPath) -> RecipePlace:
        """Return the place of a key, or of the nearest key that contains it."""
        while path not in self.places:
            path = path[:-1]
        return self.places[path]


def read(recipe: Path) -> Draft:
    """Read the file of a recipe.

    Raises:
        ConfigError: The file cannot be read, or is not YAML with sections at the top.
    """
    try:
        text = recipe.read_text(encoding="utf-8")
    except FileNotFoundError:
        remedy = paths.missing_remedy(recipe, "Expected the path of a recipe, a YAML file.")
        raise ConfigError(f"no recipe at {recipe}", remedy) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(
            f"cannot read the recipe {recipe}: {reason}", "Expected a YAML file."
        ) from error
    node = _compose(text, str(recipe))
    if node is None:
        raise ConfigError(f"the recipe {recipe} is empty", "Expected at least: model, data, train.")
    if not isinstance(node, MappingNode):
        raise ConfigError(
            f"{recipe}:{_line(node)}: the recipe is not made of keys and values",
            "Expected sections at the top: model, lora, data, train, mesh.",
        )
    folder = Path(os.path.abspath(recipe.parent))
    places: dict[KeyPath, RecipePlace] = {(): RecipePlace(str(recipe), (folder,))}
    values = _value(node, (), lambda at: RecipePlace(f"{recipe}:{_line(at)}", (folder,)), places)
    return Draft(values, places)


def _compose(text: str, source: str) -> Node | None:
    """Parse YAML into nodes, which know their lines.

    Args:
        text: The YAML.
        source: The file or the override, for errors.
    """
    try:
        return YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark and "\n" in text.strip() else ""
        raise ConfigError(
            f"{source}{line}: not YAML: {error.problem or error.context}",
            "Look at the indentation, colons and quotes there; quote text with special characters.",
        ) from error
    except YAMLError as error:
        raise ConfigError(
            f"{source}: not YAML: {str(error).splitlines()[0]}", "Expected plain UTF-8 text."
        ) from error


def _value(
    node: Node,
    path: KeyPath,
    place_of: Callable[[Node], RecipePlace],
    places: dict[KeyPath, RecipePlace],
) -> Any:
    """Return the plain value of a node.

    Args:
        node: The node.
        path: The keys that lead to it.
        place_of: Returns the place of a node.
        places: The places by key, to which those of all keys and items in the node are added.

    Raises:
        ConfigError: A key stands twice, or is not plain text.
    """
    if isinstance(node, ScalarNode):
        return _scalar(node)
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            places[*path, index] = place_of(item)
        return [_value(item, (*path, i), place_of, places) for i, item in enumerate(node.value)]
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        place = place_of(key_node)
        if not isinstance(key_node, ScalarNode):
            raise ConfigError(f"{place.label}: a key is not plain text", "Expected `name: value`.")
        inner = (*path, key_node.value)
        if key_node.value in values:
            raise ConfigError(
                f"{place.label}: `{problems.dotted(inner)}` stands twice",
                f"Keep one of the two; the first is in {places[inner].label}.",
            )
        places[inner] = place
        values[key_node.value] = _value(value_node, inner, place_of, places)
    return values


def _scalar(node: ScalarNode) -> Any:
    """Return the value of a scalar: a number, true, false, null, or otherwise text."""
    kind = str(node.tag).rsplit(":", 1)[-1]
    if kind not in ("int", "float", "bool", "null"):
        return node.value
    return YAML(typ="safe", pure=True).constructor.construct_object(node)


def _line(node: Node) -> int:
    """Return the line of a node, from 1."""
    return node.start_mark.line + 1


def apply(draft: Draft, override: str, recipe: Path) -> None:
    """Set one `key=value` in the draft.

    Raises:
        ConfigError: There is no `=`, the value is not YAML, or the key goes through a value.
    """
    label = f"override `{override}`"
    dotted_key, equals, text = override.partition("=")
    path = tuple(dotted_key.strip().split("."))
    if not equals or not all(path):
        raise ConfigError(f"{label} is not key=value", "Write it like `train.learning_rate=3e-4`.")
    place = RecipePlace(label, (Path.cwd(), Path(os.path.abspath(recipe.parent))))
    places: dict[KeyPath, RecipePlace] = {path: place}
    node = _compose(text, label)
    value = None if node is None else _value(node, path, lambda at: place, places)
    _open_section(draft.values, path, label)[path[-1]] = value
    draft.places.update(places)
    for depth in range(1, len(path)):
        draft.places.setdefault(path[:depth], place)


def _open_section(values: dict[str, Any], path: KeyPath, label: str) -> dict[str, Any]:
    """Return the mapping that holds the last key of `path`; it is made if it is missing."""
    for depth, key in enumerate(path[:-1], start=1):
        if depth == 1:
            open_sections(values)
        inner = values.setdefault(str(key), {})
        if not isinstance(inner, dict):
            name = problems.dotted(path[:depth])
            raise ConfigError(
                f"{label}: `{name}` is {options.shown(inner)} and has no keys of its own",
                f"Write `{name}=...` to replace it.",
            )
        values = inner
    return values


def open_sections(values: dict[str, Any]) -> None:
    """Give sections their long form: a model that is text is its path, a null section is empty."""
    if isinstance(values.get("model"), str):
        values["model"] = {"path": values["model"]}
    for name in options.sections():
        if name in values and values[name] is None:
            values[name] = {}
