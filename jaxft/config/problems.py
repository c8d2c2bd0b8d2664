"""How a mistake in a recipe is worded: its place, what was found, what was expected.

Separate from the reader because it is all wording: pure functions from pydantic's error records
to a `ConfigError`. The invariant: what the options accept is read from the sections themselves,
never repeated here, so that a message cannot disagree with the check behind it.
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
    """Word one of pydantic's errors.

    Args:
        error: The record, from `ValidationError.errors()`.
        path: The keys from the top of the recipe to the wrong value, as far as they exist there.
        place: Where that stands: file and line, or the override.
        value: What stands there.
    """
    word = _WORDINGS.get(error["type"], _bad_value)
    found, remedy = word(error, path, value)
    return ConfigError(f"{place}: {found}", remedy)


def _unknown_key(error: ErrorDetails, path: KeyPath, value: Any) -> tuple[str, str]:
    """Word a key that is not an option: it is one elsewhere, or the nearest option is named."""
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
    """Word a key that is an option elsewhere."""
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
    """Return the option that `key` was probably meant to be, as a dotted path, or ""."""
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
    """Word a key that must be there."""
    wanted = ".".join(str(part) for part in error["loc"])
    field = field_at(tuple(error["loc"]))
    meaning = flat(field.description) if field else ""
    first, _, _ = meaning.partition(". ")
    return f"`{wanted}` is missing", f"Add it. {first.rstrip('.')}." if first else "Add it."


def _not_a_section(error: ErrorDetails, path: KeyPath, value: Any) -> tuple[str, str]:
    """Word a value where a section's keys were expected."""
    options = section_at(path) or RunConfig
    return (
        f"`{dotted(path)}` is {shown(value)}",
        f"Expected keys and values, from: {', '.join(options.model_fields)}.",
    )


def _conflict(error: ErrorDetails, path: KeyPath, value: Any) -> tuple[str, str]:
    """Hand on the wording of a contradiction between options."""
    return error["ctx"]["found"], error["ctx"]["remedy"]


def _bad_value(error: ErrorDetails, path: KeyPath, value: Any) -> tuple[str, str]:
    """Word a value of the wrong type, or out of range."""
    found = f"`{dotted(path)}` is {shown(value)}"
    options = path
    while options and field_at(options) is None:  # an item of a list, or under a name of one's own
        options = options[:-1]
    field = field_at(options)
    if field is None:
        return found, f"{error['msg']}."
    section = section_at(options)
    if section and not isinstance(value, list | dict):  # the short form of one of its options
        field = section.model_fields.get(str(error["loc"][-1]), field)
    if isinstance(value, str) and value in known.VALUES.get(str(options[-1]), ()):
        found = f"`{dotted(path)}: {value}` is known, and not supported yet"
    near = nearest(value, kinds.words(field.annotation)) if isinstance(value, str) else ""
    hint = f" Did you mean `{near}`?" if near else ""
    return found, f"Expected {kinds.expected(field)}.{hint}{_quoting_hint(field, value)}"


def _quoting_hint(field: FieldInfo, value: Any) -> str:
    """Return advice on quotes, where they made a number text or their lack a text a number."""
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
    """Write a path of keys as the command line does."""
    return ".".join(str(part) for part in path)
