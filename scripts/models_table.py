"""Write the tables of docs/models.md: what the tests see, and what is refused.

    python scripts/models_table.py

Needs the extra `[reference]`. Each test that compares logits with transformers' records its family,
its format and the difference it saw; a cell is the largest of them. The text around the tables is
left as it is.
"""

import collections
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from jaxft.models.families import refused

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "models.md"
TESTS = (
    "tests/reference/test_logits_reference.py",
    "tests/reference/test_multimodal_reference.py",
    "tests/reference/test_flax_reference.py",
    "tests/reference/test_round_trips_reference.py",
)
HANDLED, REFUSED = (
    f"<!-- {name}: scripts/models_table.py -->" for name in ("table", "not handled")
)
END = "<!-- end of the table -->"

Cells = dict[tuple[str, str], float]
Features = dict[str, dict[str, None]]  # by family, in the order they were met


def main() -> None:
    """Run the tests and write the table; a failed test leaves the page alone."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        tests = [str(ROOT / test) for test in TESTS]
        options = ["-q", "-k", "logits", "-o", "junit_family=xunit1"]  # the kind with properties
        command = [sys.executable, "-m", "pytest", *options, *tests]
        everything = os.environ | {"JAXFT_EVERY_FAMILY": "1"}
        done = subprocess.run(
            [*command, f"--junitxml={report}"], cwd=ROOT, env=everything, check=False
        )
        if done.returncode:
            sys.exit("A test failed: the table was not written.")
        text = table(*cells(report))
    page = PAGE.read_text(encoding="utf-8")
    page = replaced(replaced(page, HANDLED, text), REFUSED, refusals())
    PAGE.write_text(page, encoding="utf-8")


def replaced(page: str, begin: str, text: str) -> str:
    """Return the page with another table behind a mark."""
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(END)
    return f"{before}{begin}\n{text}\n{END}{after}"


def refusals() -> str:
    """Return what is known and not handled, a line for each kind."""
    lines = [f"| {kind} | {', '.join(names)} |" for kind, names in refused.by_kind().items()]
    return "\n".join(["| What it is | `model_type` |", "| --- | --- |", *lines])


def cells(report: Path) -> tuple[Cells, Features]:
    """Return the largest difference for each family and format, and each family's features."""
    found: Cells = collections.defaultdict(float)
    features: Features = collections.defaultdict(dict)
    for case in ElementTree.parse(report).iter("testcase"):
        seen = {each.attrib["name"]: each.attrib["value"] for each in case.iter("property")}
        if {"family", "format", "difference"} <= seen.keys():
            key = (seen["family"], seen["format"])
            found[key] = max(found[key], float(seen["difference"]))
        if "features" in seen:
            features[seen["family"]] |= dict.fromkeys(seen["features"].split("; "))
    return found, features


def table(found: Cells, features: Features) -> str:
    """Return the table in Markdown: a row for each family, a column for each format."""
    families, formats = (sorted({key[n] for key in found}) for n in (0, 1))
    formats.sort(key=lambda kind: (kind != "safetensors", kind))
    lines = [["Family", *formats, "Features reached"], ["---"] * (2 + len(formats))]
    for family in families:
        values = [found.get((family, kind)) for kind in formats]
        numbers = ["" if value is None else f"{value:.0e}" for value in values]
        lines.append([family, *numbers, ", ".join(features[family])])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
