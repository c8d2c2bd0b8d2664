"""What becomes of an example that is longer than a sequence.

With 10 tokens and a maximum length of 4, `truncate` keeps 4, `split` makes examples of 4, 4 and 2,
`drop` keeps nothing and `error` stops. Whatever is kept has at least one target.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from jaxft.data.chats.encoding import Overlong
from jaxft.data.examples.tokens import Example
from jaxft.data.rows.row import RowPlace
from jaxft.errors import DataError

# Names of counts in a report; "" for an example that is kept as it is.
Outcome = Literal["", "truncated", "split", "too_long", "cut_off", "without_target"]


class FittedExample(NamedTuple):
    """The pieces kept of an example, and the name of the treatment in a report."""

    examples: tuple[Example, ...]
    outcome: Outcome


def fit(example: Example, max_length: int, overlong: Overlong, place: RowPlace) -> FittedExample:
    """Return the pieces that are kept of an example.

    Args:
        example: At full length.
        max_length: The most tokens that are kept in one piece.
        overlong: What becomes of more.
        place: Where its row stands.

    Raises:
        DataError: It is longer, and `overlong` is "error".
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

    The first token of a piece is not a target, because nothing stands before it there.
    """
    pieces = []
    for start in range(0, len(example.input_ids), max_length):
        mask = example.loss_mask[start : start + max_length].copy()
        mask[:1] = 0
        pieces.append(Example(example.input_ids[start : start + max_length], mask))
    return pieces
