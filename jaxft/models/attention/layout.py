"""Layouts: which keys a query sees before any window, in whole batch rows or in a cache."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Int32


class WholeRows(NamedTuple):
    """Queries and keys of the same tokens: whole batch rows, in which texts are packed.

    Attributes:
        segment_ids: int32 [b t]. A token sees itself and the earlier tokens of its own segment;
            padding is segment 0.
    """

    segment_ids: Int32[Array, "b t"]


class Slots(NamedTuple):
    """Queries of new tokens, and keys of all slots of a cache, which include the new tokens.

    Attributes:
        visible: bool [b t s], which slots each new token sees.
        distance: int32 [t s], how many positions each slot's token is behind each new token.
        first_slot: int32, the slot of the first new token.
    """

    visible: Bool[Array, "b t s"]
    distance: Int32[Array, "t s"]
    first_slot: Int32[Array, ""]


Layout = WholeRows | Slots
