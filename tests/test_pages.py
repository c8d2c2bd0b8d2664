"""The code of docs/internals.md and docs/design.md runs, and prints what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize(
    ("page", "kinds"),
    [
        ("internals.md", ["python", "text", "python", "text", "python", "python"]),
        ("design.md", ["python", "text", "python", "text"]),
    ],
)
def test_the_code_of_the_page_runs_and_prints_what_it_says(page, kinds, capsys):
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```(python|text)\n(.*?)```", text, re.DOTALL)
    assert [kind for kind, _ in blocks] == kinds
    names: dict[str, object] = {}
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, page, "exec"), names)
        else:
            printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
            assert printed == block.splitlines()
