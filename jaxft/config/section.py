"""The base class of the sections of a recipe: frozen, and strict about names and types.

It also drops names of PEFT, transformers and TRL whose values ask for nothing (see `known`). It has
a file of its own so that one section can contain another.
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
    """Return the error for options that contradict each other.

    Args:
        key: The option to name, as a dotted path within the section that raises.
        found: The sentence about the contradiction.
        remedy: The sentence about what to change.
    """
    return PydanticCustomError(
        "conflict", "{found}", {"key": key, "found": found, "remedy": remedy}
    )


class Section(BaseModel):
    """A section of a recipe. It is frozen, and refuses unknown names."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
    known_elsewhere: ClassVar[Mapping[str, known.Known]] = {}
    # The origin of the options' names, such as "PEFT LoraConfig", and the options whose names have
    # another origin.
    names_from: ClassVar[str] = OWN
    names_from_elsewhere: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def source_of(cls, option: str) -> str:
        """Return the origin of an option's name, such as "PEFT LoraConfig.r"."""
        source = cls.names_from_elsewhere.get(option, cls.names_from)
        return source if source == OWN else f"{source}.{option}"

    @model_validator(mode="before")
    @classmethod
    def _drop_names_without_effect(cls, data: Any) -> Any:
        """Drop names of other libraries whose values ask for nothing."""
        if not isinstance(data, dict):
            return data
        table = cls.known_elsewhere
        return {k: v for k, v in data.items() if not (k in table and table[k].accepts(v))}
