"""The leaves that tuning adds beside the model's own, as one table.

A further kind of leaf is one line here; whoever asks whether a leaf is trained, decayed or trained
faster is answered by the table, through `Address`.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Part(NamedTuple):
    """One kind of leaf that is added to a module.

    Attributes:
        name: The last name of its path, "lora_a".
        start_of: The part whose values before the first step it keeps, frozen; `None` for others.
        is_number: Whether it is a frozen number of the adapter, its scaling or its dropout.
        is_decayed: Whether weight decay applies to it.
        is_faster: Whether LoRA+ trains it at the faster rate.
    """

    name: str
    start_of: str | None
    is_number: bool
    is_decayed: bool
    is_faster: bool


_TABLE = (
    Part("lora_a", start_of=None, is_number=False, is_decayed=True, is_faster=False),
    Part("lora_b", start_of=None, is_number=False, is_decayed=True, is_faster=True),
    Part("lora_bias", start_of=None, is_number=False, is_decayed=False, is_faster=True),
    Part("lora_magnitude", start_of=None, is_number=False, is_decayed=False, is_faster=True),
    Part("lora_a0", start_of="lora_a", is_number=False, is_decayed=False, is_faster=False),
    Part("lora_b0", start_of="lora_b", is_number=False, is_decayed=False, is_faster=False),
    Part("lora_scaling", start_of=None, is_number=True, is_decayed=False, is_faster=False),
    Part("lora_dropout", start_of=None, is_number=True, is_decayed=False, is_faster=False),
    Part("rows", start_of=None, is_number=False, is_decayed=True, is_faster=False),
)
PARTS: Mapping[str, Part] = {part.name: part for part in _TABLE}
