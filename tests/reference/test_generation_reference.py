"""Greedy continuation through the cache, held to transformers' `generate` token by token."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("torch")

import reference_features
import reference_runs
import reference_texts
import torch
from cases.shapes import WINDOW
from jax.sharding import Mesh
from reference_models import TinyModel

from jaxft.generation import decoding, sampling

pytestmark = pytest.mark.reference

LENGTHS, NEW_TOKENS = (19, 13), 24
# For these, other models of their families stand.
_STUCK = ("opt-smooth", "gpt2", "bloom", "xglm", "phi", "falcon", "mpt", "biogpt")
# Random models mostly end in repeating a token; with weights this small these do not.
CASES = {
    "llama-tied": {},
    "llama-rope-llama3": {},
    "mistral-window": {},
    "opt-350m": {"std": 0.08},
    "opt-no-bias-untied-gelu": {"std": 0.2},
    "gpt2-untied-inner-relu": {},
    "bloom-six-heads-untied": {"std": 0.1},
    "xglm-one-layer": {},
    "phi-one-kv-head-tied-whole-rope": {},
    "falcon-new": {},
    "mpt-six-heads-scale-untied": {},
    "biogpt-unscaled-untied-relu": {"std": 0.3},
    **{name: {} for name in reference_features.STANDING if name not in _STUCK},
}


def theirs_of(model: TinyModel, prompts: reference_texts.Text) -> np.ndarray:
    """Return what transformers' `generate` puts behind rows of prompts."""
    rows = model.torch_model.generate(
        torch.tensor(prompts.input_ids, dtype=torch.int64),
        attention_mask=torch.tensor(prompts.attention_mask, dtype=torch.int64),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
    )
    return rows[:, prompts.input_ids.shape[1] :].numpy()


@pytest.mark.parametrize("name", CASES)
def test_greedy_continuation_equals_transformers(
    name: str, tiny_model: Callable[..., TinyModel], one_device: Mesh
) -> None:
    assert min(LENGTHS) > WINDOW
    model = tiny_model(name, **CASES[name])
    prompts = reference_texts.draw(LENGTHS, "left", model.spec.vocab_size, seed=3)
    tree = model.load(model.network, one_device)
    ours = reference_runs.greedy(model.network, tree, prompts, one_device, NEW_TOKENS)
    theirs = theirs_of(model, prompts)
    np.testing.assert_array_equal(ours, theirs)
    # Neither stuck on one token nor the same in both rows.
    assert all(len(set(row)) > NEW_TOKENS // 3 for row in ours.tolist())
    assert ours[0].tolist() != ours[1].tolist()


# Longer than a part; the second of the short rows begins within the last.
IN_PARTS = (decoding.CHUNK + 33, 2 * decoding.CHUNK + 5, 9)


@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("lfm2", {}),
        ("ministral3", {}),
        ("muse_glimmer", {}),
        ("hunyuan_v1_dense", {}),
        ("apertus", {"std": 0.15}),
    ],
)
def test_a_prompt_read_in_parts_is_continued_as_by_transformers(
    name: str, std: dict[str, float], tiny_model: Callable[..., TinyModel], one_device: Mesh
) -> None:
    model = tiny_model(name, **std)
    prompts = reference_texts.draw(IN_PARTS, "left", model.spec.vocab_size, seed=4)
    decoder = decoding.CachedDecoder(
        model.network, stop_ids=(model.spec.vocab_size,), mesh=one_device, dtype="float32"
    )
    rows = [
        row[seen].tolist() for row, seen in zip(prompts.input_ids, prompts.is_token, strict=True)
    ]
    tree = model.load(model.network, one_device)
    ours = decoder.rows(tree, rows, max_new_tokens=NEW_TOKENS, how=sampling.GREEDY)
    theirs = theirs_of(model, prompts)
    assert ours == theirs.tolist()
    assert all(len(set(row)) > NEW_TOKENS // 5 for row in ours)


@pytest.mark.parametrize("length", [29, 47])
def test_a_dynamic_rope_grows_with_the_text_as_in_transformers(
    length: int, tiny_model: Callable[..., TinyModel], one_device: Mesh
) -> None:
    model = tiny_model("llama-rope-dynamic")
    scaling = next(block.rope for block in model.spec.blocks).scaling
    assert scaling.max_positions < length + NEW_TOKENS
    prompts = reference_texts.draw((length,), "left", model.spec.vocab_size, seed=3)
    tree = model.load(model.network, one_device)
    ours = reference_runs.greedy(model.network, tree, prompts, one_device, NEW_TOKENS)
    # Only so does it forget the longer text of another test.
    model.torch_model(input_ids=torch.zeros((1, 1), dtype=torch.int64), use_cache=False)
    theirs = theirs_of(model, prompts)
    np.testing.assert_array_equal(ours, theirs)
    assert len(set(ours[0].tolist())) > NEW_TOKENS // 3
