"""The treatment of examples that are longer than the maximum length.

For an example of 10 tokens and a maximum length of 4, `truncate` keeps 4 tokens, `split` makes
examples of 4, 4 and 2, `drop` keeps nothing and `error` raises. Every kept example has at least one
supervised token.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from jaxft.data.chats.encoding import Overlong
from jaxft.data.examples.tokens import Example
from jaxft.data.rows.row import RowPlace
from jaxft.errors import DataError

# The names of counts in a report; "" for an example that is kept unchanged.
Outcome = Literal["", "truncated", "split", "too_long", "cut_off", "without_target"]


class FittedExample(NamedTuple):
    """The kept pieces of an example, and the name of the treatment in a report."""

    examples: tuple[Example, ...]
    outcome: Outcome


def fit(example: Example, max_length: int, overlong: Overlong, place: RowPlace) -> FittedExample:
    """Return the pieces that are kept of an example.

    Args:
        example: The example at full length.
        max_length: The largest number of tokens in one piece.
        overlong: The treatment of a longer example.
        place: Where its row stands.

    Raises:
        DataError: The example is longer, and `overlong` is "error".
    """
    length = len(example.input_ids)
    if not example.loss_mask.any():
        return FittedExample((), "without_target")
    if length <= max_length:
        return FittedExample((example,), "")
    if overlong == "error":
        raise DataError(
            f"{place}: the row has {length:,} tokens, and data.max_length is {max_length:,}.",
            "Raise data.max_length, shorten the row, or set data.overlong to truncate, drop or "
            "split.",
        )
    if overlong == "drop":
        return FittedExample((), "too_long")
    pieces = split(example, max_length)
    if overlong == "truncate":
        del pieces[1:]
    kept = tuple(piece for piece in pieces if piece.loss_mask.any())
    if not kept:
        return FittedExample((), "cut_off")
    return FittedExample(kept, "truncated" if overlong == "truncate" else "split")


def split(example: Example, max_length: int) -> list[Example]:
    """Cut an example into pieces, all but the last of `max_length` tokens.

    The first token of a piece is not supervised, because no token stands before it there.
    """
    pieces = []
    for start in range(0, len(example.input_ids), max_length):
        mask = example.loss_mask[start : start + max_length].copy()
        mask[:1] = 0
        pieces.append(Example(example.input_ids[start : start + max_length], mask))
    return pieces
