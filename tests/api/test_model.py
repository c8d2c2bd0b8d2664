"""Handles on models: lazy, called and generated from like a model, saved and read again."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest
import small_models

import jaxft
from jaxft import tree as trees
from jaxft.errors import AdapterError, ConfigError, DataError, UnsupportedModelError, WeightsError
from jaxft.weights import base

IDS = np.random.default_rng(0).integers(0, small_models.VOCABULARY, (3, 9)).astype(np.int32)
LENGTHS = (9, 4, 6)


def auto(path):
    return jaxft.AutoModelForCausalLM.from_pretrained(path, dtype="float32")


@pytest.fixture(scope="module")
def model(opt):
    return auto(opt)


@pytest.fixture
def tuned(make_model):
    """A model with an adapter that does something."""
    model = make_model(bias="lora_only")
    rng = np.random.default_rng(3)
    leaves = model.trained_leaves()
    model.set_trained_leaves(
        jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape).astype(np.float32), leaves)
    )
    return model


def logits(model, *given):
    return np.asarray(model(*given).logits)


def test_weights_are_read_when_they_are_first_used(opt, monkeypatch):
    reads = []
    load = base.Base.load
    monkeypatch.setattr(base.Base, "load", lambda *given: reads.append(1) or load(*given))
    model = jaxft.get_peft_model(auto(opt), jaxft.LoraConfig(target_modules=["q_proj"]))
    model.print_trainable_parameters()
    assert reads == []
    model(IDS)
    model(IDS)
    assert reads == [1]


@pytest.mark.parametrize("config", [small_models.OPT, small_models.GPT2, small_models.LLAMA])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_no_logits(tmp_path, config, side):
    model = auto(small_models.write(tmp_path / "model", config))
    mask = np.zeros_like(IDS)
    padded = np.full_like(IDS, 1)
    for row, length in enumerate(LENGTHS):
        where = slice(9 - length, 9) if side == "left" else slice(length)
        mask[row, where], padded[row, where] = 1, IDS[row, :length]
    found = logits(model, padded, mask)
    alone = logits(model, IDS)  # causal: what comes later changes nothing
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(
            found[row][mask[row] == 1], alone[row, :length], atol=2e-5, rtol=1e-5
        )


def test_positions_can_be_given(model):
    later = logits(model, IDS, None, np.arange(9)[None] + np.ones((3, 1), int))
    counted = logits(model, IDS, None, np.arange(9)[None] * np.ones((3, 1), int))
    np.testing.assert_array_equal(counted, logits(model, IDS))
    assert np.abs(later - counted).max() > 1e-2


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (([[0, small_models.VOCABULARY]],), f"token {small_models.VOCABULARY}"),
        (([[-1, 3]],), "token -1"),
        (([1, 2, 3],), r"shape \(3,\)"),
        (([[1, 2, 3]], [[1, 1]]), r"attention_mask \(1, 2\)"),
        ((np.zeros((1, 161), int),), "position 160"),
    ],
)
def test_what_the_model_has_no_row_for_is_refused(model, given, found):
    with pytest.raises(DataError, match=found):
        model(*given)


def test_generation_takes_the_likeliest_token_of_a_recomputation(tuned):
    ids = IDS[:2, :5]
    new = tuned.generate(ids, max_new_tokens=6)
    assert new.shape == (2, 11)
    np.testing.assert_array_equal(new[:, :5], ids)
    again = logits(tuned, new[:, :-1])[:, 4:].argmax(-1)
    for row, expected in zip(new[:, 5:], again, strict=True):
        ended = np.flatnonzero(row == 0)
        until = ended[0] + 1 if len(ended) else len(row)
        np.testing.assert_array_equal(row[:until], expected[:until])


def test_generation_leaves_out_padding_on_the_left(tuned):
    ids, mask = np.full((2, 5), 1), np.zeros((2, 5), int)
    ids[0], mask[0] = IDS[0, :5], 1
    ids[1, 2:], mask[1, 2:] = IDS[1, :3], 1
    together = tuned.generate(ids, mask, max_new_tokens=4)
    alone = tuned.generate(IDS[1:2, :3], max_new_tokens=4)
    np.testing.assert_array_equal(together[1, 5:], alone[0, 3:])


def test_generation_ends_where_positions_do(tmp_path):
    model = auto(
        small_models.write(tmp_path / "model", {**small_models.GPT2, "eos_token_id": None})
    )
    row = np.arange(10, 56)[None]
    assert model.generate(row, max_new_tokens=50).shape == (1, 49)  # the last needs no position
    assert model.generate(row[:, :2], max_new_tokens=3).shape == (1, 5)
    with pytest.raises(DataError, match="49 tokens, and the model 48 positions"):
        model.generate(np.arange(10, 59)[None])


def test_a_draw_is_repeated_by_its_seed(tuned):
    def drawn(seed):
        draw = {"do_sample": True, "temperature": 2.0, "top_k": 0, "seed": seed}
        return tuned.generate(IDS[:1, :4], max_new_tokens=8, **draw).tolist()

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_a_row_ends_with_the_end_token_or_the_text_that_is_given(tuned):
    ids, count = IDS[:2, :4], 10
    free = tuned.generate(ids, max_new_tokens=count, eos_token_id=[])[:, 4:]
    end = int(free[0, 2])
    first = [list(row).index(end) if end in row else count for row in free]
    for given in (end, [end, end]):
        ended = tuned.generate(ids, max_new_tokens=count, eos_token_id=given)[:, 4:]
        for row, expected, at in zip(ended, free, first, strict=True):
            assert row[: at + 1].tolist() == expected[: at + 1][: len(row)].tolist()
            assert set(row[at + 1 :].tolist()) <= {end}
    string = tuned.tokenizer.decode(free[0, 1:3])
    length = next(n for n in range(1, count) if string in tuned.tokenizer.decode(free[0, :n]))
    options = {"eos_token_id": end + 1 if end == 0 else 0, "stop_strings": string}
    stopped = tuned.generate(ids[:1], max_new_tokens=count, **options)[0, 4:]
    assert len(stopped) == length
    assert stopped.tolist() == free[0, :length].tolist()


def test_an_end_token_that_the_model_does_not_have_is_refused(tuned):
    with pytest.raises(DataError, match=f"token {small_models.VOCABULARY}, and"):
        tuned.generate(IDS[:1, :4], eos_token_id=[0, small_models.VOCABULARY])


def test_a_penalty_and_limits_change_what_is_picked(tuned):
    def picked(**options):
        return tuned.generate(IDS[:1, :4], max_new_tokens=12, eos_token_id=[], **options)[0, 4:]

    assert len(set(picked(repetition_penalty=50.0).tolist())) == 12
    draw = {"do_sample": True, "temperature": 3.0, "top_k": 0}
    np.testing.assert_array_equal(picked(min_p=1.0, **draw), picked())
    assert picked(**draw).tolist() != picked().tolist()


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_p", 1.5), ("min_p", -0.1), ("repetition_penalty", 0.0), ("temperature", -1.0)],
)
def test_an_option_of_generation_out_of_its_range_is_refused(tuned, name, value):
    with pytest.raises(ConfigError, match=f"{name} is {value}"):
        tuned.generate(IDS[:1, :4], do_sample=True, **{name: value})


def test_a_fresh_adapter_changes_nothing_and_a_trained_one_does(model, make_model, tuned):
    np.testing.assert_array_equal(logits(make_model(), IDS), logits(model, IDS))
    assert np.abs(logits(tuned, IDS) - logits(model, IDS)).max() > 1e-2


def test_parameters_are_counted_and_said(make_model, capsys):
    model = make_model()
    per_module = 4 * (24 + 24)
    total = trees.num_parameters(model.base.tree())
    capsys.readouterr()
    model.print_trainable_parameters()
    count = 2 * 2 * per_module
    share = f"{100 * count / (total + count):.4f}"
    said = f"trainable params: {count:,} || all params: {total + count:,} || trainable%: {share}"
    assert " ".join(capsys.readouterr().out.split()) == said


def test_an_adapter_that_is_saved_and_read_is_the_same(tuned, opt, tmp_path):
    tuned.save_pretrained(tmp_path / "adapter")
    again = jaxft.PeftModel.from_pretrained(auto(opt), tmp_path / "adapter")
    np.testing.assert_array_equal(logits(again, IDS), logits(tuned, IDS))
    again.save_pretrained(str(tmp_path / "again"))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        written = (tmp_path / "again" / name).read_bytes()
        assert written == (tmp_path / "adapter" / name).read_bytes()
    content = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert content["base_model_name_or_path"] == str(opt)


def test_a_second_adapter_is_refused(make_model):
    with pytest.raises(AdapterError, match="has an adapter already"):
        jaxft.get_peft_model(make_model(), jaxft.LoraConfig())


def test_another_librarys_configuration_is_refused(model):
    with pytest.raises(
        ConfigError, match=r"(?s)peft_config is a builtins\.dict.*jaxft\.LoraConfig"
    ):
        jaxft.get_peft_model(model, {"r": 8})


def test_what_is_for_recipes_alone_is_refused(model):
    with pytest.raises(ConfigError, match=r"(?s)init_from='x'.*is_trainable=True"):
        jaxft.get_peft_model(model, jaxft.LoraConfig(init_from="x"))


def test_an_adapter_whose_ranks_are_to_be_measured_is_the_base_until_then(model):
    adapted = jaxft.get_peft_model(
        model, jaxft.LoraConfig(init_lora_weights="eva", target_modules=["q_proj"])
    )
    np.testing.assert_array_equal(logits(adapted, IDS), logits(model, IDS))


def test_a_target_that_matches_nothing_is_refused(model):
    with pytest.raises(AdapterError, match=r"(?s)'q_prj'.*'q_proj'"):
        jaxft.get_peft_model(model, jaxft.LoraConfig(target_modules=["q_prj"]))


def test_a_model_that_is_not_there_or_not_handled_is_refused(opt, tmp_path):
    with pytest.raises(WeightsError):
        auto(tmp_path / "nowhere")
    other = shutil.copytree(opt, tmp_path / "bert")
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UnsupportedModelError, match="bert"):
        auto(other)
    with pytest.raises(ConfigError, match="float16"):
        jaxft.AutoModelForCausalLM.from_pretrained(opt, dtype="float16")


@pytest.mark.parametrize("kind", ["pissa", "pissa_niter_3", "olora"])
def test_an_adapter_that_begins_with_the_weights_is_a_plain_one_once_it_is_saved(
    kind, model, make_model, opt, tmp_path
):
    fresh = make_model(init_lora_weights=kind)
    np.testing.assert_array_equal(logits(fresh, IDS), logits(model, IDS))
    assert fresh.get_nb_trainable_parameters() == make_model().get_nb_trainable_parameters()
    rng = np.random.default_rng(3)
    move = lambda x: x + 0.3 * rng.standard_normal(x.shape).astype(np.float32)  # noqa: E731
    fresh.set_trained_leaves(jax.tree.map(move, fresh.trained_leaves()))
    assert np.abs(logits(fresh, IDS) - logits(model, IDS)).max() > 1e-2
    fresh.save_pretrained(tmp_path / "adapter")
    again = jaxft.PeftModel.from_pretrained(auto(opt), tmp_path / "adapter", is_trainable=True)
    np.testing.assert_allclose(logits(again, IDS), logits(fresh, IDS), rtol=1e-4, atol=1e-5)
    assert again.lora.init_lora_weights is True
