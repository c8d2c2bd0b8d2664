"""Combinations of what an adapter can be, each with each, on every kind of model: against PEFT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import covering
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import reference_adapters
import reference_variants
from jax.sharding import Mesh
from reference_models import CALM_STD, TinyModel
from reference_runs import TOLERANCE, Record
from reference_variants import CLEARLY, Row

pytestmark = [pytest.mark.reference, *reference_adapters.IGNORED_WARNINGS]

ROWS = covering.pairwise(reference_variants.FACTORS, reference_variants.is_allowed)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: ", ".join(row.values()))
def test_a_combination_is_that_of_peft(
    row: Row,
    tiny_model: Callable[..., TinyModel],
    tmp_path: Path,
    one_device: Mesh,
    record_property: Record,
) -> None:
    model = tiny_model(reference_variants.KINDS[row["kind"]], std=CALM_STD)
    seen = reference_variants.compare(model, row, tmp_path, one_device)
    for name, value in seen._asdict().items():
        record_property(name, value)
    assert seen.logits < TOLERANCE
    assert seen.gradients < TOLERANCE
    assert seen.returned < TOLERANCE
    assert seen.moved > CLEARLY
