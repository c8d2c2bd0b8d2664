"""What every section of a recipe is: frozen, strict, and deaf to what asks for nothing.

Apart from the sections themselves so that one of them can be part of another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from jaxft.config import known

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


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

    @model_validator(mode="before")
    @classmethod
    def _drop_what_asks_for_nothing(cls, data: Any) -> Any:
        """Leave out names known from elsewhere that are set to a value of no effect."""
        if not isinstance(data, dict):
            return data
        table = cls.known_elsewhere
        return {k: v for k, v in data.items() if not (k in table and table[k].accepts(v))}
