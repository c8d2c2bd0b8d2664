"""One name, one meaning: a class name stands once in the whole package."""

import ast
import collections
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "jaxft"

# The Python face has classes of PEFT's and transformers' names beside those of a recipe and a run.
OF_OTHER_LIBRARIES = {"LoraConfig", "Trainer"}


def test_a_class_name_stands_once():
    homes = collections.defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(str(path.relative_to(PACKAGE)))
    several = {name: files for name, files in homes.items() if len(files) > 1}
    assert {name: several[name] for name in several.keys() - OF_OTHER_LIBRARIES} == {}
