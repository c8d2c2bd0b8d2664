"""The command line: its help, its exit statuses, and what stands on which stream."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

import jaxft
from jaxft import console, verbs
from jaxft.cli import main
from jaxft.errors import DataError, Stopped
from jaxft.generation.sampling import Sampling


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "rows.jsonl").touch()
    text = f"model: m\ndata: {{train: rows.jsonl}}\ntrain: {{output_dir: {tmp_path}/run}}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    return tmp_path / "recipe.yaml"


@pytest.fixture
def replace_loop(monkeypatch):
    """Return a function that puts another `run` in place of the training loop's."""

    def replace(run):
        loop = types.ModuleType("jaxft.training.run.loop")
        loop.run = run
        package = types.ModuleType("jaxft.training.run")
        package.loop = loop
        monkeypatch.setitem(sys.modules, "jaxft.training.run", package)
        monkeypatch.setitem(sys.modules, "jaxft.training.run.loop", loop)

    return replace


def status(*words: str) -> int:
    """Run the command line in this process and return its exit status."""
    with pytest.raises(SystemExit) as ended:
        main.main(words)
    return ended.value.code or 0


def run_python(code: str, argv: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *argv],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "80"},
        cwd=Path(jaxft.__file__).parent.parent,
        check=False,
    )


@pytest.mark.parametrize(
    "words",
    [
        *(["--help"], ["train", "--help"], ["generate", "-h"], ["export", "-h"], ["inspect", "-h"]),
        ["adapter", "--help"],
        *(["adapter", verb, "-h"] for verb in ("info", "diff", "scale", "add", "fold")),
        ["adapter", "interpolate", "--help"],
        *(["data", "--help"], ["data", "check", "-h"], ["data", "show", "-h"]),
    ],
)
def test_help_shows_commands_that_can_be_typed(words, capsys):
    assert status(*words) == 0
    lines = capsys.readouterr().out.splitlines()
    examples = lines[lines.index("  Examples:") + 1 :]
    assert examples[0].startswith("    jaxft ")
    assert max(map(len, lines)) <= 80


def test_help_and_mistakes_load_no_heavy_library():
    code = """
import sys
from jaxft.cli.main import main
heavy = {"jax", "jaxlib", "flax", "transformers", "datasets", "torch", "numpy", "grain"}
for words in (
    *(["--help"], ["train", "--help"], ["inspect", "-h"], ["train", "nowhere.yaml"]),
    *(["adapter", "-h"], ["adapter", "add", "-h"], ["adapter", "diff", "a"]),
    *(["data", "-h"], ["data", "check", "-h"], ["data", "check", "nowhere.yaml"]),
    *(["train", "--options"], ["train", "--options", "lorra"]),
):
    try:
        main(words)
    except SystemExit:
        pass
print("LOADED", sorted(heavy & sys.modules.keys()))
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_version_is_the_packages(capsys):
    assert status("--version") == 0
    assert capsys.readouterr().out == f"jaxft {jaxft.__version__}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Commands:"),
        (["tarin"], "Did you mean 'train'?"),
        (["adapter", "ad"], "No such command 'ad'"),
        (["adapter", "scale", "x", "--output", "y"], "Missing argument 'FACTOR'"),
        (["data", "chek"], "No such command 'chek'"),
        (["data", "check", "--json"], "Missing argument 'RECIPE'"),
        (["data", "show", "x"], "Missing option '--row'"),
        (["adapter", "scale", "x", "two", "--output", "y"], "Invalid value for 'FACTOR'"),
        (["adapter", "scale", "x", "2", "--outptu", "y"], "Missing option '--output'"),
        (["train", "--tempo"], "No such option: --tempo"),
        (["train", "--options", "lorra"], "Did you mean `lora`?"),
        (["train", "--"], "no recipe is given"),
        (["generate", "--adapter", "x"], "Expected one of --prompt, --prompts and --chat"),
        (["generate", "--prompt", "x", "--chat"], "Expected one of --prompt, --prompts and"),
        (["inspect", "--revision", "x"], "Missing argument 'MODEL'"),
        (["export", "--adapter", "x"], "Missing option '--output'"),
        (["export", "--output", "x", "--format", "gguf"], "'gguf' is not one of"),
        (["export", "--output", "x", "--dtype", "float8"], "'float8' is not one of"),
        (
            ["generate", "--adapter", "x", "--prompt", "y", "--max-new-tokens", "0"],
            "'--max-new-tokens'",
        ),
    ],
)
def test_a_usage_mistake_ends_with_status_two(words, said, capsys):
    assert status(*words) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


def test_a_mistake_in_the_recipe_is_two_lines_on_standard_error(recipe, capsys):
    assert status("train", str(recipe), "lora.rank=4") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "error: override `lora.rank=4`: unknown key `lora.rank`",
        "  -> Did you mean `lora.r`?",
    ]


def test_train_hands_the_checked_recipe_to_the_loop(recipe, replace_loop):
    seen = []
    replace_loop(seen.append)
    assert status("train", str(recipe), "lora.r=3", "train.max_steps=-1") == 0
    assert [(run.lora.r, run.model.path) for run in seen] == [(3, "m")]


def test_the_options_of_a_recipe_fit_a_terminal_and_a_pipe(capsys, monkeypatch):
    assert status("train", "--options") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  train.learning_rate = 5e-05" in lines
    assert max(map(len, lines)) <= 80
    monkeypatch.setattr(console, "_results", Console(force_terminal=True, width=60))
    assert status("train", "--options") == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 60


def test_options_that_are_named_are_shown_alone(capsys):
    assert status("train", "--options", "mesh", "lora.r") == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "]
    assert names == ["lora.r", "mesh.data", "mesh.fsdp", "mesh.tensor"]


def test_a_fault_is_two_lines_and_status_one(recipe, replace_loop, capsys):
    def run(config):
        raise RuntimeError("broken\nin many lines")

    replace_loop(run)
    assert status("train", str(recipe)) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: RuntimeError: broken",
        "  -> This is a fault of jaxft. Run again with --debug for the traceback.",
    ]


@pytest.mark.parametrize("position", [0, 1, 2])
def test_debug_anywhere_on_the_line_shows_the_traceback(recipe, replace_loop, capsys, position):
    def run(config):
        raise DataError("rows.jsonl:3: no JSON", "Expected one object a line.")

    replace_loop(run)
    words = ["train", str(recipe)]
    words.insert(position, "--debug")
    assert status(*words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2:] == [
        "error: rows.jsonl:3: no JSON",
        "  -> Expected one object a line.",
    ]


def test_an_interrupt_ends_with_status_130(recipe, replace_loop, capsys):
    def run(config):
        raise KeyboardInterrupt

    replace_loop(run)
    assert status("train", str(recipe)) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(("number", "ended"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_a_signal_stopped_ends_with_its_status(recipe, replace_loop, number, ended):
    def run(config):
        raise Stopped(number)

    replace_loop(run)
    assert status("train", str(recipe)) == ended


class FakeAnswerer:
    """Stands for a loaded model: notes what it is asked."""

    def __init__(self, asked):
        self.asked = asked

    def answer(self, prompt):
        yield from ("Good ", f"morrow. ({prompt})")

    def answers(self, file, batch_size):
        yield from (f'{{"{file}": {batch_size}}}', "{}")

    def chat(self, lines):
        return (iter([line.upper()]) for line in lines)


@pytest.fixture
def asked(monkeypatch):
    """Put the fake in the place of a model; returns the list of what was asked of it."""
    calls = []
    generation = types.ModuleType("jaxft.verbs.generate")
    generation.Asked = lambda **options: calls.append(options)
    generation.load = FakeAnswerer
    monkeypatch.setitem(sys.modules, "jaxft.verbs.generate", generation)
    monkeypatch.setattr(verbs, "generate", generation, raising=False)
    return calls


def test_generate_streams_the_answer_to_standard_output(asked, capsys):
    words = ["--adapter", "runs/a", "--prompt", "Hello.", "--temperature", "0.5", "--seed", "3"]
    words += ["--top-k", "4", "--top-p", "0.9", "--min-p", "0.1", "--repetition-penalty", "1.2"]
    words += ["--stop-string", "x", "--stop-string", "y z", "--eos-token-id", "7"]
    assert status("generate", *words) == 0
    assert capsys.readouterr().out == "Good morrow. (Hello.)\n"
    assert asked == [
        {
            "adapter": Path("runs/a"),
            "model": None,
            "max_new_tokens": 128,
            "how": Sampling(0.5, 4, 0.9, 0.1, 1.2, 3),
            "stop_strings": ["x", "y z"],
            "eos_token_ids": [7],
        }
    ]


def test_generate_answers_a_file_in_json_lines(asked, capsys):
    assert status("generate", "--model", "m", "--prompts", "f.jsonl", "--batch-size", "3") == 0
    assert capsys.readouterr().out == '{"f.jsonl": 3}\n{}\n'


def test_generate_chats_over_the_lines_of_standard_input(asked, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    assert status("generate", "--model", "m", "--chat") == 0
    assert capsys.readouterr().out == "ONE\n\nTWO\n\n"


def test_a_share_out_of_its_range_is_refused(asked, capsys):
    assert status("generate", "--model", "m", "--prompt", "x", "--repetition-penalty", "0") == 2
    assert "repetition_penalty is 0.0." in capsys.readouterr().err
    assert asked == []
