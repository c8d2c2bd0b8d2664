"""The chat template and the stop tokens of a tuned model, in files beside its weights.

A model that was trained with the built-in `alpaca` template has to be asked with it, and one that
learned to end replies with `<|im_end|>` has to stop there, whatever the files of its base model
say. `chat_template.jinja` and `generation_config.json` hold both, in the folder of an adapter or of
a whole model, under the names that transformers reads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxft.errors import WeightsError
from jaxft.weights.places import json_object

# Source: transformers `tokenization_utils_base.py: CHAT_TEMPLATE_FILE` and
# `utils/__init__.py: GENERATION_CONFIG_NAME`.
TEMPLATE_FILE = "chat_template.jinja"
GENERATION_FILE = "generation_config.json"


class ChatFormat(NamedTuple):
    """The chat template and the stop tokens of a model.

    Attributes:
        chat_template: The template that it was trained with; None is that of the base model.
        stop_ids: The tokens at which it stops, such as `(2, 151645)`; empty for those of the base
            model.
    """

    chat_template: str | None
    stop_ids: tuple[int, ...]

    def write(self, folder: Path) -> None:
        """Write the files into the folder of an adapter or model.

        An existing generation_config.json keeps its other keys, and is not changed if it has these
        stop tokens already.

        Raises:
            WeightsError: The existing file is damaged.
        """
        if self.chat_template is not None:
            (folder / TEMPLATE_FILE).write_text(self.chat_template, encoding="utf-8")
        content = read_generation(folder) if self.stop_ids else {}
        if self.stop_ids and set(self.stop_ids) != set(declared_stops(content)):
            content["eos_token_id"] = list(self.stop_ids)
            text = json.dumps(content, indent=2, sort_keys=True) + "\n"
            (folder / GENERATION_FILE).write_text(text, encoding="utf-8")

    def apply(self, tokenizer: Any) -> Any:
        """Set the template of a tokenizer, and return the tokenizer."""
        if self.chat_template is not None:
            tokenizer.chat_template = self.chat_template
        return tokenizer


BASE_FORMAT = ChatFormat(None, ())


def read(folder: Path) -> ChatFormat:
    """Return the chat format in a folder. A part without a file is that of the base model.

    Raises:
        WeightsError: A file is damaged.
    """
    template = folder / TEMPLATE_FILE
    try:
        text = template.read_text(encoding="utf-8") if template.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{template}: cannot be read ({error}).", "Copy it anew.") from error
    return ChatFormat(text, declared_stops(read_generation(folder)))


def read_generation(folder: Path) -> dict[str, Any]:
    """Return the content of generation_config.json; empty if there is no such file.

    Raises:
        WeightsError: The file is damaged.
    """
    path = folder / GENERATION_FILE
    return json_object.read(path, "Copy it anew, or remove it.") if path.is_file() else {}


def declared_stops(config: dict[str, Any]) -> tuple[int, ...]:
    """Return the stop tokens in a configuration, where they are one number or a list."""
    ends = config.get("eos_token_id")
    found: Sequence[int | None] = ends if isinstance(ends, list) else [ends]
    return tuple(end for end in found if end is not None)
