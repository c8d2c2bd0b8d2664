r"""The token that ends a reply, found in what a chat template writes after it.

In ChatML `<|im_end|>\n<|im_start|>user\n` follows a reply, and its end is `<|im_end|>`; in GLM-4,
which writes no end, the reply ends with the `<|user|>` that opens the next turn. A model that is
trained on a reply without its end never stops.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from jaxft.data.chats.encoding import Tokenizer


class End(NamedTuple):
    """The end of a reply.

    Attributes:
        token: The token's text, such as `<|im_end|>`.
        length: Characters from the end of the reply's words to the end of the token.
    """

    token: str
    length: int


class Ends:
    """Finds ends with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Sequence[int]) -> None:
        """Collect the tokens that can end a reply: those that are one token wherever they stand."""
        added = {str(token): id_ for id_, token in tokenizer.added_tokens_decoder.items()}
        self._ids = {text: id_ for text, id_ in added.items() if text.strip()}
        longest_first = sorted(self._ids, key=lambda text: (-len(text), text))
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._stop_ids = frozenset(stop_ids)
        self._eos_token: str | None = tokenizer.eos_token

    def after(self, following: str, own: str) -> End | None:
        """Return the end of a reply, or None if nothing that follows it is one.

        It is the first token after white space, where that is a token at which the model stops, or
        where it belongs to the reply itself.

        Args:
            following: What stands between the reply and the next content, or the text's end.
            own: What follows the reply when it is the last one.
        """
        found = self._pattern.search(following)
        if found is None or following[: found.start()].strip():
            return None
        token = found.group()
        belongs = own.startswith(following[: found.end()])
        if self._ids[token] in self._stop_ids or belongs:
            return End(token, found.end())
        return None

    def first_stop(self, text: str, known: Sequence[str]) -> tuple[int, End] | None:
        """Return where the first stop in a text begins, and it; None if there is none.

        Args:
            text: A reply and what follows it.
            known: Tokens that end replies elsewhere in this template.
        """
        for found in self._pattern.finditer(text):
            token = found.group()
            if self._ids[token] in self._stop_ids or token in known:
                words = text[: found.start()].rstrip()
                return len(words), End(token, found.end() - len(words))
        return None

    def at_once(self, token: str) -> End:
        """Return the end of a reply that a token follows at once."""
        return End(token, len(token))

    def to_add(self, following: str) -> str | None:
        """Return the token to put after a reply for which the template writes no end.

        Args:
            following: What the template would write before another user message: a stop that comes
                first there is what the model should give. Else it is the tokenizer's end token.
        """
        found = self.after(following, "")
        return found.token if found else self._eos_token
