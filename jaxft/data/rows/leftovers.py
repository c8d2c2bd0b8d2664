"""Unused fields of a row: harmless ones are counted by name, and the others are refused.

`id` and `source` are counted. `loss_weight`, `answer_mask`, `chosen` or `reward` are refused: the
name of such a field says which part of the row is to be supervised, and training that ignores it
would supervise something else. The rule looks at names only and knows no particular trainer.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Literal

from jaxft.data.rows.fields import Fields, is_empty, plain_list
from jaxft.data.rows.flags import as_flag
from jaxft.data.rows.row import RowPlace
from jaxft.data.rows.wording import quoted, shown
from jaxft.errors import DataError

# How the value of such a field matters. A "positive" field (`loss`) changes nothing if it is true,
# a "negative" one (`masked`) changes nothing if it is false, an "always" one (`loss_mask`) always
# changes what is supervised.
_Kind = Literal["positive", "negative", "always"]

# Parts that a name may mask, weigh or label. `face_mask` and `source_weight` mean something else.
_PART = (
    "loss|completions?|assistants?|prompts?|users?|labels?|targets?|responses?|outputs?|answers?"
    "|inputs?|instructions?|actions?|tokens?|pad|padding|train|training|turns?|messages?|content"
    "|text|reply|replies|learn|learning|supervis(?:ed|ion)|roles?|spans?|grad|gradient"
)
_LEARNING = "loss|train|training|learn|learning"

# Names of one word.
_WORDS: Mapping[_Kind, str] = {
    "positive": "weights?|loss|losses|train|training|trainable|learn|learned|learnable|supervised",
    "negative": "masked|ignored?|excluded?|skip|skipped",
    "always": "masks?|rewards?|advantages?",
}

# Names of several words, and single words that have no other meaning.
_PHRASES: Mapping[_Kind, str] = {
    "positive": (
        f"(?:{_PART}|samples?|examples?|rows?|instances?|importance)_weights?"
        "|loss_(?:scales?|factors?|multipliers?|coefs?|coefficients?|weighting)"
        f"|(?:should|do|to|can|use|use_for|use_in|for|in|with|has|compute|calculate|apply)_(?:the_)?"
        f"(?:{_LEARNING})"
        "|is_(?:trainable|learned|learnable|supervised|chosen|preferred|desirable)"
    ),
    "negative": (
        f"(?:no|not|skip|ignore|exclude|without|dont|do_not|drop|omit)_(?:from_|in_|for_)?"
        f"(?:the_)?(?:{_LEARNING})"
        f"|(?:ignored?|excluded?|masked|skipped|omitted|dropped)_(?:from|in|for)_(?:the_)?"
        f"(?:{_LEARNING})"
        f"|mask_(?:out|history|{_PART})|masked_(?:{_PART})|train_on_(?:inputs?|prompts?|users?)"
        "|is_(?:masked|ignored|excluded|skipped|rejected|dispreferred|undesirable)"
    ),
    "always": (
        f"(?:{_PART})_masks?|train_on|train_on_\\w+|\\w+_to_(?:train|learn|mask)"
        "|(?:loss|train|trained|learn|learned|mask|masked)_"
        "(?:spans?|ranges?|indices|turns?|roles?|positions?|details?|flags?|messages)"
        "|chosen|rejected|(?:chosen|rejected)_\\w+|preferred|dispreferred"
        "|(?:prompt|completion|response|answer|output|messages?|conversations?)_(?:chosen|rejected)"
        "|kto_\\w+|(?:shift|shifted|token|lm|assistant|completion|loss)_labels?|label_ids"
    ),
}

# Masks that mark padding and special tokens, which every tokenizer writes.
_HARMLESS = frozenset({"attention_mask", "special_tokens_mask"})


def unused(fields: Fields, place: RowPlace, prefix: str = "") -> tuple[str, ...]:
    """Return the names of unused fields.

    Args:
        fields: The unused fields, none of them null.
        place: Where the row stands.
        prefix: Put before each name, such as `messages[].`.

    Raises:
        DataError: The name of a field says which part is supervised.
    """
    for name, value in fields.items():
        if changes_learning(name, value):
            raise _refused(f"{prefix}{name}", place)
        if isinstance(value, Mapping):
            for inner, found in value.items():
                if changes_learning(inner, found, is_inner=True):
                    raise _refused(f"{prefix}{name}.{inner}", place)
    return tuple(f"{prefix}{shown(name)}" for name in fields)


def changes_learning(name: object, value: object, *, is_inner: bool = False) -> bool:
    """Return whether a field changes which part is supervised, by its name and its value.

    `loss_weight: 0.5` does; `loss_weight: 1` and `id: 7` do not.

    Args:
        name: The name of the field.
        value: Its value.
        is_inner: Whether the field is inside an unused object. Names of one word, such as `weight`,
            are ordinary there and do not count.
    """
    found = _kind_of(str(name))
    if found is None or is_empty(value):
        return False
    kind, is_word = found
    if is_word and is_inner:
        return False
    if (is_word or kind != "always") and _is_prose(value):
        return False
    return kind == "always" or as_flag(plain_list(value)) != (kind == "positive")


def _is_prose(value: object) -> bool:
    """Return whether a value is text that is no number and no list, which no mark would be."""
    if not isinstance(value, str) or as_flag(value) is not None:
        return False
    try:
        float(value)
    except ValueError:
        return not value.lstrip().startswith(("[", "{"))
    return False


@functools.lru_cache(maxsize=4096)
def _kind_of(name: str) -> tuple[_Kind, bool] | None:
    """Return the kind of a field's name, and whether the name is one word; None for other names."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name[:100])
    words = re.sub(r"[^a-z0-9]+", "_", snake.lower()).strip("_")
    if words in _HARMLESS:
        return None
    for patterns, is_word in ((_WORDS, True), (_PHRASES, False)):
        for kind, pattern in patterns.items():
            if re.fullmatch(pattern, words):
                return kind, is_word
    return None


def _refused(name: str, place: RowPlace) -> DataError:
    return DataError(
        f"{place}: the field {quoted(name)} says by its name what is learned, and jaxft does not"
        " act upon it here.",
        "Remove the field if it is not to be acted upon; otherwise mark turns by weight or "
        "train_turns, tokens by labels, and leave out rows that are not to be learned.",
    )
