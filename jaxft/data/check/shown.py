"""Parts of a data set as text for people: the bars of a histogram, and examples.

If the longest bar is 8 characters for 15 examples, the bar of 3 examples is `█▋`. A text of 10,000
characters is shown as its beginning and its end with `... (9,400 characters) ...` between them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxft.data.chats.encoding import Tokenizer
from jaxft.data.check.figures import Bar
from jaxft.data.check.pool import Pool
from jaxft.data.examples import report
from jaxft.data.examples.tokens import Example

_EIGHTHS = " ▏▎▍▌▋▊▉"

# Characters of an example, so that three examples fit on a screen.
SHORT = 600


@dataclasses.dataclass(frozen=True)
class Shown:
    """An example as text.

    Attributes:
        place: Where its row stands.
        tokens: The number of its tokens.
        targets: The number of its supervised tokens.
        pieces: The pieces of its text, and whether each is supervised.
    """

    place: str
    tokens: int
    targets: int
    pieces: tuple[tuple[str, bool], ...]


def bar_lines(bars: Sequence[Bar], width: int, *, has_blocks: bool) -> list[str]:
    """Return a line for each bar of a histogram: the range, the number of examples, and the bar.

    Args:
        bars: The bars.
        width: The length of the longest bar, in characters.
        has_blocks: Whether block characters can be written; otherwise bars are made of `#`.
    """
    most = max((bar.count for bar in bars), default=0)
    labels = [f"{bar.low:,} - {bar.high:,}" for bar in bars]
    longest = max(map(len, labels), default=0)
    digits = len(f"{most:,}")
    return [
        f"{label:>{longest}}  {bar.count:>{digits},}  {_bar(bar.count / most, width, has_blocks)}"
        for label, bar in zip(labels, bars, strict=True)
    ]


def shortened(pieces: Sequence[tuple[str, bool]], most: int) -> tuple[tuple[str, bool], ...]:
    """Return the pieces of a text without its middle if the text is long.

    Args:
        pieces: The pieces, and whether each is supervised.
        most: The largest number of characters to keep, half at each end.
    """
    length = sum(len(text) for text, _ in pieces)
    if length <= most:
        return tuple(pieces)
    start, stop = most // 2, length - most // 2
    head, tail, at = list[tuple[str, bool]](), list[tuple[str, bool]](), 0
    for text, is_supervised in pieces:
        before, after = text[: max(0, start - at)], text[max(0, stop - at) :]
        head += [(before, is_supervised)] if before else []
        tail += [(after, is_supervised)] if after else []
        at += len(text)
    return (*head, (f" ... ({stop - start:,} characters) ... ", False), *tail)


def show(example: Example, place: str, tokenizer: Tokenizer | None, most: int) -> Shown:
    """Return an example as text with at most `most` characters; as ids if there is no tokenizer."""
    if tokenizer is None:
        pieces = [
            (f"{token} ", bool(mask))
            for token, mask in zip(example.input_ids.tolist(), example.loss_mask, strict=True)
        ]
    else:
        pieces = [
            (text, is_supervised) for text, is_supervised in report.split_pieces(example, tokenizer)
        ]
    return Shown(
        place,
        len(example.input_ids),
        int(example.loss_mask.sum()),
        shortened(pieces, most),
    )


def typical(pool: Pool) -> list[int]:
    """Return the numbers of the first, the shortest and the longest example, without repetition."""
    if not len(pool):
        return []
    return list(dict.fromkeys([0, int(np.argmin(pool.lengths)), int(np.argmax(pool.lengths))]))


def _bar(share: float, width: int, has_blocks: bool) -> str:
    """Return a bar. A share above 0 has a visible bar."""
    eighths = max(round(share * width * 8), 1 if share else 0)
    if not has_blocks:
        return "#" * -(-eighths // 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + _EIGHTHS[rest].strip()
