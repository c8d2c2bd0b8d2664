"""The command line as a user meets it: a tiny run, killed and resumed, and every mistake."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import runs
import safetensors.numpy

import jaxft
from jaxft.training.run import finish

REPO = Path(jaxft.__file__).parent.parent

# The command line in a process of its own, which kills itself at a point of its run.
KILLED = """
import os, signal, sys
import jax
from jaxft.cli import main
from jaxft.training import checkpoint
from jaxft.training.run.log import Log

jax.config.update("jax_num_cpu_devices", 4)
point, at = sys.argv[1], int(sys.argv[2])
save, read = checkpoint.Checkpoints.save, Log.read

def save_and_die(self, step, state, progress):
    save(self, step, state, progress)  # which goes on in a thread
    if (point, step) == ("save", at):
        os.kill(os.getpid(), signal.SIGKILL)
    self.wait()

def read_or_die(self, step, figures, tokens):
    # The next step is under way by now.
    if (point, step) == ("step", at):
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, step, figures, tokens)

checkpoint.Checkpoints.save, Log.read = save_and_die, read_or_die
main.main(sys.argv[3:])
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with model, rows and recipe, and caches that belong to these tests alone."""
    path = tmp_path_factory.mktemp("end_to_end")
    with runs.own_caches(path / "datasets") as patch:
        patch.setattr(finish, "_ANSWER_TOKENS", 4)
        runs.write_recipe(path)
        yield path


@pytest.fixture(scope="module")
def finished(base):
    """The folder of a run that the command line has done."""
    assert runs.status("train", str(base / "recipe.yaml")) == 0
    return base / "run"


def killed(point: str, at: int, *words: str) -> None:
    command = [sys.executable, "-c", KILLED, point, str(at), *words]
    done = subprocess.run(
        command,
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_run_leaves_its_recipe_its_record_its_checkpoints_and_its_adapter(finished):
    assert {path.name for path in finished.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "checkpoints",
        "adapter",
    }
    assert runs.adapter_bytes(finished).keys() == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
        "generation_config.json",
        "verification.json",
    }
    assert runs.saved_steps(finished) == [2, 4, 6]
    losses = [line["loss"] for line in runs.records(finished) if "loss" in line]
    assert losses[-1] < losses[0] - 0.4


def test_the_same_command_again_changes_nothing(base, finished, capsys):
    before = snapshot(finished)
    assert runs.status("train", str(base / "recipe.yaml")) == 0
    captured = capsys.readouterr()
    assert "All 6 steps of this run are done; its result is written again." in captured.err
    assert f"Adapter: {finished / 'adapter'}" in captured.out
    assert snapshot(finished) == before


def test_the_recipe_in_the_runs_folder_is_the_same_command(finished, capsys):
    before = snapshot(finished)
    assert runs.status("train", str(finished / "config.yaml")) == 0
    assert "All 6 steps of this run are done" in capsys.readouterr().err
    assert snapshot(finished) == before


def test_a_run_killed_twice_ends_as_one_that_was_not(base, finished, tmp_path, capsys):
    words = ("train", str(base / "recipe.yaml"), f"train.output_dir={tmp_path / 'run'}")
    killed("save", 2, *words)  # before anything is known to be on disk
    killed("step", 5, *words)  # the sixth step has begun, the fourth is saved
    assert [line["step"] for line in runs.records(tmp_path / "run")][-1] == 4
    assert runs.status(*words) == 0
    assert "Going on after step 4 of 6" in capsys.readouterr().err
    assert runs.adapter_bytes(tmp_path / "run") == runs.adapter_bytes(finished)
    assert runs.records(tmp_path / "run") == runs.records(finished)


@pytest.mark.parametrize(("number", "ended"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_ends_with_its_status(
    base, finished, tmp_path, monkeypatch, capsys, number, ended
):
    from jaxft.training.run.log import Log

    read = Log.read

    def read_and_signal(self, step, figures, tokens):
        if step == 2:  # while the third is under way
            os.kill(os.getpid(), number)
        return read(self, step, figures, tokens)

    words = ("train", str(base / "recipe.yaml"), f"train.output_dir={tmp_path / 'run'}")
    with monkeypatch.context() as patch:
        patch.setattr(Log, "read", read_and_signal)
        assert runs.status(*words, "train.save_steps=100") == ended
    assert "Stopped after step 3 of 6, which is saved." in capsys.readouterr().err
    assert runs.saved_steps(tmp_path / "run") == [3]
    assert not (tmp_path / "run" / "adapter").exists()
    assert runs.status(*words) == 0
    assert runs.adapter_bytes(tmp_path / "run") == runs.adapter_bytes(finished)
    assert runs.records(tmp_path / "run") == runs.records(finished)


def test_the_adapter_answers(finished, capsys):
    words = ["--adapter", str(finished / "adapter"), "--prompt", "go", "--max-new-tokens", "5"]
    answers = []
    for more in ([], ["--temperature", "2", "--seed", "1"]):
        assert runs.status("generate", *words, *more) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0].endswith("\n")
    assert answers[0] != answers[1]


def test_an_adapter_on_another_model_is_refused(finished, tmp_path, capsys):
    other = runs.write_model(tmp_path / "other", width=64)
    words = ("--adapter", str(finished / "adapter"), "--model", str(other), "--prompt", "go")
    assert runs.status("generate", *words) == 2
    found, remedy = two_lines(capsys)
    assert "has shape (4, 32), and this base model's module needs (4, 64)" in found
    assert "the base model it was made for" in remedy


def test_an_adapter_that_is_not_there_is_said(tmp_path, capsys):
    assert runs.status("generate", "--adapter", str(tmp_path), "--prompt", "go") == 2
    assert f"{tmp_path / 'adapter_config.json'} does not exist" in two_lines(capsys)[0]


# Mistakes: what is done to a folder of model, rows and recipe, the words on the command line,
# and what the two lines must say. {0} is the folder.


def break_rows(*lines):
    """Return a function that puts lines in place of the training rows."""
    return lambda folder: (folder / "train.jsonl").write_text("".join(f"{x}\n" for x in lines))


def change_model(**changes):
    """Return a function that changes the model's config.json."""

    def change(folder):
        path = folder / "model" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def change_weights(change):
    """Return a function that changes the model's tensors."""

    def write(folder):
        path = folder / "model" / "model.safetensors"
        tensors = safetensors.numpy.load_file(path)
        change(tensors)
        safetensors.numpy.save_file(tensors, path)

    return write


def cut_weights(folder):
    path = folder / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def write_file(name):
    return lambda folder: (folder / name).write_text("mine")


ROW = json.dumps({"prompt": "a", "completion": "b"})
MISTAKES = {
    "an unknown key": (None, ["train.learning_rat=1"], "learning_rat`", "`train.learning_rate`"),
    "a wrong type": (None, ["train.learning_rate=fast"], "train.learning_rate", "number"),
    "a key in the file": (
        lambda folder: (folder / "recipe.yaml").write_text("model: m\nlora: {rank: 4}\n"),
        [],
        "{0}/recipe.yaml:2",
        "lora.r",
    ),
    "no such recipe": (lambda folder: (folder / "recipe.yaml").unlink(), [], "no recipe at", ""),
    "no such rows": (
        None,
        ["data.train={0}/trian.jsonl"],
        "{0}/trian.jsonl",
        "{0}/train.jsonl",
    ),
    "no such model": (None, ["model.path={0}/modle"], "{0}/modle", "Expected a model folder"),
    "no JSON": (break_rows(ROW, "{oops"), [], "{0}/train.jsonl:2", "whole JSON object"),
    "no fields": (break_rows(ROW, ROW, '{"words": 1}'), [], "{0}/train.jsonl:3", '"prompt"'),
    "no rows": (break_rows(), [], "{0}/train.jsonl is empty", '"prompt"'),
    "nothing to learn": (
        break_rows('{"messages": [{"role": "user", "content": "a"}]}'),
        [],
        "none of its 1 rows has a token to learn",
        "assistant",
    ),
    "no such chat template": (None, ["data.chat_template=chatmml"], "chatmml", "chatml"),
    "another architecture": (
        change_model(architectures=["BertModel"], model_type="bert"),
        [],
        "model_type 'bert', which is not handled",
        "llama",
    ),
    "a feature not handled": (change_model(hidden_act="mystery"), [], "mystery", ""),
    "no such target": (None, ["lora.target_modules=[q_prj]"], "'q_prj'", "'q_proj'"),
    "a rank too large": (None, ["lora.r=64"], "lora.r=64", "at most"),
    "weights cut short": (cut_weights, [], "{0}/model/model.safetensors", ""),
    "a tensor missing": (
        change_weights(lambda tensors: tensors.pop("model.norm.weight")),
        [],
        "model.norm.weight",
        "",
    ),
    "a tensor too many": (
        change_weights(lambda tensors: tensors.update(extra=tensors["model.norm.weight"])),
        [],
        "extra",
        "",
    ),
    "evaluation without rows": (None, ["data.eval=null"], "eval_strategy", "eval"),
    "a mesh that does not fit": (None, ["mesh.data=3"], "mesh data=3", "mesh.data=auto"),
    "the model's folder": (
        None,
        ["train.output_dir={0}/model"],
        "{0}/model is the base model's folder",
        "another folder",
    ),
    "a file for a folder": (write_file("run"), [], "{0}/run is a file", "another folder"),
    "nothing to resume": (
        None,
        ["train.resume_from_checkpoint=true"],
        "{0}/run/checkpoints holds no checkpoint",
        "auto",
    ),
}


def two_lines(capsys):
    """Return what was found and the remedy, the only two lines of the error, at the end."""
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [line for line in lines if line.startswith(("error: ", "  -> "))] == lines[-2:]
    assert "Traceback" not in captured.err
    return lines[-2].removeprefix("error: "), lines[-1].removeprefix("  -> ")


def snapshot(folder):
    """Return a digest of every file by its path."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_two_lines_and_costs_nothing(base, tmp_path, capsys, name):
    spoil, words, found, remedy = MISTAKES[name]
    shutil.copytree(base / "model", tmp_path / "model")
    runs.write_recipe(tmp_path)
    if spoil is not None:
        spoil(tmp_path)
    before = snapshot(tmp_path)
    words = [word.format(tmp_path) for word in words]
    assert runs.status("train", str(tmp_path / "recipe.yaml"), *words) == 2
    said = two_lines(capsys)
    assert found.format(tmp_path) in said[0]
    assert remedy.format(tmp_path) in said[1]
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "run").is_dir()


@pytest.mark.parametrize(
    ("words", "differs"),
    [
        (["train.learning_rate=1e-3"], "train.learning_rate (train.learning_rate was 0.02, now"),
        (["train.seed=8"], "train.seed was 7, now 8"),
        (["lora.lora_dropout=0.1"], "it differs in lora"),
        (["data.train={0}/eval.jsonl"], "it differs in data.train"),
        (["model.path={0}/other"], "it differs in model, weights"),
    ],
)
def test_another_runs_checkpoints_are_refused_and_kept(base, finished, capsys, words, differs):
    if not (base / "other").exists():
        runs.write_model(base / "other", seed=5)
    before = snapshot(finished)
    words = [word.format(base) for word in words]
    assert runs.status("train", str(base / "recipe.yaml"), *words) == 2
    found, remedy = two_lines(capsys)
    assert "holds checkpoints of another run" in found
    assert differs in found
    assert "another train.output_dir" in remedy
    assert snapshot(finished) == before


def test_a_gpu_that_jax_does_not_use_stops_the_run(base, tmp_path, monkeypatch, capsys):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho NVIDIA H100\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "rows.jsonl").write_text("no JSON, but nobody gets to read it")
    words = (f"data.train={tmp_path / 'rows.jsonl'}", f"train.output_dir={tmp_path / 'run'}")
    assert runs.status("train", str(base / "recipe.yaml"), *words) == 2
    found, remedy = two_lines(capsys)
    assert "NVIDIA H100" in found
    assert "cuda13" in remedy
    assert "JAX_PLATFORMS=cpu" in remedy
