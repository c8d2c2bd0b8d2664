"""Trained rows, adapters on embeddings, and what is tied: what PEFT does, and what is refused."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import tiny

from jaxft import tree as trees
from jaxft.adapters import algebra, peft_format, serving
from jaxft.config import LoraConfig
from jaxft.errors import AdapterError
from jaxft.lora import targets, tying
from jaxft.models.families import gpt2, llama, opt

TIED = tiny.with_windows([None] * 2)
UNTIED = dataclasses.replace(TIED, tied_head=False)
COUNTED = dataclasses.replace(
    tiny.LEARNED, positions=dataclasses.replace(tiny.LEARNED.positions, offset=0)
)
TOKENS = [7, 3]


def network_of(spec=TIED, family=llama.LLAMA, **lora):
    return targets.adapted_network(LoraConfig(r=2, **lora), family, spec)


def test_an_embedding_is_adapted_where_it_is_named_and_not_by_all_linear():
    network = network_of(target_modules=["embed_tokens", "q_proj"], lora_dropout=0.5)
    ((path, adapter),) = network.outer_adapters
    assert (path, adapter.drops) == ("embed", False)
    assert dict(network.groups[0].period[0].adapters)["attn/q"].drops
    assert not network_of(target_modules="all-linear").outer_adapters
    assert network_of(target_modules=r".*embed_tokens").outer_adapters == network.outer_adapters


def test_positions_are_adapted_where_they_are_counted_from_zero():
    network = network_of(COUNTED, gpt2.GPT2, target_modules=["wpe"])
    assert [path for path, _ in network.outer_adapters] == ["positions"]
    with pytest.raises(AdapterError, match=r"'embed_positions', which matches no"):
        network_of(tiny.LEARNED, opt.OPT, target_modules=["embed_positions"])


@pytest.mark.parametrize(
    ("spec", "chosen", "rows", "follows"),
    [
        (TIED, TOKENS, {"embed": (7, 3)}, True),
        (UNTIED, TOKENS, {"embed": (7, 3)}, False),
        (TIED, {"model.embed_tokens": TOKENS}, {"embed": (7, 3)}, True),
        (TIED, {"lm_head": TOKENS}, {"head": (7, 3)}, False),
        (TIED, {"lm_head": TOKENS, "embed_tokens": TOKENS}, {"embed": (7, 3)}, True),
        (TIED, {"lm_head": [3], "embed_tokens": TOKENS}, {"embed": (7, 3), "head": (3,)}, False),
        (UNTIED, {"lm_head": TOKENS, "embed_tokens": TOKENS}, None, False),
    ],
)
def test_a_tied_head_takes_the_rows_of_the_embedding_unless_it_has_others(
    spec, chosen, rows, follows
):
    network = network_of(spec, trainable_token_indices=chosen, target_modules=["q_proj"])
    assert dict(network.rows) == (rows or {"embed": (7, 3), "head": (7, 3)})
    assert network.head_follows is follows


REFUSED = {
    "no such token": (TIED, {"trainable_token_indices": [3, 112]}, "has 112, and the model's"),
    "twice": (TIED, {"trainable_token_indices": [3, 4, 3]}, "has 3 more than once"),
    "neither": (TIED, {"trainable_token_indices": {"q_proj": [3]}}, "'q_proj', which is neither"),
    "one module twice": (
        TIED,
        {"trainable_token_indices": {"embed_tokens": [3], "model.embed_tokens": [4]}},
        "names one module twice",
    ),
    "of a saved embedding": (
        UNTIED,
        {"trainable_token_indices": TOKENS, "modules_to_save": ["embed_tokens"]},
        "rows of the embedding, all of which lora.modules_to_save trains",
    ),
    "of a saved head that is tied": (
        TIED,
        {"trainable_token_indices": TOKENS, "modules_to_save": ["lm_head"]},
        "rows of the head, all of which",
    ),
    "of an embedding saved with its head": (
        TIED,
        {
            "trainable_token_indices": {"lm_head": TOKENS},
            "modules_to_save": ["embed_tokens"],
            "ensure_weight_tying": True,
        },
        "rows of the head, all of which",
    ),
    "of an adapted embedding": (
        TIED,
        {"trainable_token_indices": TOKENS, "target_modules": ["embed_tokens"]},
        "rows of the embedding, which has an adapter",
    ),
    "of an adapted head": (
        UNTIED,
        {"trainable_token_indices": {"lm_head": TOKENS}, "target_modules": ["lm_head"]},
        "rows of the head, which has an adapter",
    ),
    "of a biased head": (
        dataclasses.replace(UNTIED, head_bias=True),
        {"trainable_token_indices": {"lm_head": TOKENS}},
        "rows of a head with a bias",
    ),
    "others, to be tied": (
        TIED,
        {
            "trainable_token_indices": {"lm_head": [3], "embed_tokens": [4]},
            "ensure_weight_tying": True,
        },
        "other tokens for the head",
    ),
    "a bias beside an embedding": (
        TIED,
        {"target_modules": ["embed_tokens"], "lora_bias": True},
        "together with lora_bias",
    ),
    "a tie to what is excluded": (
        TIED,
        {
            "target_modules": ["lm_head", "q_proj"],
            "exclude_modules": ["embed_tokens"],
            "ensure_weight_tying": True,
        },
        "leaves out the embedding or the head",
    ),
    "a tie that PEFT loses": (
        TIED,
        {
            "target_modules": ["lm_head"],
            "init_lora_weights": "orthogonal",
            "ensure_weight_tying": True,
        },
        "init_lora_weights='orthogonal'",
    ),
    "a tie of two ranks": (
        TIED,
        {
            "target_modules": ["embed_tokens"],
            "rank_pattern": {"lm_head": 1},
            "ensure_weight_tying": True,
        },
        "rank_pattern gives them 2 and 1",
    ),
}


@pytest.mark.parametrize(("spec", "lora", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused(spec, lora, message):
    with pytest.raises(AdapterError, match=re.escape(message)):
        network_of(spec, **lora)


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], r"lm_head|.*q_proj"])
def test_adapters_are_tied_where_it_is_asked_for(targets):
    network = network_of(target_modules=targets, ensure_weight_tying=True)
    assert [path for path, _ in network.outer_adapters] == ["embed", "head"]
    assert network.ties_adapters
    assert not network_of(target_modules=targets).ties_adapters


@pytest.mark.parametrize("saved", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]])
def test_what_is_saved_of_both_is_one_leaf_where_it_is_asked_for(saved):
    network = network_of(modules_to_save=saved, ensure_weight_tying=True)
    assert network.outer_trained == ("embed/kernel",)
    assert not network.has_own_head
    assert network_of(modules_to_save=saved).has_own_head


@pytest.mark.parametrize(
    ("spec", "family", "lora", "reason"),
    [
        (TIED, llama.LLAMA, {"target_modules": ["q_proj"]}, "neither target_modules nor"),
        (UNTIED, llama.LLAMA, {"target_modules": ["embed_tokens"]}, "head is not tied"),
        (UNTIED, llama.LLAMA, {"trainable_token_indices": TOKENS}, "head is not tied"),
        (COUNTED, gpt2.GPT2, {"target_modules": ["wte"]}, "neither target_modules nor"),
        (COUNTED, gpt2.GPT2, {"modules_to_save": ["wte"]}, "neither target_modules nor"),
        (TIED, llama.LLAMA, {"trainable_token_indices": TOKENS}, None),
        (COUNTED, gpt2.GPT2, {"modules_to_save": ["transformer.wte"]}, None),
    ],
)
def test_a_tie_that_does_nothing_is_said_to(spec, family, lora, reason, capsys):
    with_tie = network_of(spec, family, ensure_weight_tying=True, **lora)
    tying.warn_if_idle(LoraConfig(ensure_weight_tying=True, **lora), family, spec)
    said = " ".join(capsys.readouterr().err.split())
    assert ("ensure_weight_tying has no effect" in said) == (reason is not None)
    if reason is not None:
        assert reason in said
        assert with_tie == network_of(spec, family, **lora)


def files_of(spec=TIED, **lora):
    """Return an adapter's config and tensors as its files have them, and its leaves."""
    config = LoraConfig(r=2, **lora)
    network = targets.adapted_network(config, llama.LLAMA, spec)
    trained = tiny.split(tiny.random_leaves(network), network)[0]
    content = peft_format.adapter_config(config, llama.LLAMA, spec, "someone/model", None)
    return content, peft_format.to_tensors(trained, llama.LLAMA, network), trained


FILES = {
    "table": (TIED, {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied": (TIED, {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}),
    "rows": (UNTIED, {"trainable_token_indices": {"embed_tokens": TOKENS, "lm_head": [5]}}),
    "saved": (TIED, {"modules_to_save": ["lm_head"], "ensure_weight_tying": True}),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_written_is_read_again_as_it_was(name):
    spec, lora = FILES[name]
    content, tensors, trained = files_of(spec, **lora)
    config = peft_format.read_lora_config(content, Path("adapter"))
    network = targets.adapted_network(config, llama.LLAMA, spec)
    again = peft_format.from_tensors(tensors, llama.LLAMA, network, Path("adapter"))
    for path, leaf in trees.flatten(trained).items():
        assert np.array_equal(trees.flatten(again)[path], leaf), path


def test_the_names_are_pefts():
    stem = "base_model.model.model.embed_tokens"
    shapes = {name: each.shape for name, each in files_of(**FILES["tied"][1])[1].items()}
    assert shapes == {
        f"{stem}.lora_embedding_A": (2, 112),
        f"{stem}.lora_embedding_B": (64, 2),
        "base_model.model.lm_head.lora_A.weight": (2, 64),
        "base_model.model.lm_head.lora_B.weight": (112, 2),
    }
    rows = files_of(trainable_token_indices=TOKENS, target_modules=["q_proj"])
    assert rows[0]["trainable_token_indices"] == TOKENS
    assert rows[1][f"{stem}.token_adapter.trainable_tokens_delta"].shape == (2, 64)


def test_a_tie_that_was_lost_is_seen():
    content, tensors, _ = files_of(**FILES["tied"][1])
    tensors["base_model.model.lm_head.lora_A.weight"] += 1
    network = targets.adapted_network(
        peft_format.read_lora_config(content, Path("adapter")), llama.LLAMA, TIED
    )
    with pytest.raises(AdapterError, match="is not what the module that it is tied to has"):
        peft_format.from_tensors(tensors, llama.LLAMA, network, Path("adapter"))


def parsed(spec=TIED, **lora):
    content, tensors, _ = files_of(spec, **lora)
    adapter = algebra.parse(content, tensors, Path("adapter"))
    again = algebra.tensors_of(adapter)
    assert again.keys() == tensors.keys()
    assert all(np.array_equal(tensor, again[name]) for name, tensor in tensors.items())
    return adapter


def full(adapter):
    return {name: each.scaling * each.b @ each.a for name, each in adapter.updates.items()}


@pytest.mark.parametrize("name", ["table", "tied"])
def test_updates_of_tables_are_scaled_added_and_folded_as_others(name):
    adapter = parsed(*FILES[name][:1], **FILES[name][1])
    before = full(adapter)
    assert before["model.embed_tokens"].shape == (64, 112)
    results = {
        0.5: algebra.scale(adapter, 0.5),
        1.5: algebra.combine([(adapter, 1.0), (adapter, 0.5)]),
        1.0: algebra.fold(adapter),
    }
    for factor, result in results.items():
        tensors = algebra.tensors_of(result)
        again = algebra.parse(result.content, tensors, Path("adapter"))
        for module, matrix in full(again).items():
            np.testing.assert_allclose(matrix, factor * before[module], atol=1e-5)
        # And they fit the model: of a tie, both sides are there, apart.
        network = targets.adapted_network(again.lora, llama.LLAMA, TIED)
        peft_format.from_tensors(tensors, llama.LLAMA, network, Path("adapter"))
        assert not again.lora.ensure_weight_tying


def test_what_is_saved_of_both_stays_tied_beside_an_adapter_on_positions():
    chosen = {"target_modules": ["wpe", "c_attn"], "modules_to_save": ["lm_head"]}
    config = LoraConfig(r=2, ensure_weight_tying=True, **chosen)
    network = targets.adapted_network(config, gpt2.GPT2, COUNTED)
    trained = tiny.split(tiny.random_leaves(network), network)[0]
    content = peft_format.adapter_config(config, gpt2.GPT2, COUNTED, "someone/model", None)
    tensors = peft_format.to_tensors(trained, gpt2.GPT2, network)
    folded = algebra.fold(algebra.parse(content, tensors, Path("adapter")))
    again = targets.adapted_network(folded.lora, gpt2.GPT2, COUNTED)
    assert again.outer_trained == network.outer_trained == ("embed/kernel",)
    peft_format.from_tensors(algebra.tensors_of(folded), gpt2.GPT2, again, Path("adapter"))


def test_trained_rows_are_whole_and_no_difference_from_the_base():
    adapter = parsed(**FILES["rows"][1], spec=UNTIED)
    with pytest.raises(AdapterError, match="trained as a whole"):
        algebra.scale(adapter, 0.5)
    other = parsed(trainable_token_indices={"embed_tokens": [1, 2], "lm_head": [5]}, spec=UNTIED)
    with pytest.raises(AdapterError, match="trainable_token_indices"):
        algebra.combine([(adapter, 0.5), (other, 0.5)])
    half = algebra.combine([(adapter, 0.5), (adapter, 0.5)])
    assert all(np.array_equal(each, half.whole[name]) for name, each in adapter.whole.items())


def test_a_server_is_said_to_refuse_trained_rows():
    rows, table = (parsed(FILES[name][0], **FILES[name][1]) for name in ("rows", "table"))
    found = [
        serving.vllm_objections(each.content, algebra.tensors_of(each)) for each in (rows, table)
    ]
    assert found == [["trainable_token_indices is set"], []]
