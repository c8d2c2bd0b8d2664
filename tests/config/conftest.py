"""A recipe in a folder of its own."""

from __future__ import annotations

import pytest
from recipe_builders import RECIPE


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A valid recipe in a folder of its own, with the command running beside it."""
    folder = tmp_path / "recipes"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "rows.jsonl").touch()
    (folder / "data" / "held_out.jsonl").touch()
    (folder / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return folder / "recipe.yaml"
