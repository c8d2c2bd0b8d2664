"""Keeps each test's cache of encoded rows to itself."""

from __future__ import annotations

import datasets
import pytest


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    """No test may find what another, or the user, left in the cache."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder
