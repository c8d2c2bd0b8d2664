"""Tools and tool calls of a chat, converted to the form that chat templates expect.

`{"name": "add", "arguments": '{"a": 2}'}` becomes `{"type": "function", "function": {"name": "add",
"arguments": {"a": 2}}}`. Arguments that are JSON text are parsed, because templates write arguments
as JSON themselves: text would arrive with quotes around it.

Source: the templates of Qwen 2.5, Llama 3.1 and Mistral call `tojson` on `function.arguments`, and
transformers' "Tool use" page says that arguments are an object, not text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxft.data.rows import fields, leftovers
from jaxft.data.rows.row import RowPlace
from jaxft.data.rows.wording import kind, names
from jaxft.errors import DataError

_TOOL = '{"type": "function", "function": {"name": "add", "parameters": {...}}}'
CALL = '{"name": "add", "arguments": {"a": 2}}'

# Names of the arguments of a call. The second is Llama's.
_ARGUMENTS = ("arguments", "parameters")
_KEPT = ("name", "arguments")


def schemas(value: object, name: str, place: RowPlace) -> tuple[Mapping[str, Any], ...]:
    """Return the tools of a row.

    Args:
        value: A list of JSON schemas, its JSON text, or a list of such texts; each tool with or
            without `{"type": "function", "function": ...}` around it.
        name: The name of the field in errors.
        place: Where the row stands.

    Raises:
        DataError: The value is something else.
    """
    listed = fields.from_text(value, name, place)
    if not listed:
        return ()
    return tuple(
        {**tool, "type": "function", "function": _named(inner, where, _TOOL, place)}
        for where, tool, inner in _functions(listed, name, _TOOL, place)
    )


def calls(
    value: object, name: str, prefix: str, place: RowPlace
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Return the calls in a message, and the names of their unused fields.

    Args:
        value: A list of calls, or its JSON text; each call with or without `{"type": "function",
            "function": ...}` around it, its arguments as an object or as JSON text.
        name: The name of the field in errors.
        prefix: Put before the names of unused fields, such as `messages[].tool_calls[].`.
        place: Where the row stands.

    Raises:
        DataError: The value is something else.
    """
    listed = fields.from_text(value, name, place)
    listed = [listed] if isinstance(listed, dict) and listed else listed
    found: list[dict[str, Any]] = []
    unused: list[str] = []
    for where, call, inner in _functions(listed or [], name, CALL, place):
        inner = _named(inner, where, CALL, place)
        given = [field for field in _ARGUMENTS if field in inner]
        if len(given) > 1:
            raise DataError(f'{place}: "{where}" has {names(given)}.', f"Expected {CALL}.")
        arguments = _arguments(inner, given[0], where, place) if given else {}
        # In the row's own order, since some templates write a whole call as JSON.
        keys = ["arguments" if key in _ARGUMENTS else key for key in inner]
        ordered = {key: inner[key] if key == "name" else arguments for key in keys if key in _KEPT}
        function = {**ordered, "arguments": arguments}
        found.append({"type": "function", **_only(call, ("type", "id")), "function": function})
        known = {"type", "id", "function", *_KEPT, *_ARGUMENTS}
        rest = {key: each for key, each in {**call, **inner}.items() if key not in known}
        unused += leftovers.unused(rest, place, prefix)
    return found, tuple(unused)


def _functions(
    listed: Any, name: str, expected: str, place: RowPlace
) -> list[tuple[str, dict[str, Any], Any]]:
    """Return, for each tool or call, its name in errors, its outer fields, and its function."""
    if not isinstance(listed, list):
        raise DataError(f'{place}: "{name}" is {kind(listed)}.', f"Expected a list of {expected}.")
    found = []
    for index, each in enumerate(listed):
        where = f"{name}[{index}]"
        each = fields.from_text(each, where, place) if isinstance(each, str) else each
        if not isinstance(each, dict):
            raise DataError(f'{place}: "{where}" is {kind(each)}.', f"Expected {expected}.")
        # A bare function may have a type and an identifier beside its name.
        bare = {key: item for key, item in each.items() if key not in ("id", "type")}
        outer = each if "function" in each else _only(each, ("id",))
        found.append((where, outer, each.get("function", bare)))
    return found


def _only(value: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key in keys}


def _named(function: Any, where: str, expected: str, place: RowPlace) -> dict[str, Any]:
    """Return the function of a tool or call, after a check that it is an object with a name."""
    if not isinstance(function, dict):
        raise DataError(
            f'{place}: "{where}.function" is {kind(function)}.', f"Expected {expected}."
        )
    if not isinstance(function.get("name"), str):
        raise DataError(
            f'{place}: "{where}" has no name of a function; its fields: {names(function)}.',
            f"Expected {expected}.",
        )
    return function


def _arguments(function: dict[str, Any], field: str, where: str, place: RowPlace) -> dict[str, Any]:
    """Return the arguments of a call as an object."""
    found = fields.from_text(function[field], f"{where}.{field}", place)
    if found is None:
        return {}
    if isinstance(found, dict):
        return found
    raise DataError(
        f'{place}: "{where}.{field}" is {kind(found)}.',
        "Expected an object of arguments by name, or its JSON text.",
    )
