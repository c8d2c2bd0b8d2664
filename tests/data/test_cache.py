from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxft.data.examples import cache
from jaxft.data.examples.chunk import TABLE, Chunk
from jaxft.data.examples.tally import Count, Tally
from jaxft.data.rows.row import RowPlace

FILES = ["a.jsonl", "b.jsonl"]
DAY_S = 24 * 3600


def make_chunk(*examples, file="a.jsonl", number=1):
    """Return a chunk of examples, lists of tokens all of which are supervised."""
    start, lines = 0, []
    for ids in examples:
        lines.append((start, len(ids), len(ids), len(ids), max(ids), 0, number + len(lines)))
        start += len(ids)
    tally = Tally(rows=len(examples), examples=len(examples), tokens=start, targets=start)
    if examples:
        tally.notes["templated"] = Count(len(examples), RowPlace(file, number))
    return Chunk(
        np.array([token for ids in examples for token in ids], np.int32),
        np.ones(start, np.uint8),
        np.array(lines, TABLE),
        [(file, "line")],
        tally,
    )


CHUNKS = [make_chunk([1, 2, 3], [4]), make_chunk(), make_chunk([5, 6], file="b.jsonl", number=7)]


def contents(stored):
    return (
        stored.input_ids.tolist(),
        stored.loss_mask.tolist(),
        stored.table.tolist(),
        stored.files,
        stored.report,
        stored.fingerprint,
        stored.end_ids,
    )


def test_chunks_are_read_as_they_were_written(tmp_path):
    report = cache.write(tmp_path / "k", CHUNKS, 9, FILES)
    stored = cache.load(tmp_path / "k", FILES)
    assert stored.input_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert stored.table["start"].tolist() == [0, 3, 4]
    assert stored.table["file"].tolist() == [0, 0, 1]
    assert stored.table["number"].tolist() == [1, 2, 7]
    assert stored.files == [("a.jsonl", "line"), ("b.jsonl", "line")]
    assert stored.report == report
    assert report.first == {"templated": "a.jsonl:1"}
    assert report.notes == {"templated": 3}
    assert not stored.input_ids.flags.writeable


@hypothesis.settings(max_examples=25)  # each waits for the disk
@hypothesis.given(st.lists(st.lists(st.lists(st.integers(0, 9), min_size=1), max_size=3)))
def test_the_cache_is_the_same_however_examples_are_cut_into_chunks(tmp_path_factory, parts):
    folder = tmp_path_factory.mktemp("cache")
    together = [ids for part in parts for ids in part]
    numbers = np.cumsum([1, *map(len, parts)]).tolist()
    chunks = [
        make_chunk(*part, number=number) for part, number in zip(parts, numbers, strict=False)
    ]
    cache.write(folder / "parts", chunks, 9, FILES)
    cache.write(folder / "whole", [make_chunk(*together)], 9, FILES)
    stored, whole = (cache.load(folder / name, FILES) for name in ("parts", "whole"))
    assert (stored is None) == (whole is None) == (not together)
    if together:
        assert contents(stored) == contents(whole)


def test_nothing_is_kept_of_no_example(tmp_path):
    assert cache.write(tmp_path / "k", [make_chunk()], 9, FILES).examples == 0
    assert list(tmp_path.iterdir()) == []


def test_files_that_were_moved_get_their_new_names(tmp_path):
    cache.write(tmp_path / "k", CHUNKS, 9, FILES)
    stored = cache.load(tmp_path / "k", ["x", "y"])
    assert stored.files == [("x", "line"), ("y", "line")]
    assert stored.report.first == {"templated": "x:1"}


def test_what_was_read_can_be_taken_out_of_memory_and_read_again(tmp_path):
    def resident():
        """Return how much of the tokens is in the memory of this process, in kB."""
        maps = Path("/proc/self/smaps").read_text()
        return int(maps.split(f"{tmp_path}/k/tokens\n")[1].split("Rss:")[1].split()[0])

    cache.write(tmp_path / "k", [make_chunk(list(range(50_000)))], 9, FILES)
    stored = cache.load(tmp_path / "k", FILES)
    ids = stored.input_ids[:]
    assert ids.sum() == sum(range(50_000))
    assert resident() >= 4 * 50_000 // 1024
    stored.release()
    assert resident() == 0
    assert ids.sum() == sum(range(50_000))


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def _lengthen(path):
    path.write_bytes(path.read_bytes() + b" ")


def _garble(path):
    path.write_text(path.read_text().replace('"fingerprint"', '"print"'))


DAMAGES = {
    **{f"{name} missing": (name, os.remove) for name in ("tokens", "masks", "table", "facts.json")},
    **{f"{name} cut": (name, _cut) for name in ("tokens", "masks", "table", "facts.json")},
    **{f"{name} longer": (name, _lengthen) for name in ("tokens", "masks", "table")},
    "facts garbled": ("facts.json", _garble),
    "facts of nothing": ("facts.json", lambda path: path.write_text("[]")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_noticed_and_made_anew(tmp_path, damage):
    folder = tmp_path / "k"
    cache.write(folder, CHUNKS, 9, FILES)
    whole = contents(cache.load(folder, FILES))
    name, break_it = DAMAGES[damage]
    break_it(folder / name)
    assert cache.load(folder, FILES) is None
    cache.write(folder, CHUNKS, 9, FILES)
    assert contents(cache.load(folder, FILES)) == whole
    assert list(tmp_path.iterdir()) == [folder]


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    def interrupted():
        yield CHUNKS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.write(tmp_path / "k", interrupted(), 9, FILES)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_nothing_that_is_taken_for_whole(tmp_path):
    code = (
        "import os, sys; from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from test_cache import CHUNKS, FILES, cache\n"
        "def killed():\n"
        "    yield from CHUNKS\n"
        "    os.kill(os.getpid(), 9)\n"
        "cache.write(Path(sys.argv[1]) / 'k', killed(), 9, FILES)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), os.path.dirname(__file__)]
    assert subprocess.run(command, check=False).returncode == -9
    (left,) = tmp_path.iterdir()
    assert cache.load(tmp_path / "k", FILES) is None
    assert cache.load(left, FILES) is None
    # It could be the work of a run that goes on, until nothing was added to it for a day.
    cache.write(tmp_path / "k", CHUNKS, 9, FILES)
    assert left.exists()
    for path in (left, *left.iterdir()):
        os.utime(path, (time.time() - DAY_S - 9,) * 2)
    cache.write(tmp_path / "other", CHUNKS, 9, FILES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k", "other"]


def test_of_two_runs_that_write_the_same_one_is_kept_and_both_find_it(tmp_path):
    folder = tmp_path / "k"
    held = []

    def slow():
        yield CHUNKS[0]
        cache.write(folder, CHUNKS, 9, FILES)
        held.append((cache.load(folder, FILES), folder.stat().st_ino))
        yield from CHUNKS[1:]

    cache.write(folder, slow(), 9, FILES)
    assert list(tmp_path.iterdir()) == [folder]
    ((first, number),) = held
    assert contents(cache.load(folder, FILES)) == contents(first)
    assert folder.stat().st_ino == number  # the first that is whole stays


def test_the_facts_are_plain_json(tmp_path):
    cache.write(tmp_path / "k", CHUNKS, 9, FILES)
    facts = json.loads((tmp_path / "k" / "facts.json").read_text())
    assert facts["sizes"] == {"tokens": 24, "masks": 6, "table": 3 * TABLE.itemsize}
    assert facts["report"]["tokens"] == 6
