"""Logits of two models compared, against plain numpy, and the record of it."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny

from jaxft import tree as trees
from jaxft.artifacts import verify
from jaxft.artifacts.verify import Model, Rows
from jaxft.data.examples.tokens import Example
from jaxft.parallel import mesh as meshes

NETWORK = tiny.adapted()
LIVE = tiny.random_leaves(NETWORK, seed=1)
# Of three lengths, so that two of them are padded.
TOKENS = [list(range(3, 20)), [7, 5, 99], list(range(100, 60, -1))]
ROWS = Rows("held-out rows", TOKENS)


def moved(size: float):
    """Return the same leaves, B of one adapter moved."""
    tree = jax.tree.map(np.copy, LIVE)
    tree["groups"]["0"]["0"]["attn"]["q"]["lora_b"] += size
    return tree


def compare(written, rows=ROWS, mesh=None):
    mesh = mesh or tiny.one_device()
    live, other = (Model(each, tiny.placed(tree, mesh)) for each, tree in written_beside(written))
    return verify.compare(live, other, rows, mesh=mesh, dtype="float32")


def written_beside(written):
    return [(NETWORK, LIVE), (NETWORK, written)]


def logits(tree, row):
    ids = np.asarray(row, np.int32)[None]
    micro = {"input_ids": ids, "segment_ids": np.ones_like(ids)}
    return tiny.forward_logits(NETWORK, tree, micro | {"positions": np.arange(len(row))[None]})[0]


def log_softmax(x):
    x = x.astype(np.float64) - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_a_model_is_itself_exactly():
    found = compare(LIVE)
    assert (found.absolute, found.relative, found.kl) == (0, 0, 0)
    assert found.largest_logit > 1


def test_the_differences_are_those_of_rows_without_padding():
    other = moved(0.03)
    ours, theirs = ([logits(tree, row) for row in TOKENS] for tree in (LIVE, other))
    absolute = max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True))
    pairs = [(log_softmax(a), log_softmax(b)) for a, b in zip(ours, theirs, strict=True)]
    divergences = np.concatenate([(np.exp(p) * (p - q)).sum(-1) for p, q in pairs])
    for mesh in (tiny.one_device(), meshes.make_mesh(4, 1, 1), meshes.make_mesh(1, 2, 2)):
        found = compare(other, mesh=mesh)
        assert found.largest_logit == pytest.approx(max(np.abs(a).max() for a in ours), rel=1e-5)
        assert found.absolute == pytest.approx(absolute, rel=1e-3)
        assert found.relative == pytest.approx(absolute / found.largest_logit, rel=1e-3)
        assert found.kl == pytest.approx(divergences.mean(), rel=1e-2)
    assert absolute > 1e-2


def test_another_scaling_is_another_model():
    other = trees.map_with_path(
        lambda path, leaf: leaf * 1.25 if path.endswith("lora_scaling") else leaf, LIVE
    )
    assert compare(other).relative > 1e-2


def test_what_is_no_number_is_never_within_a_tolerance():
    assert not compare(moved(np.nan)).relative <= 1e9


@pytest.mark.parametrize(
    ("largest", "absolute", "expected"), [(0, 0, 0), (0, 1, np.inf), (4, 1, 0.25)]
)
def test_a_relative_difference_is_of_the_largest_logit(largest, absolute, expected):
    assert verify.Difference(largest, absolute, 0.0).relative == expected


def test_the_first_rows_are_taken_and_cut_to_the_models_positions():
    examples = [
        Example(np.arange(n, dtype=np.int32), np.ones(n, np.uint8)) for n in (3, 200, 46, 7, 9)
    ]
    rows = verify.first_rows("training rows", examples, NETWORK)
    assert list(map(len, rows.tokens)) == [3, 128, 46, 7]
    few = dataclasses.replace(NETWORK, spec=tiny.LEARNED)
    assert (
        max(map(len, verify.first_rows("rows", examples, few).tokens)) == few.spec.max_tokens == 44
    )
    assert verify.first_rows("rows", examples[:1], NETWORK).tokens == [[0, 1, 2]]


def test_without_rows_tokens_are_from_all_of_the_vocabulary():
    (row,) = verify.spread_row(NETWORK).tokens
    assert (row[0], row[-1], len(row)) == (0, NETWORK.spec.vocab_size - 1, 128)


def test_the_record_is_readable_and_the_same_for_equal_runs(tmp_path):
    found = verify.Difference(12.34567, 0.00123456, 3.21e-9)
    content = verify.report("this with that", ROWS, found, dtype="float32", tolerance=1e-3)
    verify.write(tmp_path, content)
    text = (tmp_path / "verification.json").read_text()
    assert json.loads(text) == {
        "compared": "this with that",
        "rows": "held-out rows",
        "num_rows": 3,
        "num_tokens": 60,
        "computed_in": "float32",
        "largest_logit": 12.3,
        "max_difference": 0.00123,
        "max_relative_difference": 0.0001,
        "mean_kl": 3.21e-09,
        "tolerance": 0.001,
    }
    verify.write(tmp_path, content)
    assert (tmp_path / "verification.json").read_text() == text
    said = verify.in_words(content)
    assert said == "the live model's logits to 1e-04 of the largest, on 3 rows (held-out rows)"
