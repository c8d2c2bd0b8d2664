"""The rooms of the package: imports point downward, and every file is short and introduced."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
PACKAGE = REPO / "jaxft"
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((REPO / "tests").rglob("*.py"))
MAX_LINES = 400

# A room may import itself and the rows above its own, nothing beside it. A room that is not
# listed here fails the test until it has its place.
ROWS = (
    ("errors",),
    ("config", "tree", "leaves", "console"),
    ("data",),
    ("parallel",),
    ("models",),
    ("weights",),
    ("lora",),
    ("adapters",),
    ("artifacts",),
    ("generation",),
    ("training",),
    ("verbs", "api"),
    ("cli",),
)
# The rooms inside the larger rooms, in the same way.
DATA_ROWS = (("rows",), ("sources", "chats"), ("examples",), ("batches", "check"))
LEAVES_ROWS = (("parts",), ("address",))
WEIGHTS_ROWS = (
    ("formats", "finite", "gptq"),
    ("names",),
    ("layout", "filling", "quantizing"),
    ("load",),
    ("places",),
    ("save", "base"),
)
TRAINING_ROWS = (
    ("losses", "optimizer", "checkpoint"),
    ("objective", "state"),
    ("step", "evaluate"),
    ("prepare",),
    ("run",),
)


def heights(rows: tuple[tuple[str, ...], ...]) -> dict[str, int]:
    """Return the row that each room stands in."""
    return {room: height for height, row in enumerate(rows) for room in row}


HEIGHT = {
    "jaxft": heights(ROWS),
    "jaxft.leaves": heights(LEAVES_ROWS),
    "jaxft.data": heights(DATA_ROWS),
    "jaxft.weights": heights(WEIGHTS_ROWS),
    "jaxft.training": heights(TRAINING_ROWS),
}


def room_of(file: Path, package: str = "jaxft") -> str:
    """Return the room that a file stands in; "" for the package's own __init__."""
    folder = REPO.joinpath(*package.split("."))
    first = file.relative_to(folder).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imported_rooms(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the room of each import of ours, those inside functions included."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"line {node.lineno}: a relative import")
        elif isinstance(node, ast.ImportFrom) and node.module == package:
            names = [f"{package}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            if name.startswith(f"{package}."):
                yield node.lineno, name.removeprefix(f"{package}.").split(".")[0]


def upward_imports(room: str, tree: ast.AST, package: str = "jaxft") -> list[str]:
    """List the imports of a file in `room` that do not point downward."""
    height = HEIGHT[package]
    if not room:  # the package's own __init__ may import every room
        return []
    return [
        f"line {line}: {room} imports {other}"
        for line, other in imported_rooms(tree, package)
        if other != room and height[other] >= height[room]
    ]


def faults(files: list[Path], of: Callable[[Path, ast.Module], list[str]]) -> list[str]:
    """List what `of` finds in files, each with the file's path."""
    return [
        f"{file.relative_to(REPO)}: {fault}"
        for file in files
        for fault in of(file, ast.parse(file.read_text()))
    ]


@pytest.mark.parametrize("package", HEIGHT)
def test_imports_point_downward(package):
    files = sorted(REPO.joinpath(*package.split(".")).rglob("*.py"))

    def upward(file: Path, tree: ast.Module) -> list[str]:
        return upward_imports(room_of(file, package), tree, package)

    assert faults(files, upward) == []


@pytest.mark.parametrize(
    ("room", "code"),
    [
        ("data", "from jaxft.training import step"),
        ("models", "import jaxft.weights.names"),
        ("tree", "from jaxft import console"),
        ("lora", "def f():\n    from jaxft import training"),
    ],
)
def test_an_upward_import_is_noticed(room, code):
    assert len(upward_imports(room, ast.parse(code))) == 1


def test_an_upward_import_inside_data_is_noticed():
    tree = ast.parse("from jaxft.data.batches import stream\nfrom jaxft.data import rows, check")
    assert len(upward_imports("chats", tree, "jaxft.data")) == 2


def test_contributing_states_the_order_of_the_rooms():
    order = " < ".join(", ".join(row) for row in ROWS)
    assert order in " ".join((REPO / "CONTRIBUTING.md").read_text().split())


@pytest.mark.parametrize("package", HEIGHT)
def test_every_room_has_its_row(package):
    files = REPO.joinpath(*package.split(".")).rglob("*.py")
    assert {room_of(file, package) for file in files} - {""} == HEIGHT[package].keys()


def test_every_file_is_short():
    num_lines = {file: len(file.read_text().splitlines()) for file in [*FILES, *TESTS]}
    assert {file: num for file, num in num_lines.items() if num > MAX_LINES} == {}


def test_every_file_of_the_package_is_introduced():
    def not_introduced(file: Path, tree: ast.Module) -> list[str]:
        return [] if ast.get_docstring(tree) else ["no docstring"]

    assert faults(FILES, not_introduced) == []


def test_importing_jaxft_loads_no_library():
    code = (
        "import sys; before = set(sys.modules); import jaxft; "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before}"
        " - set(sys.stdlib_module_names)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO, check=True)
    assert done.stdout.strip() == "['jaxft']"


def test_public_names_are_found_when_asked_for():
    import jaxft

    assert jaxft.load_config.__module__ == "jaxft.config.recipe"
    for name in jaxft.__all__:
        assert getattr(jaxft, name) is not None
    assert set(jaxft.__all__) <= set(dir(jaxft))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        jaxft.trian  # noqa: B018
