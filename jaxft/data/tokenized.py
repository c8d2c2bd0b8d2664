"""Rows that are tokens already, as transformers' Trainer is given them.

Separate from shapes, which knows words and no numbers. Labels have transformers' meaning: a label
stands at its own token, not at the one before, and IGNORED is not learned. The invariant: a row
that leaves this file has no padding, and a token in it is learned or not, never replaced.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int64

from jaxft.data import fields
from jaxft.data.rows import Place, Tokenized
from jaxft.errors import DataError

# Marks tokens that are not learned. Source: the ignore_index of torch's and transformers'
# cross-entropy, so that labels read as people expect.
IGNORED = -100

# Other columns of tokens that trainers act upon and jaxft does not.
_UNSUPPORTED_FIELDS = ("assistant_masks", "completion_mask", "position_ids", "seq_lengths")

# Every field that is ever looked at.
FIELDS = ("input_ids", "attention_mask", "labels", *_UNSUPPORTED_FIELDS)

_HIGHEST_ID = np.iinfo(np.int32).max


def parse(value: Mapping[str, object], place: Place) -> Tokenized:
    """Return the row of `input_ids`, and of `attention_mask` and `labels` where they are given.

    Padding, where the attention mask is 0, is removed, whatever its labels. Without labels every
    token is learned, an end token too, even if the tokenizer pads with it.

    Args:
        value: The fields that are not null.
        place: Where the row stands.

    Raises:
        DataError: A field is no flat list of numbers, or they do not fit together.

    Source: transformers 5.23, `DataCollatorForLanguageModeling` with `mlm=False` copies the
    labels from the tokens, and `ForCausalLMLoss` shifts them.
    """
    for field in _UNSUPPORTED_FIELDS:
        if field in value:
            raise DataError(
                f'{place}: the row has "{field}", which jaxft does not support.',
                f'Remove it; what is not to be learned has the label {IGNORED} in "labels".',
            )
    ids = _numbers(value["input_ids"], "input_ids", place)
    _check_range(ids, "input_ids", 0, _HIGHEST_ID, place)
    mask = _beside(value, "attention_mask", np.ones_like(ids), place)
    labels = _beside(value, "labels", ids, place)
    kept = _unpadded(mask, place)
    ids, labels = ids[kept], labels[kept]
    wrong = np.flatnonzero((labels != IGNORED) & (labels != ids))
    if len(wrong):
        index = int(wrong[0])
        raise DataError(
            f'{place}: "labels" has {labels[index]} where "input_ids" has {ids[index]}, at token'
            f" {index} without padding.",
            f"A label is its own token's id, not the next one's, or {IGNORED} to leave it out.",
        )
    return Tokenized(
        source=place.source,
        number=place.number,
        unit=place.unit,
        input_ids=ids.astype(np.int32),
        loss_mask=(labels != IGNORED).astype(np.uint8),
    )


def _numbers(value: object, name: str, place: Place) -> Int64[np.ndarray, " t"]:
    """Return a field's numbers."""
    try:
        numbers = np.array(fields.plain_list(value))
    except ValueError:  # lists of different lengths
        numbers = np.array(None)
    if numbers.ndim != 1 or (len(numbers) and numbers.dtype.kind not in "iu"):
        raise DataError(
            f'{place}: "{name}" is not a flat list of whole numbers.',
            "Expected those of one row, not of a batch, such as [5, 17, 2].",
        )
    return numbers.astype(np.int64)


def _check_range(
    numbers: Int64[np.ndarray, " t"], name: str, lowest: int, highest: int, place: Place
) -> None:
    """Raise if a number is out of range."""
    wrong = np.flatnonzero((numbers < lowest) | (numbers > highest))
    if len(wrong):
        raise DataError(
            f'{place}: "{name}[{wrong[0]}]" is {numbers[wrong[0]]}.',
            f"Expected numbers from {lowest} to {highest}.",
        )


def _beside(
    value: Mapping[str, object], name: str, default: Int64[np.ndarray, " t"], place: Place
) -> Int64[np.ndarray, " t"]:
    """Return the numbers of a field that has one for each token, or the default without it."""
    if name not in value:
        return default
    numbers = _numbers(value[name], name, place)
    if len(numbers) != len(default):
        raise DataError(
            f'{place}: "{name}" has {len(numbers):,} numbers and "input_ids" {len(default):,}.',
            "Expected one for each token.",
        )
    return numbers


def _unpadded(mask: Int64[np.ndarray, " t"], place: Place) -> slice:
    """Return where the tokens are that are no padding."""
    _check_range(mask, "attention_mask", 0, 1, place)
    inside = np.flatnonzero(mask)
    if not len(inside):
        return slice(0, 0)
    start, stop = int(inside[0]), int(inside[-1]) + 1
    if stop - start != len(inside):
        raise DataError(
            f'{place}: "attention_mask" is 0 between tokens where it is 1.',
            "Only padding before or after the text may be masked.",
        )
    return slice(start, stop)
