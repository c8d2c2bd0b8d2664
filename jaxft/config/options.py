"""The list of all options of a recipe, each with its name, type, default, meaning and source.

`jaxft train --options` and docs/recipe.md show this list. It is read from the sections, so that it
cannot disagree with them. An entry is
`Option("lora.r", "integer (at least 1)", "8", "The rank of the update ...", "PEFT LoraConfig.r")`.
"""

from __future__ import annotations

import functools
import inspect
import json
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pydantic.fields import FieldInfo

from jaxft.config import kinds
from jaxft.config.section import Section
from jaxft.config.sections import RunConfig
from jaxft.errors import ConfigError, nearest

KeyPath = tuple[str | int, ...]
_INDENT = "    "


class Option(NamedTuple):
    """One option.

    Attributes:
        name: The dotted name, as on the command line.
        kind: The words for the values that it accepts.
        default: The default as a recipe writes it, or "required".
        meaning: The help text, without line breaks.
        source: The origin of the name, such as "PEFT LoraConfig.r"; "jaxft" for names of our own.
    """

    name: str
    kind: str
    default: str
    meaning: str
    source: str


class OptionGroup(NamedTuple):
    """A section of a recipe, or a section inside one.

    Attributes:
        names: The dotted names of the places where it stands, such as `data.train` and `data.eval`.
        meaning: The help text, without line breaks.
        options: Its options.
    """

    names: tuple[str, ...]
    meaning: str
    options: tuple[Option, ...]


@functools.cache
def sections() -> dict[str, type[Section]]:
    """Return the sections of a recipe by name."""
    found = {name: section_at((name,)) for name in RunConfig.model_fields}
    return {name: section for name, section in found.items() if section}


def section_at(path: KeyPath) -> type[Section] | None:
    """Return the section at `path`; None if there is none.

    Both `data.train` and `data.train.0` lead to the options of a source.
    """
    named = tuple(key for key in path if not isinstance(key, int))
    if not named:
        return RunConfig
    field = field_at(named)
    return kinds.section_in(field.annotation) if field else None


def field_at(path: KeyPath) -> FieldInfo | None:
    """Return the field of the option at `path`; None if there is none."""
    parent = section_at(path[:-1]) if path else None
    return parent.model_fields.get(str(path[-1])) if parent else None


def shown(value: Any) -> str:
    """Return a value as a recipe writes it, cut to a readable length."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def parts() -> list[OptionGroup]:
    """Return all parts of a recipe. The sections inside a section follow it."""
    names: dict[type[Section], list[str]] = {}
    for name, section in sections().items():
        names[section] = [name]
        for inner, field in section.model_fields.items():
            if found := kinds.section_in(field.annotation):
                names.setdefault(found, []).append(f"{name}.{inner}")
    return [_part(section, tuple(where)) for section, where in names.items()]


def select(words: Sequence[str]) -> list[OptionGroup]:
    """Return the named parts and options; all of them if no name is given.

    Args:
        words: Names of sections (`lora`, `data.train`) and of options, with or without the section
            (`train.seed`, `seed`).

    Raises:
        ConfigError: A word is neither.
    """
    everything = parts()
    if not words:
        return everything
    known = {
        name
        for part in everything
        for name in (*part.names, *(end for option in part.options for end in _ends(option.name)))
    }
    for word in words:
        if word not in known:
            near = nearest(word, known)
            top = ", ".join(sections())
            remedy = f"Did you mean `{near}`?" if near else f"Name an option, or one of: {top}."
            raise ConfigError(f"no option or section is called `{word}`", remedy)
    chosen = (_chosen(part, words) for part in everything)
    return [part for part in chosen if part.options]


def as_text(shown_parts: Iterable[OptionGroup], width: int) -> str:
    """Return options as plain text.

    Args:
        shown_parts: The parts and options to show.
        width: The length of the longest line, in characters.
    """
    blocks: list[str] = []
    for part in shown_parts:
        blocks.append("\n".join(_filled(f"{', '.join(part.names)}: {part.meaning}", width, "")))
        for option in part.options:
            default = option.default if option.default == "required" else f"= {option.default}"
            library = option.source.rpartition(".")[0]
            facts = f"Type: {option.kind}." + (f" Name from {library}." if library else "")
            lines = [
                *_filled(f"{option.name} {default}", width, "  "),
                *_filled(option.meaning, width, "  " + _INDENT),
                *_filled(facts, width, "  " + _INDENT),
            ]
            blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def flat(text: str | None) -> str:
    """Return a help text as one line."""
    return " ".join((text or "").split())


def _part(section: type[Section], names: tuple[str, ...]) -> OptionGroup:
    """Return the description of a section."""
    options = (
        _option(f"{names[0]}.{name}", section, name, field)
        for name, field in section.model_fields.items()
    )
    return OptionGroup(names, flat(inspect.getdoc(section)), tuple(options))


def _option(full_name: str, section: type[Section], name: str, field: FieldInfo) -> Option:
    """Return the description of an option of a section."""
    value = field.get_default(call_default_factory=True)
    text = value if isinstance(value, str) else shown(value)
    default = "required" if field.is_required() else text
    source = section.source_of(name)
    return Option(full_name, kinds.listed(field), default, flat(field.description), source)


def _ends(name: str) -> list[str]:
    """Return the two names of an option: `train.seed` and `seed`."""
    return [name, name.rsplit(".", 1)[-1]]


def _chosen(part: OptionGroup, words: Sequence[str]) -> OptionGroup:
    """Return a part with the named options only; with all options if the part itself is named."""
    if any(name == word or name.startswith(f"{word}.") for name in part.names for word in words):
        return part
    options = (option for option in part.options if set(_ends(option.name)) & set(words))
    return part._replace(options=tuple(options))


def _filled(text: str, width: int, indent: str) -> list[str]:
    """Return text as indented lines of at most `width` characters."""
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
