"""Rows of tokens, in the form that transformers' Trainer takes.

In `{"input_ids": [5, 17, 9], "labels": [-100, 17, 9]}` the tokens 17 and 9 are supervised. Labels
have transformers' meaning: a label stands at its own token, not at the token before, and IGNORED
marks a token that is not supervised. The parsed row has no padding. A label can leave its token out
of the loss, and cannot replace it by another token.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from jaxft.data.rows import fields
from jaxft.data.rows.fields import Given
from jaxft.data.rows.row import RowPlace, Tokenized
from jaxft.data.rows.wording import quoted
from jaxft.errors import DataError

# The label of tokens that are not supervised. Source: the ignore_index of torch's and
# transformers' cross-entropy.
IGNORED = -100

# Fields with a 1 for each supervised token and 0 for the others. Source: the last two are TRL's.
_MASKS = ("loss_mask", "completion_mask", "assistant_masks")

# Fields that say where several texts stand in one row. In jaxft a row is one text, and these fields
# must say so too. Source: the names are those of TRL's padding-free batches and of transformers'
# flash attention.
_POSITIONS = ("position_ids",)
_LENGTHS = ("seq_lengths",)
_SEGMENTS = ("segment_ids", "document_ids", "sequence_ids", "seq_idx")
_BOUNDS = ("cu_seqlens", "cu_seq_lens_q", "cu_seq_lens_k")

# The names of all fields that a row of tokens can use.
FIELDS = (
    "input_ids",
    "attention_mask",
    "labels",
    *_MASKS,
    *_POSITIONS,
    *_LENGTHS,
    *_SEGMENTS,
    *_BOUNDS,
)

_HIGHEST_ID = np.iinfo(np.int32).max


def parse(given: Given) -> Tokenized:
    """Return the row of `input_ids`, with the supervised tokens that its labels and masks name.

    Padding, where the attention mask is 0, is removed, whatever its labels. A token is supervised
    if neither the labels nor a mask leave it out. So without labels and masks every token is
    supervised, and that includes an end token with which the tokenizer also pads.

    Raises:
        DataError: A field is not a flat list of numbers, or two fields contradict each other.

    Source: transformers 5.23, `DataCollatorForLanguageModeling` with `mlm=False` copies the
    labels from the tokens, and `ForCausalLMLoss` shifts them.
    """
    place = given.place
    ids = _numbers(given, "input_ids")
    _check_range(ids, given.label("input_ids"), 0, _HIGHEST_ID, place)
    kept = _unpadded(_beside(given, "attention_mask", np.ones_like(ids)), given)
    labels = _beside(given, "labels", ids)[kept]
    mask = _mask(given, ids, kept)
    _check_one_text(given, len(ids), kept)
    ids = ids[kept]
    wrong = np.flatnonzero((labels != IGNORED) & (labels != ids))
    if len(wrong):
        index = int(wrong[0])
        raise DataError(
            f'{place}: "labels" has {labels[index]} where "input_ids" has {ids[index]}, at token'
            f" {index} without padding.",
            f"A label is its own token's id, not the next one's, or {IGNORED} to leave it out.",
        )
    return Tokenized(
        place,
        input_ids=ids.astype(np.int32),
        loss_mask=((labels != IGNORED) & (mask == 1)).astype(np.uint8),
    )


def _mask(given: Given, ids: Int64[np.ndarray, " t"], kept: slice) -> Int64[np.ndarray, " u"]:
    """Return 1 for the tokens that the masks call supervised, without padding.

    Args:
        given: The row.
        ids: Its tokens, padding included.
        kept: The positions that are not padding.

    Raises:
        DataError: Two masks differ.
    """
    first, mask = "", np.ones_like(ids)[kept]
    for name in _MASKS:
        if name not in given.values:
            continue
        found = _beside(given, name, ids)
        _check_range(found, given.label(name), 0, 1, given.place)
        found = found[kept]
        differs = np.flatnonzero(found != mask)
        if first and len(differs):
            raise DataError(
                f"{given.place}: {quoted(given.label(first))} and {quoted(given.label(name))}"
                f" differ, at token {differs[0]} without padding.",
                "Keep the one that says what is learned.",
            )
        first, mask = name, found
    return mask


def _check_one_text(given: Given, num_tokens: int, kept: slice) -> None:
    """Raise if a row says that its tokens are several texts, or that they have other positions."""
    length = kept.stop - kept.start
    for name in (*_POSITIONS, *_LENGTHS, *_SEGMENTS, *_BOUNDS):
        if name not in given.values:
            continue
        found = _numbers(given, name).tolist()
        inside = found[kept] if len(found) == num_tokens else None
        if name in _POSITIONS:
            is_plain = inside == list(range(length)) or found == list(range(num_tokens))
        elif name in _LENGTHS:
            is_plain = found in ([length], [num_tokens])
        elif name in _BOUNDS:
            is_plain = found in ([0, length], [0, num_tokens])
        else:
            is_plain = inside is not None and len(set(inside)) <= 1
        if not is_plain:
            raise DataError(
                f"{given.place}: {quoted(given.label(name))} does not say that the row is one text"
                " from its first token to its last.",
                "Give each text as a row of its own, and let data.packing put rows together.",
            )


def _numbers(given: Given, name: str) -> Int64[np.ndarray, " t"]:
    """Return the numbers in a field. A mask may also have true and false, or 1.0 and 0.0."""
    numbers = _array(given.values[name])
    is_mask = name == "attention_mask" or name in _MASKS
    kinds = "iubf" if is_mask else "iu"
    is_whole = numbers.dtype.kind in kinds and not (numbers % 1).any()
    if numbers.ndim != 1 or (len(numbers) and not is_whole):
        raise DataError(
            f"{given.place}: {quoted(given.label(name))} is not a flat list of whole numbers.",
            "Expected those of one row, not of a batch, such as [5, 17, 2].",
        )
    return numbers.astype(np.int64)


def _array(value: object) -> np.ndarray:
    """Return a list as an array. The array of anything else has no dimension."""
    try:
        return np.array(fields.plain_list(value))
    except ValueError:  # lists of different lengths
        return np.array(None)


def _check_range(
    numbers: Int64[np.ndarray, " t"], name: str, lowest: int, highest: int, place: RowPlace
) -> None:
    """Raise if a number is out of range."""
    wrong = np.flatnonzero((numbers < lowest) | (numbers > highest))
    if len(wrong):
        raise DataError(
            f'{place}: "{name}[{wrong[0]}]" is {numbers[wrong[0]]}.',
            f"Expected numbers from {lowest} to {highest}.",
        )


def _beside(given: Given, name: str, default: Int64[np.ndarray, " t"]) -> Int64[np.ndarray, " t"]:
    """Return the numbers of a field, one for each token; the default if there is no such field."""
    if name not in given.values:
        return default
    numbers = _numbers(given, name)
    if len(numbers) != len(default):
        raise DataError(
            f"{given.place}: {quoted(given.label(name))} has {len(numbers):,} numbers and"
            f' "input_ids" {len(default):,}.',
            "Expected one for each token.",
        )
    return numbers


def _unpadded(mask: Int64[np.ndarray, " t"], given: Given) -> slice:
    """Return the positions where the attention mask is 1, which must be adjacent."""
    label = given.label("attention_mask")
    _check_range(mask, label, 0, 1, given.place)
    inside = np.flatnonzero(mask)
    if not len(inside):
        return slice(0, 0)
    start, stop = int(inside[0]), int(inside[-1]) + 1
    if stop - start != len(inside):
        raise DataError(
            f"{given.place}: {quoted(label)} is 0 between tokens where it is 1.",
            "Only padding before or after the text may be masked.",
        )
    return slice(start, stop)
