r"""The token that ends a reply, found in the text that a chat template writes after the reply.

In ChatML `<|im_end|>\n<|im_start|>user\n` follows a reply, and its end is `<|im_end|>`. GLM-4
writes no end: there a reply ends with the `<|user|>` that opens the next turn. A model that is
trained on replies without their ends never stops.
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
    """Finds the ends of replies, for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Sequence[int]) -> None:
        """Collect the tokens that can end a reply: the added tokens of the tokenizer."""
        added = {str(token): id_ for id_, token in tokenizer.added_tokens_decoder.items()}
        self._ids = {text: id_ for text, id_ in added.items() if text.strip()}
        longest_first = sorted(self._ids, key=lambda text: (-len(text), text))
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._stop_ids = frozenset(stop_ids)
        self._eos_token: str | None = tokenizer.eos_token

    def after(self, following: str, own: str) -> End | None:
        """Return the end of a reply, or None if no end follows it.

        The end is the first added token behind the reply, with only white space between, if the
        model stops at it or if the template writes it after the last reply too.

        Args:
            following: The text from the reply to the next content or to the end of the text.
            own: The text that follows the same reply if it is the last message.
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
        """Return the length of a reply's words and its end; None if there is no end.

        Args:
            text: A reply and the text that follows it.
            known: Tokens that end other replies of this template.
        """
        for found in self._pattern.finditer(text):
            token = found.group()
            if self._ids[token] in self._stop_ids or token in known:
                words = text[: found.start()].rstrip()
                return len(words), End(token, found.end() - len(words))
        return None

    def at_once(self, token: str) -> End:
        """Return the end of a reply that is directly followed by a token."""
        return End(token, len(token))

    def to_add(self, following: str) -> str | None:
        """Return the token to add to a reply for which the template writes no end.

        Args:
            following: The text that the template writes between the reply and a next user message.
                If it begins with a token at which the model stops, that token is returned, else the
                tokenizer's end token.
        """
        found = self.after(following, "")
        return found.token if found else self._eos_token
