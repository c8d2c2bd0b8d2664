"""The wording of mistakes in a recipe: the place, what was found, what was expected.

All functions are pure: they turn an error record of pydantic into a `ConfigError`. The values that
an option accepts are read from the sections, so that a message cannot disagree with the check.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from jaxft.config import kinds, known
from jaxft.config.options import KeyPath, field_at, flat, section_at, sections, shown
from jaxft.config.section import Section
from jaxft.config.sections import RunConfig
from jaxft.errors import ConfigError, nearest

_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?")


def problem(error: ErrorDetails, path: KeyPath, place: str, value: Any) -> ConfigError:
    """Return the error for one record of pydantic.

    Args:
        error: The record, from `ValidationError.errors()`.
        path: The keys from the top of the recipe to the wrong value, as far as they exist.
        place: The place of the value: file and line, or the override.
        value: The value.
    """
    word = _WORDINGS.get(error["type"], _bad_value)
    found, remedy = word(error, path, value)
    return ConfigError(f"{place}: {found}", remedy)


def _unknown_key(error: ErrorDetails, path: KeyPath, value: Any) -> tuple[str, str]:
    """Word a key that is not an option: it is known from another library, or is misspelled."""
    *parents, key = path
    section = section_at(tuple(parents)) or RunConfig
    table = {**known.MODEL, **known.DATA, **known.TRAIN, **known.LORA, **section.known_elsewhere}
    if str(key) in table:
        return _known_key(dotted(path), value, table[str(key)])
    hint = _suggestion(str(key), section, dotted(tuple(parents)))
    if hint:
        return f"unknown key `{dotted(path)}`", f"Did you mean `{hint}`?"
    owner = f"`{dotted(tuple(parents))}`" if parents else "A recipe"
    options = ", ".join(section.model_fields)
    return f"unknown key `{dotted(path)}`", f"{owner} takes: {options}."


def _known_key(name: str, value: Any, entry: known.Known) -> tuple[str, str]:
    """Word a key that is an option of another library."""
    if entry.instead:
        how = f", {entry.how}" if entry.how else ""
        return f"`{name}: {shown(value)}` is not set here", f"Use `{entry.instead}` instead{how}."
    found = f"`{name}: {shown(value)}` is known, and not supported yet"
    accepted = [shown(same) for same in entry.harmless if same is not None]
    return (
        found,
        f"Take the key out, or write `{name.split('.')[-1]}: {(accepted or ['null'])[0]}`.",
    )


def _suggestion(key: str, section: type[Section], prefix: str) -> str:
    """Return the option that `key` probably means, as a dotted path, or ""."""
    if key in known.RENAMED:
        return known.RENAMED[key]
    homes = {
        option: f"{name}.{option}"
        for name, part in sections().items()
        for option in part.model_fields
    }
    near = nearest(key, section.model_fields)
    if near:
        return f"{prefix}.{near}" if prefix else near
    return homes.get(nearest(key, homes), "")


def _missing(error: ErrorDetails, path: KeyPath, value: Any) -> tuple[str, str]:
    """Word a required key that is missing."""
    wanted = ".".join(str(part) for part in error["loc"])
    field = field_at(tuple(error["loc"]))
    meaning = flat(field.description) if field else ""
    first, _, _ = meaning.partition(". ")
    return f"`{wanted}` is missing", f"Add it. {first.rstrip('.')}." if first else "Add it."


def _not_a_section(error: ErrorDetails, path: KeyPath, value: Any) -> tuple[str, str]:
    """Word a value in the place of a section."""
    options = section_at(path) or RunConfig
    return (
        f"`{dotted(path)}` is {shown(value)}",
        f"Expected keys and values, from: {', '.join(options.model_fields)}.",
    )


def _conflict(error: ErrorDetails, path: KeyPath, value: Any) -> tuple[str, str]:
    """Return the words that `section.conflict` was given."""
    return error["ctx"]["found"], error["ctx"]["remedy"]


def _bad_value(error: ErrorDetails, path: KeyPath, value: Any) -> tuple[str, str]:
    """Word a value of the wrong type, or out of range."""
    found = f"`{dotted(path)}` is {shown(value)}"
    options = path
    while options and field_at(options) is None:  # an item of a list, or a value of a mapping
        options = options[:-1]
    field = field_at(options)
    if field is None:
        return found, f"{error['msg']}."
    section = section_at(options)
    if section and not isinstance(value, list | dict):  # a section's short form, such as its path
        field = section.model_fields.get(str(error["loc"][-1]), field)
    if isinstance(value, str) and value in known.VALUES.get(str(options[-1]), ()):
        found = f"`{dotted(path)}: {value}` is known, and not supported yet"
    near = nearest(value, kinds.words(field.annotation)) if isinstance(value, str) else ""
    hint = f" Did you mean `{near}`?" if near else ""
    return found, f"Expected {kinds.expected(field)}.{hint}{_quoting_hint(field, value)}"


def _quoting_hint(field: FieldInfo, value: Any) -> str:
    """Return advice on quotes if they turned a number into text, or their lack text into one."""
    accepted = kinds.plain_types(field.annotation)
    if isinstance(value, str) and accepted & {int, float} and _NUMBER.fullmatch(value):
        return " Take the quotes away."
    if isinstance(value, int | float) and str in accepted:
        return " Put it in quotes."
    return ""


_WORDINGS: Mapping[str, Callable[[ErrorDetails, KeyPath, Any], tuple[str, str]]] = {
    "extra_forbidden": _unknown_key,
    "missing": _missing,
    "model_type": _not_a_section,
    "model_attributes_type": _not_a_section,
    "conflict": _conflict,
}


def dotted(path: KeyPath) -> str:
    """Return a path of keys as on the command line, such as `lora.r`."""
    return ".".join(str(part) for part in path)
