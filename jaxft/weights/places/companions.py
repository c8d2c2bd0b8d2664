"""The files beside a model's weights: its tokenizer, its chat templates, its licence.

They are copied as they are, so that whatever reads the base model's folder reads what is written
beside a tuned model too. A tokenizer that one version of transformers writes anew is not always one
that another version reads, and files that no library writes would be lost. A tokenizer is written
only where there is no file of it: that of a GGUF, and one that tokens were added to.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from jaxft.errors import WeightsError
from jaxft.weights.places import json_object, tokenizer
from jaxft.weights.places.chat_format import ChatFormat, read_generation
from jaxft.weights.places.source import Source
from jaxft.weights.places.vocabulary import Resized

CONFIG_FILE = "tokenizer_config.json"

# Source: the `VOCAB_FILES_NAMES` of transformers' tokenizers; `tokenization_utils_base.py` and
# `processing_utils.py` for the files beside them.
_COPIED = re.compile(
    "|".join(
        (
            r"tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json",
            r"vocab\.(json|txt|bpe)|merges\.txt|bpe\.codes|encoder\.json|tekken\.json",
            r".*\.(tiktoken|spm)|(tokenizer|spiece|sentencepiece(\.bpe)?)\.model(\.v\d+)?",
            r"chat_template\.(jinja|json)|generation_config\.json",
            r"(?i:.*(licen[cs]e|notice|use_policy|copying|copyright).*)",
        )
    )
)
_MORE_TEMPLATES = "additional_chat_templates"
# Names its class by code that lies in the base's folder and is not copied.
_FOREIGN_CODE = "auto_map"


def check(base: Source, chat_format: ChatFormat) -> None:
    """Read those companions of a base model that `write` has to change.

    Raises:
        WeightsError: One is damaged.
    """
    if base.gguf is None:
        _tokenizer_config(base.folder / CONFIG_FILE)
        if chat_format.stop_ids:
            read_generation(base.folder)


def write(folder: Path, base: Source, chat_format: ChatFormat, note: Callable[[str], None]) -> None:
    """Put the companions of a base model beside what was tuned from it.

    Args:
        folder: Where the tuned model's weights are.
        base: The base model.
        chat_format: How the tuned model is asked and where it stops, which is written over the
            base's way.
        note: Called with a line if there is no tokenizer to write.

    Raises:
        OSError: A file cannot be copied.
    """
    is_other = isinstance(base, Resized) and base.own_tokenizer is not None
    try:
        if base.gguf is None:
            _copy(base.folder, folder, but=tokenizer.FILES if is_other else ())
        if base.gguf is not None or is_other:
            save_tokenizer(base.tokenizer(), folder)
    except WeightsError as error:
        note(f"No tokenizer is written: {error.found}")
    _edit(folder / CONFIG_FILE, chat_format)
    chat_format.write(folder)


def _copy(base: Path, folder: Path, *, but: Collection[str]) -> None:
    """Copy every companion from a folder to another, but for some by name.

    Raises:
        WeightsError: There is no vocabulary among them.
    """
    found = [
        path
        for path in base.iterdir()
        if path.is_file() and _COPIED.fullmatch(path.name) and path.name not in but
    ]
    for path in (*found, *base.glob(f"{_MORE_TEMPLATES}/*.jinja")):
        target = folder / path.relative_to(base)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
    tokenizer.check_vocabulary(base)


def _edit(path: Path, chat_format: ChatFormat) -> None:
    """Make a copied tokenizer_config.json agree with the folder that it now lies in."""
    config = _tokenizer_config(path)
    edited = {key: value for key, value in config.items() if key != _FOREIGN_CODE}
    if chat_format.chat_template is not None and "chat_template" in edited:
        edited["chat_template"] = chat_format.chat_template
    if edited != config:
        _write_json(path, edited)


def _tokenizer_config(path: Path) -> dict[str, Any]:
    """Return what a tokenizer_config.json says; nothing where there is none.

    Raises:
        WeightsError: It is damaged.
    """
    return json_object.read(path, "Copy it anew.") if path.is_file() else {}


def save_tokenizer(fast: Any, folder: Path) -> None:
    """Save a tokenizer so that transformers reads it from 4 on, and not from 5 on alone.

    Source: transformers 5 `tokenization_utils_base.py: save_pretrained`, which writes the names
    that it has for a class and for the special tokens; 4 knows neither.
    """
    fast.save_pretrained(folder)
    path = folder / CONFIG_FILE
    config = _tokenizer_config(path)
    for key in ("backend", "is_local", "local_files_only"):
        config.pop(key, None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    _write_json(path, config)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
