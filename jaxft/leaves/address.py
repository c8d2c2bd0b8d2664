"""The address of a leaf: the block of layers, the module and the part that its path names.

Only this file converts a path to an address and back; a test enforces that. The layers of a block,
like everything else that is stacked in a leaf, are dimensions of the leaf and not in its path.
"""

import dataclasses
import re

from jaxft.leaves.parts import PARTS, Part, Role

_NAME = "[a-z][a-z0-9_]*"
_NUMBER = "0|[1-9][0-9]*"
_PATH = re.compile(
    rf"(?:groups/(?P<group>{_NUMBER})/(?P<position>{_NUMBER})/)?"
    rf"(?P<module>(?!groups/){_NAME}(?:/{_NAME})?)/(?P<part>{_NAME})"
)


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a leaf is: "groups/0/1/attn/q/kernel" is the kernel of "attn/q" in a block of layers.

    Attributes:
        group: The index of the group of layers, such as 0; `None` outside the layers, and in a
            path within a block.
        position: The position in the group's period, such as 1; `None` if `group` is `None`.
        module: The path of the module within its block, such as "attn/q"; or a module outside the
            layers, such as "head".
        part: The name of the leaf in the module, such as "kernel" or "lora_a".
    """

    group: int | None
    position: int | None
    module: str
    part: str

    @classmethod
    def parse(cls, path: str) -> "Address":
        """Return the address that a path names.

        Raises:
            ValueError: If it is not the path of a leaf.
        """
        found = _PATH.fullmatch(path)
        if found is None:
            raise ValueError(
                f"{path!r} is not the path of a leaf, such as 'groups/0/1/attn/q/kernel' or "
                "'embed/kernel'"
            )
        if found["group"] is None:
            return cls(None, None, found["module"], found["part"])
        return cls(int(found["group"]), int(found["position"]), found["module"], found["part"])

    def __str__(self) -> str:
        """Return the path."""
        return self.beside(self.part)

    def beside(self, part: str) -> str:
        """Return the path of another part of the same module."""
        return within(self.block, f"{self.module}/{part}")

    @property
    def block(self) -> str:
        """The path of the block of layers, such as "groups/0/1"; "" outside the layers."""
        if self.group is None or self.position is None:
            return ""
        return block_path(self.group, self.position)

    @property
    def is_own(self) -> bool:
        """Whether the leaf is the model's own: tuning did not add it."""
        return self._added is None

    @property
    def is_adapter(self) -> bool:
        """Whether tuning added the leaf, and trains it."""
        return self._role == "trained"

    @property
    def is_start(self) -> bool:
        """Whether the leaf is the frozen initial value of an adapter's leaf, A0 or B0."""
        return self._role == "start"

    @property
    def is_number(self) -> bool:
        """Whether the leaf is a number of an adapter: its scaling or its dropout."""
        return self._role == "number"

    @property
    def start_of(self) -> str | None:
        """The path of the leaf whose initial value this is; `None` if this leaf is not a start."""
        if self._added is None or self._added.start_of is None:
            return None
        return self.beside(self._added.start_of)

    @property
    def is_decayed(self) -> bool:
        """Whether weight decay applies to the leaf if it is trained."""
        return not self._is_bias_or_scale if self._added is None else self._added.is_decayed

    @property
    def is_faster(self) -> bool:
        """Whether LoRA+ trains the leaf at the faster rate."""
        return self._is_bias_or_scale if self._added is None else self._added.is_faster

    @property
    def _added(self) -> Part | None:
        return PARTS.get(self.part)

    @property
    def _role(self) -> Role | None:
        return None if self._added is None else self._added.role

    @property
    def _is_bias_or_scale(self) -> bool:
        return self.part in ("bias", "scale")


def block_path(group: int, position: int) -> str:
    """Return the path of the layers at a position of a group's period, such as "groups/0/1"."""
    return f"groups/{group}/{position}"


def within(block: str, path: str) -> str:
    """Return the full path, given a block and a path within it; "" means outside the layers."""
    return f"{block}/{path}" if block else path
