"""How rows become tokens: everything besides the rows that their tokens depend on.

An `Encoding` is made once for each source of rows, from the recipe and the model, and is passed to
whatever encodes. Equal keys give equal tokens, which is what the cache on disk relies on.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
from collections.abc import Mapping
from typing import Any, Literal

# A transformers fast tokenizer; named, so that importing this file does not import transformers.
Tokenizer = Any

TrainOn = Literal["assistant", "last_assistant", "completion", "all"]
Overlong = Literal["truncate", "drop", "split", "error"]

# By these, a chat template writes the day on which it is used. Source: transformers
# `utils/chat_template_utils.py: _compile_jinja_template` defines the function.
_DATE_FUNCTION = "strftime_now"


@dataclasses.dataclass(frozen=True, eq=False)
class Encoding:
    """How rows become tokens.

    Attributes:
        tokenizer: A fast tokenizer with the chat template and the end token that are used; None
            where all rows are tokens already.
        stop_ids: Tokens at which the model stops generating, such as `(151643, 151645)`.
        train_on: Which parts are supervised; see `DataConfig.train_on`.
        train_on_reasoning: Whether the thoughts of a reply are supervised.
        template_kwargs: Variables of the chat template, such as `{"enable_thinking": False}`.
        max_length: The most tokens of an example.
        overlong: What becomes of a longer one.
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
        """What `turns` found out about dialogues of one outline; it starts empty."""
        return {}

    @functools.cached_property
    def added_ids(self) -> frozenset[int]:
        """The tokens that are one token wherever they stand in a text, special ones among them."""
        return frozenset(self.tokenizer.added_tokens_decoder if self.tokenizer else ())

    def key(self) -> list[Any]:
        """Return everything that the tokens of a row depend on, as JSON values."""
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
    """Return everything about a tokenizer that tokens depend on, the date included if it writes it.

    A call without padding and truncation clears what an earlier call left in the backend's state,
    which would otherwise be a difference.
    """
    tokenizer("")
    special_tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    template = tokenizer.chat_template
    is_dated = _DATE_FUNCTION in str(template)
    today = datetime.date.today().isoformat() if is_dated else None
    return [template, today, special_tokens, tokenizer.backend_tokenizer.to_str()]
