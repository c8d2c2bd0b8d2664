"""`jaxft adapter`: laws that hold in logits, what is printed, and folders that are never spoilt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import runs
import small_models

import jaxft
from jaxft.adapters import algebra, peft_format, serving

pytestmark = pytest.mark.slow

IDS = np.random.default_rng(1).integers(0, small_models.VOCABULARY, (2, 11)).astype(np.int32)
PATTERNS = {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"fc1": 5}, "use_rslora": True}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with a model, and adapters "a", "b" and "patterned" on it."""
    folder = tmp_path_factory.mktemp("adapters")
    small_models.write(folder / "model", small_models.OPT)
    tune(folder, "a", seed=1, r=3, target_modules=["q_proj", "fc1"])
    tune(folder, "b", seed=2, r=2, lora_alpha=5, target_modules=["v_proj", "fc1"], lora_bias=True)
    tune(folder, "patterned", seed=3, r=4, target_modules=["v_proj", "fc1"], **PATTERNS)
    tune(folder, "dora", seed=5, r=3, target_modules=["q_proj", "fc1"], use_dora=True)
    tune(folder, "head", seed=4, r=4, target_modules=["v_proj"], modules_to_save=["lm_head"])
    runs.write_rows(folder / "rows.jsonl", [{"text": "He said unto them, Go ye forth."}] * 3)
    return folder


def base(place: Path):
    return jaxft.AutoModelForCausalLM.from_pretrained(place / "model", dtype="float32")


def tune(place: Path, name: str, *, seed: int, **lora) -> None:
    """Save an adapter that moves the logits."""
    tuned = jaxft.get_peft_model(base(place), jaxft.LoraConfig(**lora))
    rng = np.random.default_rng(seed)
    leaves = jax.tree.map(
        lambda x: np.asarray(x) + 0.2 * rng.standard_normal(x.shape).astype(np.float32),
        tuned.trained_leaves(),
    )
    tuned.set_trained_leaves(leaves)
    tuned.save_pretrained(place / name)


def logits(place: Path, adapter: Path | None) -> np.ndarray:
    model = base(place)
    if adapter is not None:
        model = jaxft.PeftModel.from_pretrained(model, adapter)
    return np.asarray(model(IDS).logits)


def weights(place: Path, adapter: Path, to: Path) -> dict[str, np.ndarray]:
    """Return the tensors of the model that an adapter is merged into."""
    words = ("--adapter", str(adapter), "--output", str(to), "--dtype", "float32")
    assert runs.status("export", *words) == 0
    checkpoint = jaxft.AutoModelForCausalLM.from_pretrained(to).source.checkpoint()
    return {name: checkpoint.read(name) for name in checkpoint.infos()}


def run(*words: object) -> int:
    return runs.status("adapter", *map(str, words))


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())


def test_scaled_by_one_it_is_the_same_and_by_zero_the_base(place, tmp_path):
    assert run("scale", place / "a", 1, "--output", tmp_path / "same") == 0
    assert run("scale", place / "a", 0, "--output", tmp_path / "none") == 0
    assert run("scale", place / "a", 2, "--output", tmp_path / "twice") == 0
    ours = logits(place, place / "a")
    np.testing.assert_array_equal(logits(place, tmp_path / "same"), ours)
    close(logits(place, tmp_path / "none"), logits(place, None))
    assert np.abs(logits(place, tmp_path / "twice") - ours).max() > 1e-2


def test_added_to_its_opposite_it_is_the_base(place, tmp_path):
    assert run("scale", place / "b", -1, "--output", tmp_path / "away") == 0
    assert run("add", place / "b", tmp_path / "away", "--output", tmp_path / "none") == 0
    close(logits(place, tmp_path / "none"), logits(place, None))
    assert np.abs(logits(place, place / "b") - logits(place, None)).max() > 1e-2


@pytest.mark.parametrize(("at", "name"), [(0, "a"), (1, "b")])
def test_interpolated_to_an_end_it_is_that_end(place, tmp_path, at, name):
    words = (place / "a", place / "b", "--at", at, "--output", tmp_path / "end")
    assert run("interpolate", *words) == 0
    close(logits(place, tmp_path / "end"), logits(place, place / name))


def test_merging_and_interpolating_change_places(place, tmp_path):
    # Without the biases of B, which the tiny model's modules would take as well.
    words = ("interpolate", place / "a", place / "patterned", "--at", 0.3)
    assert run(*words, "--output", tmp_path / "between") == 0
    one, two, between = (
        weights(place, adapter, tmp_path / f"merged {number}")
        for number, adapter in enumerate((place / "a", place / "patterned", tmp_path / "between"))
    )
    assert one.keys() == two.keys() == between.keys()
    for name, tensor in between.items():
        np.testing.assert_allclose(tensor, 0.7 * one[name] + 0.3 * two[name], atol=2e-6)


def test_weights_say_how_much_of_each(place, tmp_path):
    words = ("--weights", "-1,0.5", "--output", tmp_path / "sum")
    assert run("add", place / "a", place / "b", *words) == 0
    found = algebra.read(tmp_path / "sum")
    expected = algebra.combine(
        [(algebra.read(place / "a"), -1.0), (algebra.read(place / "b"), 0.5)]
    )
    card = (tmp_path / "sum" / "README.md").read_text()
    called = [f"{place.name}/{name}" for name in "ab"]
    assert f"| Made from | -1 times {called[0]} and 0.5 times {called[1]} |" in card
    assert str(place) not in card
    tensors = algebra.tensors_of(expected)
    for name, tensor in algebra.tensors_of(found).items():
        np.testing.assert_array_equal(tensor, tensors[name])


def test_folded_it_gives_the_same_logits_from_one_rank_and_alpha(place, tmp_path, capsys):
    assert run("fold", place / "patterned", "--output", tmp_path / "folded") == 0
    content, tensors = peft_format.read_adapter(tmp_path / "folded")
    assert (content["r"], content["lora_alpha"], content["use_rslora"]) == (4, 4, False)
    assert {content["r"]} == {t.shape[0] for name, t in tensors.items() if "lora_A" in name}
    assert not content["rank_pattern"]
    close(logits(place, tmp_path / "folded"), logits(place, place / "patterned"))
    assert "vLLM" not in capsys.readouterr().err
    assert run("fold", place / "b", "--output", tmp_path / "biased") == 0
    assert "vLLM refuses it all the same: lora_bias is set." in capsys.readouterr().err


def test_the_loss_is_measured_from_the_base_to_the_adapter(place, tmp_path, capsys):
    words = (place / "a", "--data", place / "rows.jsonl", "--points", "0,0.5,1")
    assert run("interpolate", *words) == 0
    captured = capsys.readouterr()
    lines = [line.split() for line in captured.out.splitlines()]
    losses = {line[0]: float(line[1]) for line in lines if line and line[0] in ("0", "0.5", "1")}
    assert len(set(losses.values())) == 3
    lowest = min(losses, key=losses.get)
    said = f"From the base at 0 to {place / 'a'} at 1: the lowest loss is at {lowest}."
    assert captured.out.splitlines()[-1] == said
    # The middle is what is written there.
    assert run("scale", place / "a", 0.5, "--output", tmp_path / "half") == 0
    capsys.readouterr()
    half = (tmp_path / "half", "--data", place / "rows.jsonl", "--points", "1,0")
    assert run("interpolate", *half) == 0
    again = [line.split() for line in capsys.readouterr().out.splitlines()]
    found = {line[0]: float(line[1]) for line in again if line and line[0] in ("0", "1")}
    assert found == pytest.approx({"1": losses["0.5"], "0": losses["0"]}, abs=2e-4)


def test_the_loss_is_measured_between_two_adapters(place, tmp_path, capsys):
    words = (place / "a", place / "b", "--data", place / "rows.jsonl", "--points", "0,1")
    assert run("interpolate", *words, "--at", 0.5, "--output", tmp_path / "between") == 0
    out = capsys.readouterr().out
    assert (tmp_path / "between" / "adapter_model.safetensors").exists()
    losses = [line.split()[1] for line in out.splitlines() if line.split()[:1] in (["0"], ["1"])]
    for name, loss in zip("ab", losses, strict=True):
        assert run("interpolate", place / name, *words[2:4], "--points", "1") == 0
        lines = capsys.readouterr().out.splitlines()
        alone = next(line.split()[1] for line in lines if line.split()[:1] == ["1"])
        assert float(alone) == pytest.approx(float(loss), abs=2e-4)


def test_info_says_what_an_adapter_is(place, capsys):
    assert run("info", place / "patterned") == 0
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert f"base model {place / 'model'}" in lines
    for said in (
        "targets v_proj, fc1",
        "rank 2, 4",
        "alpha 5, 8, rank-stabilised",
        "adapted 4 modules",
        "tensors 8 of float32, 2.82 kB",
    ):
        assert said in lines
    assert any(line.startswith("vLLM no: it reads one r") for line in lines)
    row = next(line.split() for line in lines if line.startswith("fc1"))
    assert row[:5] == ["fc1", "2", "24", "40", "4"]
    assert run("info", place / "head") == 0
    assert "saved whole lm_head" in " ".join(capsys.readouterr().out.split())


def test_info_says_of_dora_what_can_be_said_without_the_base(place, capsys):
    assert run("info", place / "dora") == 0
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    rows = 2 * (24 + 40)
    assert f"DoRA yes, with the lengths of {rows} rows" in lines
    assert "vLLM no: use_dora is set" in lines
    assert "norm" not in out
    assert "cannot be said without the base" in out
    trained = sum(t.size for t in peft_format.read_adapter(place / "dora")[1].values())
    assert f"parameters {trained:,}" in lines


@pytest.mark.parametrize(("largest", "option"), [(3, ""), (2, " with --max-lora-rank 3,")])
def test_info_says_that_serving_hangs_on_the_class_too(place, capsys, monkeypatch, largest, option):
    monkeypatch.setattr(serving, "VLLM_RANK", largest)
    assert run("info", place / "a") == 0
    said = f"vLLM yes,{option} if its class for the model takes LoRA"
    assert said in [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_diff_says_in_what_two_adapters_differ(place, capsys):
    assert run("diff", place / "a", place / "b") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "lora_bias False True" in lines
    assert "r 3 2" in lines
    assert "tensors in both 4, 0 of them equal bit for bit" in lines
    assert "in the first only 4, on q_proj" in lines
    assert "in the second only 8, on fc1, v_proj" in lines
    assert any(line.startswith("q_proj") and line.endswith("-") for line in lines)
    assert run("diff", place / "a", place / "a") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "configuration the same" in out
    assert "8, 8 of them equal bit for bit" in out


def test_diff_names_modules_whatever_their_tensors_are(place, capsys):
    tune(place, "table", seed=6, r=2, target_modules=["embed_tokens"])
    tune(place, "tokens", seed=7, target_modules=["q_proj"], trainable_token_indices=[*range(9)])
    assert run("diff", place / "table", place / "tokens") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "in the first only 2, on embed_tokens" in lines
    assert "in the second only 5, on embed_tokens, q_proj" in lines
    assert "trainable_token_indices None 0, 1, 2, 3, 4, 5, 6, 7 and 1 more" in lines


def test_reports_of_many_ranks_stay_short(place, tmp_path, capsys):
    shutil.copytree(place / "a", tmp_path / "many")
    file = tmp_path / "many" / peft_format.CONFIG_FILE
    content = json.loads(file.read_text())
    content["alpha_pattern"] = {f"unused{number}": number + 1 for number in range(20)}
    file.write_text(json.dumps(content))
    assert run("info", tmp_path / "many") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "alpha 1, 2, 3, 4, 5, 6, 7, 8 and 12 more" in lines
    assert run("diff", place / "a", tmp_path / "many") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "unused7: 8 and 12 more" in said
    assert "unused8" not in said


def spoilt(place: Path, folder: Path, how) -> Path:
    shutil.copytree(place / "a", folder)
    how(folder)
    return folder


def cut_short(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


def edited(**changes):
    def edit(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (cut_short, "cannot be read"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "holds no object"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "does not exist"),
        (edited(use_dora=True), "where (40,) was expected: use_dora is true"),
        (edited(r=5), "and a rank of 5 in"),
        (edited(base_model_name_or_path="someone/else"), "for someone/else"),
    ],
)
def test_a_spoilt_adapter_or_one_of_another_base_leaves_nothing_behind(
    place, tmp_path, capsys, how, message
):
    other = spoilt(place, tmp_path / "spoilt", how)
    for first, second in ((place / "a", other), (other, place / "a")):
        assert run("add", first, second, "--output", tmp_path / "sum") == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["spoilt"]


def test_one_base_under_two_names_is_told_with_model(place, tmp_path):
    other = spoilt(place, tmp_path / "moved", edited(base_model_name_or_path="someone/else"))
    words = (place / "a", other, "--output", tmp_path / "sum", "--model", place / "model")
    assert run("add", *words) == 0
    assert algebra.read(tmp_path / "sum").base_model == str(place / "model")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scale", "a", "2", "--output", "b"], "exists and is not empty"),
        (["scale", "head", "2", "--output", "new"], "which was trained as a whole"),
        (["scale", "a", "nan", "--output", "new"], "FACTOR is nan"),
        (["scale", "dora", "2", "--output", "new"], "is DoRA's (use_dora)"),
        (["fold", "dora", "--output", "new"], "is DoRA's (use_dora)"),
        (["add", "a", "dora", "--output", "new"], "is DoRA's (use_dora)"),
        (["interpolate", "dora", "a", "--at", "0.5", "--output", "new"], "is DoRA's (use_dora)"),
        (["interpolate", "dora", "--data", "rows.jsonl"], "is DoRA's (use_dora)"),
        (["diff", "a", "dora"], "is DoRA's (use_dora)"),
        (["add", "a", "b", "--output", "a"], "exists and is not empty"),
        (["add", "a", "b", "--output", "new", "--weights", "1"], "--weights has 1 numbers"),
        (["add", "a", "b", "--output", "new", "--weights", "1,x"], "which is no list of numbers"),
        (["add", "a", "nowhere", "--output", "new"], "does not exist"),
        (["fold", "a", "--output", "b"], "exists and is not empty"),
        (["interpolate", "a", "b", "--at", "0.5"], "Neither --output nor --data"),
        (["interpolate", "a", "--output", "new"], "--at and --output go together"),
        (["interpolate", "a", "--at", "1", "--output", "b"], "exists and is not empty"),
        (["interpolate", "a", "--at", "inf", "--output", "new"], "--at is inf"),
        (["interpolate", "a", "--data", "nowhere.jsonl"], "does not exist"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_written(place, capsys, monkeypatch, words, message):
    monkeypatch.chdir(place)
    before = sorted(path.name for path in place.iterdir())
    assert run(*words) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in place.iterdir()) == before


VERBS = {
    "scale": lambda place: ("scale", place / "a", 2),
    "fold": lambda place: ("fold", place / "a"),
    "add": lambda place: ("add", place / "a", place / "b"),
    "interpolate": lambda place: ("interpolate", place / "a", "--at", 0.5),
}


@pytest.mark.parametrize("verb", VERBS)
def test_what_was_checked_is_in_the_folder(place, tmp_path, verb):
    assert run(*VERBS[verb](place), "--output", tmp_path / "new") == 0
    content = json.loads((tmp_path / "new" / "verification.json").read_text())
    assert content == {
        "compared": "every tensor in this folder, read back, with the one computed; no logits",
        "num_tensors": len(peft_format.read_adapter(tmp_path / "new")[1]),
        "max_difference": 0.0,
    }
    card = (tmp_path / "new" / "README.md").read_text()
    assert "| Verified | read back, every tensor is the one computed, bit for bit |" in card


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("where", ["model/new", "model/deep/new", "a/../model/new", "link/new"])
def test_the_base_models_folder_is_not_written_to(place, capsys, verb, where):
    if not (place / "link").is_symlink():
        (place / "link").symlink_to(place / "model")
    before = sorted(place.rglob("*"))
    assert run(*VERBS[verb](place), "--output", place / where) == 2
    assert "is the base model's folder, lies in it" in capsys.readouterr().err
    assert sorted(place.rglob("*")) == before
