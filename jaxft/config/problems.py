"""How a mistake in a recipe is worded: its place, what was found, what was expected.

Separate from the reader because it is all wording: pure functions from pydantic's error records
to a `ConfigError`. The invariant: what the options accept is read from the sections themselves,
never repeated here, so that a message cannot disagree with the check behind it.
"""

from __future__ import annotations

import functools
import json
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from jaxft.config import known
from jaxft.config.section import Section
from jaxft.config.sections import RunConfig
from jaxft.errors import ConfigError, nearest

_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?")
KeyPath = tuple[str | int, ...]
_KINDS: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    types.NoneType: "null",
}
_ITEMS: Mapping[Any, str] = {int: "whole numbers", float: "numbers", str: "text"}


def problem(error: ErrorDetails, path: KeyPath, place: str, value: Any) -> ConfigError:
    """Word one of pydantic's errors.

    Args:
        error: The record, from `ValidationError.errors()`.
        path: The keys from the top of the recipe to what is wrong, as far as they exist there.
        place: Where that stands: file and line, or the override.
        value: What stands there.
    """
    word = _WORDINGS.get(error["type"], _bad_value)
    found, remedy = word(error, path, value)
    return ConfigError(f"{place}: {found}", remedy)


def _unknown_key(error: ErrorDetails, path: KeyPath, value: Any) -> tuple[str, str]:
    """Word a key that is no option: known elsewhere, or the nearest option."""
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
    what = (field.description or "").split("\n")[0] if field else ""
    return f"`{wanted}` is missing", f"Add it. {what}".strip()


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
    near = nearest(value, _words(field.annotation)) if isinstance(value, str) else ""
    hint = f" Did you mean `{near}`?" if near else ""
    return found, f"Expected {expected(field)}.{hint}{_quoting_hint(field, value)}"


def _quoting_hint(field: FieldInfo, value: Any) -> str:
    """Return advice on quotes, where they made a number text or their lack a text a number."""
    kinds = _kinds(field.annotation)
    if isinstance(value, str) and kinds & {int, float} and _NUMBER.fullmatch(value):
        return " Take the quotes away."
    if isinstance(value, int | float) and str in kinds:
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


def shown(value: Any) -> str:
    """Write a value as a recipe would, cut to a readable length."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


@functools.cache
def sections() -> dict[str, type[Section]]:
    """Return the sections of a recipe by name."""
    found = {name: section_at((name,)) for name in RunConfig.model_fields}
    return {name: section for name, section in found.items() if section}


def section_at(path: KeyPath) -> type[Section] | None:
    """Return the section whose keys stand under `path`; None when there is none.

    Both `data.train` and `data.train.0` lead to the options of one source.
    """
    named = tuple(key for key in path if not isinstance(key, int))
    if not named:
        return RunConfig
    field = field_at(named)
    return _section_in(field.annotation) if field else None


def _section_in(annotation: Any) -> type[Section] | None:
    """Return the section among what a type accepts, or in a list that it accepts."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    inner = (_section_in(arg) for arg in get_args(annotation))
    return next((section for section in inner if section), None)


def field_at(path: KeyPath) -> FieldInfo | None:
    """Return the option at `path`; None when there is none."""
    parent = section_at(path[:-1]) if path else None
    return parent.model_fields.get(str(path[-1])) if parent else None


def expected(field: FieldInfo) -> str:
    """Say what an option accepts, from its annotation."""
    return _described(field.annotation, _limits(field.metadata))


def _described(annotation: Any, limits: str = "") -> str:
    """Say what a type accepts within limits."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _described(args[0], _limits(args[1:]))
    if origin in (Union, types.UnionType):
        return _either([_described(arg) for arg in args]) + limits
    if origin is Literal:
        return _either([f"`{arg}`" for arg in args]) + limits
    if origin is list:
        return f"a list{limits} of {_items(args[0])}"
    if origin is dict:
        return f"a mapping{limits} of each name to {_described(args[1])}"
    return _KINDS.get(annotation, str(annotation)) + limits


def _items(annotation: Any) -> str:
    """Say what the items of a list are."""
    is_limited = get_origin(annotation) is Annotated
    kind, *limits = get_args(annotation) if is_limited else (annotation,)
    if _section_in(kind):
        return "keys and values"
    return _ITEMS.get(kind, str(kind)) + _limits(limits)


def _either(choices: Sequence[str]) -> str:
    """Join alternatives as a sentence does."""
    *others, last = choices
    return f"{', '.join(others)} or {last}" if others else last


def _limits(constraints: Iterable[Any]) -> str:
    """Say what a field's constraints ask for, in brackets."""
    limits = ", ".join(limit for limit in map(_limit, constraints) if limit)
    return f" ({limits})" if limits else ""


def _limit(constraint: Any) -> str:
    """Say what a constraint of a field asks for."""
    match constraint:
        case FieldInfo():
            return ", ".join(limit for limit in map(_limit, constraint.metadata) if limit)
        case annotated_types.Ge(ge):
            return f"at least {ge}"
        case annotated_types.Gt(gt):
            return f"more than {gt}"
        case annotated_types.Le(le):
            return f"at most {le}"
        case annotated_types.Lt(lt):
            return f"less than {lt}"
        case annotated_types.MinLen():
            return "not empty"
        case object(pattern=str(pattern)):
            return f"of the form {pattern.strip('^$')}"
    return ""


def _words(annotation: Any) -> list[str]:
    """Return the words among what a type accepts."""
    if get_origin(annotation) is Literal:
        return [arg for arg in get_args(annotation) if isinstance(arg, str)]
    return [word for arg in get_args(annotation) for word in _words(arg)]


def _kinds(annotation: Any) -> set[Any]:
    """Return the plain types among what a type accepts."""
    if get_origin(annotation) is Literal:
        return set()
    args = get_args(annotation)
    if get_origin(annotation) is dict:
        args = args[1:]  # names are no values
    return {annotation} | {kind for arg in args for kind in _kinds(arg)}
