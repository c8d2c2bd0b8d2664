"""The files beside a model's weights: its tokenizer, its chat templates, its licence.

They are copied unchanged, so that every program that reads the base model also reads the tuned
model. If a library saved the tokenizer again, other versions of transformers might not read it, and
files that the library does not know would be lost. A tokenizer is saved only if there is no file of
it: for a GGUF, and if tokens were added.
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
# The key that names classes in code files of the base's folder, which are not copied.
_FOREIGN_CODE = "auto_map"


def check(base: Source, chat_format: ChatFormat) -> None:
    """Check the files of a base model that `write` has to change.

    Raises:
        WeightsError: A file is damaged.
    """
    if base.gguf is None:
        _tokenizer_config(base.folder / CONFIG_FILE)
        if chat_format.stop_ids:
            read_generation(base.folder)


def write(folder: Path, base: Source, chat_format: ChatFormat, note: Callable[[str], None]) -> None:
    """Write the files beside a base model's weights into the folder of a tuned model.

    Args:
        folder: The folder with the weights of the tuned model.
        base: The base model.
        chat_format: The chat template and stop tokens of the tuned model, which replace those of
            the base.
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
    """Copy the files beside the weights, except those with a name in `but`.

    Raises:
        WeightsError: The folder has no vocabulary of a tokenizer.
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
    """Make a copied tokenizer_config.json agree with its new folder."""
    config = _tokenizer_config(path)
    edited = {key: value for key, value in config.items() if key != _FOREIGN_CODE}
    if chat_format.chat_template is not None and "chat_template" in edited:
        edited["chat_template"] = chat_format.chat_template
    if edited != config:
        _write_json(path, edited)


def _tokenizer_config(path: Path) -> dict[str, Any]:
    """Return the content of a tokenizer_config.json; empty if there is no such file.

    Raises:
        WeightsError: The file is damaged.
    """
    return json_object.read(path, "Copy it anew.") if path.is_file() else {}


def save_tokenizer(fast: Any, folder: Path) -> None:
    """Save a tokenizer so that transformers 4 and 5 read it.

    Source: transformers 5 `tokenization_utils_base.py: save_pretrained` writes new names for the
    class and for the special tokens, which transformers 4 does not know.
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
