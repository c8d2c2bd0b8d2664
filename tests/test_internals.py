"""The code of docs/internals.md runs, and prints what the page says."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "internals.md"


def test_the_code_of_the_page_runs_and_prints_what_it_says(capsys):
    blocks = re.findall(r"```(python|text)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python", "text", "python", "text", "python", "python"]
    names: dict[str, object] = {}
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, str(PAGE), "exec"), names)
        else:
            printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
            assert printed == text.splitlines()
