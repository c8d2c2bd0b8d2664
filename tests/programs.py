"""What a traced or compiled program is made of: its products, collectives and their shapes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jax

Shape = tuple[int, ...]
_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "reduce-scatter",
)


def traced_products(jaxpr: Any) -> set[Shape]:
    """Return the shapes, without dimensions of one, that matrix products in a jaxpr give."""
    return {
        _squeezed(variable.aval.shape)
        for equation in _equations(jaxpr)
        if equation.primitive.name == "dot_general"
        for variable in equation.outvars
    }


def traced_shapes(jaxpr: Any) -> set[Shape]:
    """Return the shapes of all arrays that go into a jaxpr or are made in it."""
    made = (variable for equation in _equations(jaxpr) for variable in equation.outvars)
    of_loops = (
        variable
        for equation in _equations(jaxpr)
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr)
        if _is_jaxpr(value)
        for variable in getattr(value, "jaxpr", value).invars
    )
    return {variable.aval.shape for variable in (*jaxpr.invars, *made, *of_loops)}


def compiled_products(text: str) -> set[Shape]:
    """Return the shapes, without dimensions of one, of matrix products in optimised HLO.

    On a CPU a product is a `dot`, or a custom call where a library does it.
    """
    return {_squeezed(shape) for _, shape in _instructions(text, ("dot", "custom-call"))}


def collectives(text: str) -> list[tuple[str, Shape]]:
    """Return (kind, shape) of every array that a collective in optimised HLO gives."""
    kinds = [*_COLLECTIVES, *(f"{kind}-start" for kind in _COLLECTIVES)]
    return [(kind.removesuffix("-start"), shape) for kind, shape in _instructions(text, kinds)]


def either_way(shapes: set[Shape]) -> set[Shape]:
    """Return the shapes and their transposes."""
    return shapes | {shape[::-1] for shape in shapes}


def _squeezed(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def _equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from _equations(getattr(value, "jaxpr", value))


def _is_jaxpr(value: Any) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")


def _instructions(text: str, opcodes: Any) -> Iterator[tuple[str, Shape]]:
    line = re.compile(rf"= (.*?) ({'|'.join(opcodes)})\(")
    for found in line.finditer(text):
        for shape in re.findall(r"\w+\[([\d,]*)\]", found[1]):
            yield found[2], tuple(int(size) for size in shape.split(",") if size)
