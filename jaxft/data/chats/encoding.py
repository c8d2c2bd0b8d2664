"""The `Encoding` of a source of rows: everything that decides its tokens, besides the rows.

It is made once for each source, from the recipe and the model, and passed to all functions that
encode. Encodings with equal keys give equal tokens; the cache on disk relies on that.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
from collections.abc import Mapping
from typing import Any, Literal

# A fast tokenizer of transformers. It is Any so that this file need not import transformers.
Tokenizer = Any

TrainOn = Literal["assistant", "last_assistant", "completion", "all"]
Overlong = Literal["truncate", "drop", "split", "error"]

# A chat template that calls this function writes the current date. Source: transformers
# `utils/chat_template_utils.py: _compile_jinja_template` defines the function.
_DATE_FUNCTION = "strftime_now"


@dataclasses.dataclass(frozen=True, eq=False)
class Encoding:
    """The options that decide how rows become tokens.

    Attributes:
        tokenizer: A fast tokenizer with the chat template and the end token to use; None if all
            rows are tokens already.
        stop_ids: Tokens at which the model stops generating, such as `(151643, 151645)`.
        train_on: Which parts are supervised; see `DataConfig.train_on`.
        train_on_reasoning: Whether the thoughts of a reply are supervised.
        template_kwargs: Variables of the chat template, such as `{"enable_thinking": False}`.
        max_length: The largest number of tokens in an example.
        overlong: The treatment of longer examples; see `DataConfig.overlong`.
    """

    tokenizer: Tokenizer | None
    stop_ids: tuple[int, ...]
    train_on: TrainOn
    train_on_reasoning: bool
    template_kwargs: Mapping[str, Any]
    max_length: int
    overlong: Overlong

    @functools.cached_property
    def layouts(self) -> dict[Any, Any]:
        """A memory of layouts and other results for this tokenizer; it starts empty."""
        return {}

    @functools.cached_property
    def added_ids(self) -> frozenset[int]:
        """The ids of added tokens, which are one token wherever they stand in a text.

        Special tokens are among them.
        """
        return frozenset(self.tokenizer.added_tokens_decoder if self.tokenizer else ())

    def key(self) -> list[Any]:
        """Return everything that decides the tokens of a row, as JSON values."""
        return [
            None if self.tokenizer is None else _tokenizer_key(self.tokenizer),
            sorted(self.stop_ids),
            self.train_on,
            self.train_on_reasoning,
            dict(self.template_kwargs),
            self.max_length,
            self.overlong,
        ]


def _tokenizer_key(tokenizer: Tokenizer) -> list[Any]:
    """Return everything about a tokenizer that decides tokens: the date too, if it is written.

    The call with an empty text resets padding and truncation, which an earlier call may have left
    in the state of the backend.
    """
    tokenizer("")
    special_tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    template = tokenizer.chat_template
    is_dated = _DATE_FUNCTION in str(template)
    today = datetime.date.today().isoformat() if is_dated else None
    return [template, today, special_tokens, tokenizer.backend_tokenizer.to_str()]
