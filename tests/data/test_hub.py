"""Data sets of the Hub, which no test may reach, and folders that `save_to_disk` wrote."""

from __future__ import annotations

import datasets
import pyarrow
import pytest

from jaxft.config import SourceConfig
from jaxft.data.sources.source import RowSource, open_rows, rows_of
from jaxft.errors import DataError

TRAIN = datasets.Dataset.from_dict({"text": ["a", "b", "c"]})
TEST = datasets.Dataset.from_dict({"text": ["d"]})


@pytest.fixture
def hub(monkeypatch):
    """Two splits under any name, and a list of what was asked for."""
    asked = []

    def load_dataset(path, *, name, split, revision):
        asked.append((path, name, split, revision))
        splits = datasets.DatasetDict(train=TRAIN, test=TEST)
        return splits[split] if split else splits

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def open_one(path, **options) -> RowSource:
    (source,) = open_rows([SourceConfig(path=str(path), **options)], None, "train")
    return source


def complaint(path, **options) -> str:
    with pytest.raises(DataError) as caught:
        list(open_one(path, **options))
    assert len(str(caught.value).split("\n")) == 2
    return str(caught.value)


def texts(source) -> list[str]:
    return [row.text for row in source]


def test_a_name_on_the_hub_is_its_training_split(hub):
    source = open_one("owner/name")
    assert hub == [("owner/name", None, None, None)]
    assert texts(source) == texts(source) == ["a", "b", "c"]
    assert source.name == "owner/name train"
    assert [str(row.place) for row in source][2] == "owner/name train row 2"
    assert source.digest() == rows_of(TRAIN, "d").digest()


def test_configuration_split_and_revision_are_handed_on(hub):
    source = open_one("owner/name", config="main", split="test", revision="v1")
    assert hub == [("owner/name", "main", "test", "v1")]
    assert texts(source) == ["d"]
    assert source.name == "owner/name main test"


def test_a_file_that_is_here_is_not_asked_of_the_hub(hub, tmp_path, monkeypatch):
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").mkdir()
    (tmp_path / "owner" / "name" / "rows.txt").write_text("here")
    monkeypatch.chdir(tmp_path)
    assert texts(open_one("owner/name")) == ["here"]
    assert "owner/nam does not exist" in complaint("owner/nam")
    assert "as on the Hub" in complaint("owner/name", split="train")
    assert not hub


def test_without_the_network_the_error_says_every_reason():
    message = complaint("owner/name")
    assert message.startswith("owner/name is not a file or folder here, and the Hub gives no such")
    assert "HF_HUB_OFFLINE" in message


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("Config name is missing.\nPlease pick one among: ['a', 'b']"), "Set `config:`"),
        (ValueError('Unknown split "x". Should be one of ["train"].'), "Set `split:`"),
        (FileNotFoundError("no such data set"), "no such data set (FileNotFoundError)"),
        (RuntimeError("Dataset scripts are no longer supported"), "scripts are no longer"),
        (ConnectionError(), "ConnectionError"),
    ],
)
def test_what_the_hub_answers_is_said(monkeypatch, error, words):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    assert words in complaint("owner/name")


def test_a_saved_folder_has_the_rows_that_were_saved(tmp_path):
    TRAIN.select([2, 0]).save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=TRAIN, test=TEST).save_to_disk(tmp_path / "two")
    assert texts(open_one(tmp_path / "one")) == ["c", "a"]
    assert texts(open_one(tmp_path / "two")) == ["a", "b", "c"]
    assert texts(open_one(tmp_path / "two", split="test")) == ["d"]
    assert "one of: train, test" in complaint(tmp_path / "two", split="dev")


def test_the_only_split_needs_no_name(tmp_path):
    datasets.DatasetDict(dev=TEST).save_to_disk(tmp_path / "one")
    assert texts(open_one(tmp_path / "one")) == ["d"]


def test_a_damaged_saved_folder_is_refused(tmp_path):
    TRAIN.save_to_disk(tmp_path / "one")
    (tmp_path / "one" / "dataset_info.json").write_text("{")
    assert "cannot be read as `save_to_disk`" in complaint(tmp_path / "one")


def test_an_empty_split_is_refused(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: TRAIN.select([]))
    assert complaint("owner/name", split="dev").startswith("owner/name dev is empty")


def test_pictures_in_a_table_are_not_decoded(tmp_path):
    pictures = pyarrow.array([{"bytes": b"no picture", "path": None}])
    table = pyarrow.table({"text": ["a"], "image": pictures})
    dataset = datasets.Dataset(table).cast_column("image", datasets.Image())
    dataset.save_to_disk(tmp_path / "one")
    assert texts(open_one(tmp_path / "one")) == ["a"]
