"""Data sets on the Hub, and folders that `Dataset.save_to_disk` wrote, as origins of rows.

`{path: owner/name, config: main, split: train, revision: v1}` is fetched once and then read from
the cache on disk. If that fails, one error gives the reason, such as a missing network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxft.config import SourceConfig
from jaxft.data.sources.table import DatasetTable
from jaxft.errors import DataError

# Files that `save_to_disk` writes beside the rows.
_SAVED = ("state.json", "dataset_dict.json")

_MOST_NAMES = 20  # in a message


def is_saved(folder: Path) -> bool:
    """Return whether `save_to_disk` wrote a folder."""
    return any((folder / name).is_file() for name in _SAVED)


def load_saved(source: SourceConfig) -> DatasetTable:
    """Open a folder that `save_to_disk` wrote.

    Raises:
        DataError: The folder is damaged, or has no such split.
    """
    import datasets

    # A damaged folder can raise many exceptions, depending on the damage.
    try:
        found = datasets.load_from_disk(source.path)
    except Exception as error:
        raise DataError(
            f"{source.path} cannot be read as `save_to_disk` writes folders: {_first_line(error)}.",
            "Save the data set again.",
        ) from error
    return _table(found, source)


def load(source: SourceConfig) -> DatasetTable:
    """Find a data set in the cache, or fetch it from the Hub.

    Raises:
        DataError: It is in neither, or has no such configuration or split.
    """
    import datasets

    # A lost connection raises different exceptions under different HTTP libraries.
    try:
        found = datasets.load_dataset(
            source.path, name=source.config, split=source.split, revision=source.revision
        )
    except Exception as error:
        raise DataError(
            f"{source.path} is not a file or folder here, and the Hub gives no such data set:"
            f" {_reason(error)}.",
            _remedy(error),
        ) from error
    return _table(found, source)


def _table(found: Any, source: SourceConfig) -> DatasetTable:
    """Return one split of a loaded data set: the split that the recipe names, or `train`."""
    import datasets

    if isinstance(found, datasets.Dataset):
        return DatasetTable(found, _name(source, source.split or str(found.split or "")))
    names = list(found)
    chosen = source.split or ("train" if len(names) > 1 else names[0])
    if chosen not in names:
        raise DataError(
            f'{source.path} has no split "{chosen}".',
            f"Set `split:` of the source to one of: {', '.join(names[:_MOST_NAMES])}.",
        )
    return DatasetTable(found[chosen], _name(source, chosen))


def _name(source: SourceConfig, split: str) -> str:
    return " ".join(part for part in (source.path, source.config, split) if part)


def _reason(error: Exception) -> str:
    """Return in one line why there is no such data set."""
    import datasets

    kind = type(error).__name__
    if isinstance(error, ConnectionError) and datasets.config.HF_HUB_OFFLINE:
        return f"it is not in the cache, and HF_HUB_OFFLINE is set ({_first_line(error)})"
    return f"{_first_line(error)} ({kind})"


def _remedy(error: Exception) -> str:
    """Return what to do about an error of `datasets`."""
    text = str(error)
    if "Config name is missing" in text or "BuilderConfig" in text:
        return "Set `config:` of the source to one of the configurations named there."
    if "nknown split" in text:
        return "Set `split:` of the source to one of the splits named there."
    return (
        "Check the name, and the network; a private or gated data set needs `hf auth login`;"
        " a file needs its whole path."
    )


def _first_line(error: Exception) -> str:
    """Return the message of an error, on one line and without a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300].rstrip(".") or type(error).__name__
