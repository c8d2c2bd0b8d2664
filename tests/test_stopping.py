"""A tuned model stops when it is asked, whatever its template writes after a reply."""

from __future__ import annotations

import pytest
import runs
import stopping_runs

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", stopping_runs.KINDS)
def test_a_model_that_learned_to_stop_does(kind, tmp_path, capsys):
    run = stopping_runs.train(tmp_path, kind)
    capsys.readouterr()
    words = ("--prompt", "go forth 3", "--max-new-tokens", "20")
    assert runs.status("generate", "--adapter", str(run / "adapter"), *words) == 0
    assert capsys.readouterr().out == "yes\n"
