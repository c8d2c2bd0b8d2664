"""One table of the leaves that tuning adds to the model's own.

A new kind of leaf is a new entry here: the table decides which leaves modules create, which of them
PEFT's file has, and whether `Address` calls a leaf trained, decayed or trained faster.

Source of the names in PEFT's file: `peft/tuners/lora/layer.py: LoraLayer.adapter_layer_names`,
`peft/utils/save_and_load.py: get_peft_model_state_dict`.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

Role = Literal["trained", "start", "number"]


class Part(NamedTuple):
    """One kind of leaf that is added to a module.

    Attributes:
        name: The last component of its path, such as "lora_a".
        role: "trained"; or frozen: the "start" of a trained part, which is its value before the
            first step, or a "number" of the adapter.
        axes: Its dimensions in one layer: "rank", and "in" and "out" of the adapter's module; for
            trained rows, "token" and "feature".
        initial: The value of every entry until others are set.
        dtype: The name of its dtype.
        is_decayed: Whether weight decay applies to it.
        is_faster: Whether LoRA+ trains it at the faster rate.
        needs: The field of `Adapter` that says whether an adapter has the part; `None` if every
            adapter has it.
        start_of: The trained part whose start this is, such as "lora_a".
        filed: Its name in PEFT's file, after the name of the module; `None` if no file has it.
        filed_of_table: Its name in PEFT's file if the module is a table of embeddings.
        is_filed_transposed: Whether the tensor in the file is the transpose of the leaf.
    """

    name: str
    role: Role
    axes: tuple[str, ...]
    initial: float
    dtype: str
    is_decayed: bool
    is_faster: bool
    needs: str | None = None
    start_of: str | None = None
    filed: str | None = None
    filed_of_table: str | None = None
    is_filed_transposed: bool = False

    def shape(self, rank: int, num_in: int, num_out: int) -> tuple[int, ...]:
        """Return the shape of the leaf in one layer."""
        sizes = {"rank": rank, "in": num_in, "out": num_out}
        return tuple(sizes[axis] for axis in self.axes)


OF_ADAPTER = (
    Part(
        "lora_a",
        role="trained",
        axes=("rank", "in"),
        initial=0,
        dtype="float32",
        is_decayed=True,
        is_faster=False,
        filed="lora_A.weight",
        filed_of_table="lora_embedding_A",
    ),
    Part(
        "lora_b",
        role="trained",
        axes=("rank", "out"),
        initial=0,
        dtype="float32",
        is_decayed=True,
        is_faster=True,
        filed="lora_B.weight",
        filed_of_table="lora_embedding_B",
        is_filed_transposed=True,
    ),
    Part(
        "lora_bias",
        role="trained",
        axes=("out",),
        initial=0,
        dtype="float32",
        is_decayed=False,
        is_faster=True,
        needs="bias",
        filed="lora_B.bias",
    ),
    Part(
        "lora_magnitude",
        role="trained",
        axes=("out",),
        initial=1,
        dtype="float32",
        is_decayed=False,
        is_faster=True,
        needs="is_dora",
        filed="lora_magnitude_vector",
    ),
    Part(
        "lora_a0",
        role="start",
        axes=("rank", "in"),
        initial=0,
        dtype="float32",
        is_decayed=False,
        is_faster=False,
        needs="subtracts_start",
        start_of="lora_a",
    ),
    Part(
        "lora_b0",
        role="start",
        axes=("rank", "out"),
        initial=0,
        dtype="float32",
        is_decayed=False,
        is_faster=False,
        needs="subtracts_start",
        start_of="lora_b",
    ),
    Part(
        "lora_scaling",
        role="number",
        axes=(),
        initial=1,
        dtype="float32",
        is_decayed=False,
        is_faster=False,
    ),
    Part(
        "lora_dropout",
        role="number",
        axes=(),
        initial=0,
        dtype="uint32",
        is_decayed=False,
        is_faster=False,
        needs="drops",
    ),
)
# Trained rows that replace rows of a table or columns of the head; whole rows, as in PEFT.
ROWS = Part(
    "rows",
    role="trained",
    axes=("token", "feature"),
    initial=0,
    dtype="float32",
    is_decayed=True,
    is_faster=False,
    filed="token_adapter.trainable_tokens_delta",
    filed_of_table="token_adapter.trainable_tokens_delta",
)
PARTS: Mapping[str, Part] = {part.name: part for part in (*OF_ADAPTER, ROWS)}
