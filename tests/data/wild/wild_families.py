"""All families together, for the laws that hold for each of them."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from wild_build import Family
from wild_templates_ends import ENDS
from wild_templates_plain import PLAIN
from wild_templates_thinking import THINKING

FAMILIES = (*PLAIN, *ENDS, *THINKING)


def each_of(families: Iterable[Family]) -> pytest.MarkDecorator:
    """Run a test with each of some families as its argument `family`."""
    return pytest.mark.parametrize("family", families, ids=lambda family: family.name)


each_family = each_of(FAMILIES)
