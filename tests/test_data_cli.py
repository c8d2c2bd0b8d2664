"""`jaxft data check` and `show`, from the command line to what stands on which stream."""

from __future__ import annotations

import json

import datasets
import pytest
import runs

from jaxft.cli import main

WORDS = ("the", "sea", "old", "man", "boat", "fish", "sun", "bread", "king", "road", "tree")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a model, clean rows and a recipe, in which the command runs."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    runs.write_model(tmp_path / "model")
    write_rows(tmp_path / "train.jsonl", range(30))
    write_rows(tmp_path / "eval.jsonl", range(100, 110))
    (tmp_path / "recipe.yaml").write_text(
        "model: model\n"
        "data: {train: train.jsonl, eval: eval.jsonl, max_length: 128}\n"
        "train: {output_dir: run, per_device_train_batch_size: 2}\n"
    )
    return tmp_path


def words(seed):
    return " ".join(WORDS[(seed * 7 + step * (3 + seed % 5)) % len(WORDS)] for step in range(6))


def row(number):
    return {
        "messages": [
            {"role": "user", "content": f"{number}? {words(number)}"},
            {"role": "assistant", "content": f"{words(number + 3)} {number}."},
        ]
    }


def write_rows(file, numbers, *, more=()):
    rows = [*map(row, numbers), *more]
    file.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows))


def status(*words):
    with pytest.raises(SystemExit) as ended:
        main.main(words)
    return ended.value.code or 0


def test_a_check_says_what_there_is_and_that_nothing_is_doubtful(folder, capsys):
    assert status("data", "check", "recipe.yaml") == 0
    captured = capsys.readouterr()
    lines = [line.rstrip() for line in captured.out.splitlines()]
    assert lines[0] == "Data of recipe.yaml"
    assert lines[1] == " training  30 rows of train.jsonl"
    assert "tokens, " in lines[2]
    assert any(line.startswith(" an epoch") and line.endswith("4 steps") for line in lines)
    assert any("████" in line for line in lines)
    assert "Nothing doubtful was found." in lines
    assert "warning" not in captured.out
    supervised = [line for line in lines if line.startswith("[[")]
    assert len(supervised) == 3
    assert supervised[0] == f"[[{row(0)['messages'][1]['content']}<|im_end|>]]"
    assert max(len(line) for line in lines if not line.startswith("[[")) <= 80


def test_what_is_doubtful_is_said_with_its_place_and_how_to_accept_it(folder, capsys):
    odd = row(50)
    odd["messages"][1]["content"] = "The cafÃ© is open."
    write_rows(folder / "train.jsonl", range(30), more=[odd, row(3)])
    assert status("data", "check", "recipe.yaml") == 0
    out = capsys.readouterr().out
    assert "warning: Letters that were decoded wrongly: 1 of 32 training rows. [mojibake]" in out
    assert "\n  train.jsonl:31: " in out
    assert "\n  train.jsonl:32 = train.jsonl:4\n  -> Keep one of each.\n" in out
    assert "'data.accept=[mojibake, duplicates]'" in out
    assert status("data", "check", "recipe.yaml", "data.accept=[mojibake, duplicates]") == 0
    out = capsys.readouterr().out
    assert "warning" not in out
    assert "note: Letters that were decoded wrongly" in out


def test_what_is_meaningless_ends_with_status_two_after_the_report(folder, capsys):
    write_rows(folder / "train.jsonl", [5] * 100)
    assert status("data", "check", "recipe.yaml") == 2
    captured = capsys.readouterr()
    assert "stop: All 100 training examples are the same" in captured.out
    assert captured.err.splitlines()[-2].startswith("error: All 100 training examples are the same")
    assert "data.accept=[one_row]" in captured.err.splitlines()[-1]
    assert status("data", "check", "recipe.yaml", "data.accept=[one_row]") == 0


def test_a_run_stops_before_it_writes_anything_where_it_is_meaningless(folder, capsys):
    write_rows(folder / "train.jsonl", [5] * 100)
    assert status("train", "recipe.yaml", "train.max_steps=1") == 2
    assert "All 100 training examples are the same" in capsys.readouterr().err
    assert not (folder / "run").exists()


def test_json_is_one_object_with_the_same_figures_and_nothing_else(folder, capsys):
    assert status("data", "check", "recipe.yaml", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["train"]["rows"] == told["train"]["examples"] == 30
    assert told["held_out"]["rows"] == 10
    assert sum(bar["count"] for bar in told["train"]["lengths"]) == 30
    assert told["batches"]["steps_per_epoch"] == 4
    assert 0 < told["batches"]["fill"] <= 1
    assert told["findings"] == []
    assert len(told["examples"]) == 3
    assert told["examples"][0]["place"] == f"{folder}/train.jsonl:1"


def test_json_has_what_stops_the_run_too(folder, capsys):
    write_rows(folder / "train.jsonl", [5] * 100)
    assert status("data", "check", "recipe.yaml", "--json") == 2
    told = json.loads(capsys.readouterr().out)
    assert told["findings"][0]["level"] == "stop"


def test_steps_are_not_counted_for_a_mesh_of_another_machine(folder, capsys):
    assert status("data", "check", "recipe.yaml", "mesh.data=64") == 0
    captured = capsys.readouterr()
    assert "Steps are not counted" in captured.err
    assert "an epoch" not in captured.out


def test_a_stream_cannot_be_checked(folder, capsys):
    words = ["data", "check", "recipe.yaml", "data.streaming=true", "train.max_steps=3"]
    assert status(*words) == 2
    assert "data.streaming" in capsys.readouterr().err


@pytest.mark.parametrize("wanted", ["4", "train.jsonl:4"])
def test_a_row_is_shown_as_it_was_read_and_as_it_is_supervised(folder, capsys, wanted):
    assert status("data", "show", "recipe.yaml", "--row", wanted) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    question, answer = (message["content"] for message in row(3)["messages"])
    assert lines[0] == f"{folder}/train.jsonl:4, row 4"
    assert lines[1].split(maxsplit=1) == ["user", question]
    assert lines[2].split(maxsplit=1) == ["assistant", answer]
    assert f"[[{answer}<|im_end|>]]" in lines
    assert any(line.startswith("Example 1 of 1: ") for line in lines)


def test_a_held_out_row_is_shown_with_its_numbers(folder, capsys):
    assert status("data", "show", "recipe.yaml", "--row", "2", "--eval", "--ids") == 0
    out = capsys.readouterr().out
    assert row(101)["messages"][1]["content"] in out
    numbers = out.splitlines()[out.splitlines().index("Its tokens as numbers, in [[ ]]") + 1]
    supervised = numbers.split("[[")[1].split("]]")[0].split()
    assert len(supervised) == len(row(101)["messages"][1]["content"]) + 1
    assert all(number.isdecimal() for number in supervised)


def test_what_becomes_of_a_long_row_is_shown(folder, capsys):
    long = row(60)
    long["messages"][1]["content"] = words(9) * 8
    write_rows(folder / "train.jsonl", range(30), more=[long])
    for overlong, said in [
        ("truncate", "128 tokens, cut from "),
        ("split", ", piece 2 of the "),
        ("drop", "is left out: it is longer than data.max_length"),
        ("error", "data.max_length is 128"),
    ]:
        assert (
            status("data", "show", "recipe.yaml", f"data.overlong={overlong}", "--row", "31") == 0
        )
        assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--row", "31"], "there is no such row among the 30 there are"),
        (["--row", "rain.jsonl:4"], "there is no such row"),
        (["--row", "1", "--eval", "data.eval=null"], "neither data.eval nor data.hold_out"),
    ],
)
def test_a_row_that_is_not_there_is_two_lines(folder, capsys, words, said):
    assert status("data", "show", "recipe.yaml", *words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert said in lines[-2]
    assert lines[-1].startswith("  -> ")
