"""The words for the values that an option accepts, from the type annotation of its field.

`Annotated[int, Field(ge=1)] | None` is "integer (at least 1) or null" in a list of options, and
"an integer (at least 1) or null" in an error message.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from jaxft.config.section import Section

# The singular and plural words for each plain type.
_NOUNS: Mapping[Any, tuple[str, str]] = {
    bool: ("true or false", "true or false"),
    int: ("integer", "integers"),
    float: ("number", "numbers"),
    str: ("text", "text"),
    Path: ("path", "paths"),
    types.NoneType: ("null", "null"),
    Any: ("any value", "any values"),
}
_FIXED = {"true or false": ["`true`", "`false`"], "null": ["`null`"]}
_ARTICLES = {"integer": "an", "number": "a", "path": "a", "list": "a", "mapping": "a"}


def listed(field: FieldInfo) -> str:
    """Return the words for an option's values in a list of options.

    Examples are "text or null" and "one of: `no`, `steps`, `epoch`".
    """
    phrases = _alternatives(field.annotation, _limits(field.metadata))
    fixed = [phrase for phrase in phrases if phrase.startswith("`")]
    if fixed:  # then true, false and null are listed among the fixed words
        fixed = [word for phrase in phrases for word in _FIXED.get(phrase, [phrase])]
        fixed = [word for word in fixed if word.startswith("`")]
        phrases = [phrase for phrase in phrases if phrase not in (*fixed, *_FIXED)]
        phrases.append(fixed[0] if len(fixed) == 1 else f"one of: {', '.join(fixed)}")
    return _either(phrases, separator="; " if len(phrases) > 2 else ", ")


def expected(field: FieldInfo) -> str:
    """Return the words for an option's values in a message, after "Expected"."""
    phrases = _alternatives(field.annotation, _limits(field.metadata))
    return _either([_with_article(phrase) for phrase in phrases])


def section_in(annotation: Any) -> type[Section] | None:
    """Return the section that a type contains, perhaps inside a list; None if there is none."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    inner = (section_in(arg) for arg in get_args(annotation))
    return next((section for section in inner if section), None)


def words(annotation: Any) -> list[str]:
    """Return the fixed words that a type accepts, such as `linear` and `cosine`."""
    if get_origin(annotation) is Literal:
        return [arg for arg in get_args(annotation) if isinstance(arg, str)]
    return [word for arg in get_args(annotation) for word in words(arg)]


def plain_types(annotation: Any) -> set[Any]:
    """Return the plain types that a type contains, such as `int` and `str`."""
    if get_origin(annotation) is Literal:
        return set()
    args = get_args(annotation)
    if get_origin(annotation) is dict:
        args = args[1:]  # the keys of a mapping are not values
    return {annotation} | {kind for arg in args for kind in plain_types(arg)}


def _alternatives(annotation: Any, limits: str = "", *, is_plural: bool = False) -> list[str]:
    """Return a phrase without an article for each alternative of a type.

    Args:
        annotation: The type.
        limits: Its constraints, such as " (at least 1)".
        is_plural: Whether the phrases stand for the items of a list.
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _alternatives(args[0], _limits(args[1:]), is_plural=is_plural)
    if origin in (Union, types.UnionType):
        return [
            phrase for arg in args for phrase in _alternatives(arg, limits, is_plural=is_plural)
        ]
    if origin is Literal:
        return [f"`{arg}`" for arg in args]
    ending = "s" if is_plural else ""
    if origin is list:
        return [f"list{ending}{limits} of {_either(_alternatives(args[0], is_plural=True))}"]
    if origin is dict:
        values = _either(_alternatives(args[1], is_plural=True))
        return [f"mapping{ending}{limits} of names to {values}"]
    if section_in(annotation):
        return ["keys and values"]
    return [_NOUNS[annotation][is_plural] + limits]


def _with_article(phrase: str) -> str:
    """Return a phrase with "a" or "an" if it needs one."""
    article = _ARTICLES.get(phrase.split(" ")[0])
    return f"{article} {phrase}" if article else phrase


def _either(choices: Sequence[str], separator: str = ", ") -> str:
    """Return alternatives joined as in a sentence: "a, b or c"."""
    *others, last = choices
    between = " or " if separator == ", " else f"{separator}or "
    return f"{separator.join(others)}{between}{last}" if others else last


def _limits(constraints: Iterable[Any]) -> str:
    """Return the constraints of a field in brackets after a space; "" if there are none."""
    limits = ", ".join(limit for limit in map(_limit, constraints) if limit)
    return f" ({limits})" if limits else ""


def _limit(constraint: Any) -> str:
    """Return the words for a constraint of a field; "" if it limits nothing."""
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
