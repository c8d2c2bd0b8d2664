"""The class that every section of a recipe inherits from: frozen, and strict about names and types.

It also drops names of PEFT, transformers and TRL whose value changes nothing here. It has a file of
its own so that one section can be part of another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from jaxft.config import known

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
OWN = "jaxft"  # the source of a name that comes from no other library


def conflict(key: str, found: str, remedy: str) -> PydanticCustomError:
    """Build the error for options that contradict each other.

    Args:
        key: The option to point at, as a dotted path within the section that raises.
        found: What the options say together.
        remedy: What to change.
    """
    return PydanticCustomError(
        "conflict", "{found}", {"key": key, "found": found, "remedy": remedy}
    )


class Section(BaseModel):
    """A frozen part of a recipe that refuses what it does not know."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
    known_elsewhere: ClassVar[Mapping[str, known.Known]] = {}
    # Where the names of the options come from, such as "PEFT LoraConfig", and the options whose
    # names come from elsewhere than the section's.
    names_from: ClassVar[str] = OWN
    names_from_elsewhere: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def source_of(cls, option: str) -> str:
        """Return where an option's name comes from, such as "PEFT LoraConfig.r"."""
        source = cls.names_from_elsewhere.get(option, cls.names_from)
        return source if source == OWN else f"{source}.{option}"

    @model_validator(mode="before")
    @classmethod
    def _drop_names_without_effect(cls, data: Any) -> Any:
        """Leave out names known from elsewhere that are set to a value of no effect."""
        if not isinstance(data, dict):
            return data
        table = cls.known_elsewhere
        return {k: v for k, v in data.items() if not (k in table and table[k].accepts(v))}
