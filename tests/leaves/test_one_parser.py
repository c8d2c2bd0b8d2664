"""Paths of leaves are taken apart in `leaves/address.py` alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import jaxft
from jaxft.leaves.parts import PARTS

PACKAGE = Path(jaxft.__file__).parent
PARSER = "leaves/address.py"
CUTS = {
    *("split", "rsplit", "partition", "rpartition", "removeprefix", "removesuffix", "replace"),
    *("strip", "lstrip", "rstrip", "startswith", "endswith", "find", "rfind", "index", "rindex"),
    *("compile", "match", "fullmatch", "search", "sub", "subn", "findall", "finditer"),
}
# These cut other things at a slash, or at the branches of any tree.
OTHERS = {
    "tree.py": "a tree's branches, whatever they mean",
    "config/paths.py": "names on the Hub",
    "models/families/foreign_quantization.py": "names on the Hub",
    "verbs/data_reports.py": "paths of files",
    "verbs/data_show.py": "paths of files",
    "weights/formats/flax_names.py": "Flax's own paths",
    "weights/formats/msgpack_writer.py": "Flax's own paths",
    "weights/formats/torch_pickle.py": "names in an archive",
}


def texts(node: ast.AST) -> Iterator[str]:
    """Yield the literal strings of an argument: its own, of an f-string's parts, of a tuple's."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        for part in node.values:
            yield from texts(part)
    elif isinstance(node, ast.Tuple):
        for part in node.elts:
            yield from texts(part)
    elif isinstance(node, ast.BinOp):
        yield from texts(node.left)
        yield from texts(node.right)


def is_of_a_path(text: str) -> bool:
    return "/" in text or text.endswith(tuple(name for name in PARTS if "_" in name))


def cuts(tree: ast.AST) -> list[str]:
    """List where a file cuts strings at what only paths of leaves have, or names their root."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
            given = [text for argument in arguments for text in texts(argument)]
            if node.func.attr in CUTS and any(map(is_of_a_path, given)):
                found.append(f"line {node.lineno}: {node.func.attr}({given})")
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and id(node) not in docstrings and "groups/" in node.value:
            found.append(f"line {node.lineno}: {node.value!r}")
    return found


def test_no_other_file_takes_the_path_of_a_leaf_apart():
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE).as_posix()
        # `data` knows nothing of models, and cuts what people wrote.
        if name not in (PARSER, *OTHERS) and not name.startswith("data/"):
            found[name] = cuts(ast.parse(file.read_text()))
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_every_exception_is_needed():
    assert all(cuts(ast.parse((PACKAGE / name).read_text())) for name in (PARSER, *OTHERS))


@pytest.mark.parametrize(
    "code",
    [
        'path.split("/")[-1]',
        'path.rpartition("/")',
        'path.startswith(("embed/", "head/"))',
        'path.removesuffix("/lora_a")',
        'path.endswith("lora_b")',
        'module.endswith(f"/{fused}")',
        'f"{prefix}/{path}".lstrip("/")',
        're.compile(_BLOCK + r"attn/q/kernel")',
        're.compile(r"(?:.*/)?lora_(a|b)")',
        '_BLOCK = r"groups/\\d+/\\d+/"',
        'prefix = f"groups/{g}/{p}"',
    ],
)
def test_taking_a_path_apart_is_noticed(code):
    assert len(cuts(ast.parse(code))) == 1


def test_names_of_peft_and_joined_paths_are_let_be():
    code = 'name.partition(".lora_"); leaves[f"{module}/kernel"]; """As in groups/0/0."""'
    assert cuts(ast.parse(code)) == []
