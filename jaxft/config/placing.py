"""The paths in a recipe, made absolute from the folders of their places.

`train: rows.jsonl` in `recipes/a.yaml` becomes `/home/me/recipes/rows.jsonl`. Missing files of rows
and missing templates are reported with the line that names them. A model or a data set that does
not exist as a path may be a name on the Hub.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxft.config import paths, problems
from jaxft.config.data import BUILT_IN_TEMPLATES
from jaxft.config.draft import Draft
from jaxft.config.options import KeyPath
from jaxft.errors import ConfigError, nearest

# Options that only a data set on the Hub has.
_HUB_OPTIONS = ("config", "split", "revision")


class _Slot(NamedTuple):
    """A path in a draft.

    Attributes:
        container: The mapping or list that holds the path.
        key: Its key there: the path is `container[key]`.
        path: The keys that lead to it from the top of the recipe.
    """

    container: Any
    key: str | int
    path: KeyPath

    @property
    def written(self) -> str:
        return str(self.container[self.key])


def place_files(draft: Draft) -> None:
    """Make the paths in a recipe absolute.

    Raises:
        ConfigError: A file of rows, a chat template or an adapter does not exist.
    """
    for slot in _sources(draft.values.get("data")):
        _place_source(draft, slot)
    for slot in _templates(draft.values.get("data")):
        _place_template(draft, slot)
    for slot in _slot(draft.values.get("model"), "path", ("model",)):
        _place(draft, slot, lambda path: Path(path).exists())
    for slot in _slot(draft.values.get("lora"), "init_from", ("lora",)):
        _place_adapter(draft, slot)
    for slot in _slot(draft.values.get("train"), "output_dir", ("train",)):
        slot.container[slot.key] = os.path.expanduser(slot.written)


def _slot(container: Any, key: str | int, above: KeyPath) -> Iterator[_Slot]:
    """Yield the slot of a key if its value is text. Other types are refused later."""
    is_there = isinstance(container, list) or (isinstance(container, dict) and key in container)
    if is_there and isinstance(container[key], str) and container[key]:
        yield _Slot(container, key, (*above, key))


def _sources(data: Any) -> Iterator[_Slot]:
    """Yield the path of each source, which is written as text or as `path: ...`."""
    for name in ("train", "eval"):
        yield from _slot(data, name, ("data",))
        for source, above in _options_of_sources(data, name):
            yield from _slot(source, "path", above)
        written = data.get(name) if isinstance(data, dict) else None
        if isinstance(written, list):
            for index in range(len(written)):
                yield from _slot(written, index, ("data", name))


def _templates(data: Any) -> Iterator[_Slot]:
    """Yield the chat template of the data section and of each of its sources."""
    yield from _slot(data, "chat_template", ("data",))
    for name in ("train", "eval"):
        for source, above in _options_of_sources(data, name):
            yield from _slot(source, "chat_template", above)


def _options_of_sources(data: Any, name: str) -> Iterator[tuple[dict[str, Any], KeyPath]]:
    """Yield the sources that are written as mappings, each with the keys that lead to it."""
    written = data.get(name) if isinstance(data, dict) else None
    if isinstance(written, dict):
        yield written, ("data", name)
    elif isinstance(written, list):
        for index, item in enumerate(written):
            if isinstance(item, dict):
                yield item, ("data", name, index)


def _place(draft: Draft, slot: _Slot, is_there: Callable[[str], bool]) -> list[Path]:
    """Make a path absolute, from the first folder where it exists.

    Returns:
        The paths that were tried if none of them exists, otherwise an empty list.
    """
    folders = draft.place(slot.path).folders
    tries = [os.path.abspath(folder / os.path.expanduser(slot.written)) for folder in folders]
    there = next((path for path in tries if is_there(path)), None)
    if there is None:
        return [Path(path) for path in tries]
    slot.container[slot.key] = there
    return []


def _place_source(draft: Draft, slot: _Slot) -> None:
    """Make the path of a source of rows absolute."""
    written, place = slot.written, draft.place(slot.path)
    tried = _place(draft, slot, paths.leads_somewhere)
    has_hub_options = isinstance(slot.container, dict) and any(
        slot.container.get(option) for option in _HUB_OPTIONS if slot.key == "path"
    )
    if not tried or has_hub_options or paths.may_be_on_hub(written, place.folders):
        return
    start = f"Paths there start at {place.folders[0]}; a data set on the Hub is `owner/name`."
    if paths.is_pattern(str(tried[0])):
        found, remedy = "which matches no file", start
    else:
        found, remedy = "which is not there", paths.missing_remedy(tried[0], start)
    name = problems.dotted(slot.path)
    raise ConfigError(f"{place.label}: `{name}` names {written}, {found}", remedy)


def _place_adapter(draft: Draft, slot: _Slot) -> None:
    """Make the path of the adapter to continue from absolute."""
    written, place = slot.written, draft.place(slot.path)
    tried = _place(draft, slot, lambda path: Path(path).is_dir())
    if tried:
        name = problems.dotted(slot.path)
        start = f"Give the folder of an adapter; paths there start at {place.folders[0]}."
        raise ConfigError(
            f"{place.label}: `{name}` names {written}, which is not there",
            paths.missing_remedy(tried[0], start),
        )


def _place_template(draft: Draft, slot: _Slot) -> None:
    """Make the path of a chat template absolute, unless it is a built-in one."""
    written, place = slot.written, draft.place(slot.path)
    if written in BUILT_IN_TEMPLATES:
        return
    tried = _place(draft, slot, lambda path: Path(path).is_file())
    if tried:
        names = ", ".join(BUILT_IN_TEMPLATES)
        near = nearest(written, BUILT_IN_TEMPLATES)
        remedy = paths.missing_remedy(tried[0], f"Name a Jinja file, or one of: {names}.")
        raise ConfigError(
            f"{place.label}: `{problems.dotted(slot.path)}` names {written}, which is not there",
            f"Did you mean `{near}`?" if near else remedy,
        )
