"""The errors: two sentences each, and the nearest name."""

from __future__ import annotations

import pickle

import pytest

from jaxft import errors


def test_an_error_keeps_both_sentences():
    error = errors.DataError("rows.jsonl:3: no JSON", "Expected one object a line.")
    assert error.found == "rows.jsonl:3: no JSON"
    assert error.remedy == "Expected one object a line."
    assert str(error) == "rows.jsonl:3: no JSON\nExpected one object a line."


def test_an_error_survives_another_process():
    error = pickle.loads(pickle.dumps(errors.WeightsError("found", "remedy")))
    assert (type(error), error.found, error.remedy) == (errors.WeightsError, "found", "remedy")


@pytest.mark.parametrize(
    "kind",
    [
        errors.ConfigError,
        errors.DataError,
        errors.UnsupportedModelError,
        errors.WeightsError,
        errors.AdapterError,
        errors.CheckpointError,
        errors.DeviceError,
        errors.TrainingError,
    ],
)
def test_every_kind_can_be_caught_as_one(kind):
    with pytest.raises(errors.JaxftError, match="found"):
        raise kind("found", "remedy")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("learnin_rate", "learning_rate"),
        ("Learning_Rate", "learning_rate"),
        ("max_step", "max_steps"),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_nearest_finds_the_likeliest_spelling_or_nothing(name, near):
    assert errors.nearest(name, ["learning_rate", "max_steps", "seed"]) == near


def test_nearest_of_nothing_is_nothing():
    assert errors.nearest("name", []) == ""


def test_nearest_keeps_the_spelling_of_the_choice():
    assert errors.nearest("q_PROJ", ["Q_proj"]) == "Q_proj"
