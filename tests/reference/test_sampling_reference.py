"""How tokens are picked, held to transformers' logits processors and stopping criteria."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")

import cases
import tokenizers
import torch
import transformers
from jax.sharding import Mesh
from reference_models import TinyModel

from jaxft.generation import sampling, text
from jaxft.generation.decoding import CachedDecoder
from jaxft.generation.sampling import GREEDY

pytestmark = pytest.mark.reference

VOCABULARY, ROWS = 211, 6
LOGITS = np.random.default_rng(0).standard_normal((ROWS, VOCABULARY)).astype(np.float32) * 3
TEXTS = np.random.default_rng(1).integers(0, VOCABULARY, (ROWS, 30))

CHOICES: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 7},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.05},
    "min_p of all": {"min_p": 1.0},
    "repetition_penalty": {"repetition_penalty": 1.8},
    "rewarded repetition": {"repetition_penalty": 0.7},
    "all": {
        "temperature": 1.7,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.03,
        "repetition_penalty": 1.3,
    },
}


@pytest.mark.parametrize("given", CHOICES.values(), ids=CHOICES)
def test_the_distribution_drawn_from_is_transformers(given: dict[str, Any]) -> None:
    how = dataclasses.replace(GREEDY, **{"temperature": 1.0, "seed": 5} | given)
    choice = how.choice(0)
    assert choice.draw is not None
    seen = np.zeros(LOGITS.shape, bool)
    seen[np.arange(ROWS)[:, None], TEXTS] = True
    penalised = sampling.penalised(jnp.asarray(LOGITS), jnp.asarray(seen), choice)
    ours = np.asarray(jax.nn.softmax(sampling.drawn_from(penalised, choice.draw), axis=-1))
    theirs = torch.softmax(_processed(given), dim=-1).numpy()
    np.testing.assert_array_equal(ours > 0, theirs > 0)
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-9)
    if set(given) - {"temperature", "repetition_penalty"}:
        assert (theirs == 0).any()
    # And what is drawn is drawn from it.
    many = np.repeat(np.arange(ROWS), 4000)
    drawn = np.asarray(
        jax.jit(sampling.pick)(LOGITS[many], seen[many], np.int32(0), choice)
    ).reshape(ROWS, -1)
    for row in range(ROWS):
        shares = np.bincount(drawn[row], minlength=VOCABULARY) / drawn.shape[1]
        assert not shares[theirs[row] == 0].any()
        assert np.abs(shares - theirs[row]).max() < 4 * 0.5 / drawn.shape[1] ** 0.5


def _processed(given: dict[str, Any]) -> torch.Tensor:
    """Return the scores after transformers' own list of processors, in its order."""
    config = transformers.GenerationConfig(do_sample=True, **{"top_k": 0} | given)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
        )
    )
    config._eos_token_tensor = None
    processors = model._get_logits_processor(
        config, input_ids_seq_length=TEXTS.shape[1], device="cpu", model_kwargs={}
    )
    return processors(torch.tensor(TEXTS), torch.tensor(LOGITS))


def test_greedy_rows_with_a_repetition_penalty_are_transformers(
    tiny_model: Callable[..., TinyModel], one_device: Mesh
) -> None:
    model, num_new = tiny_model("llama-tied"), 24
    prompts = np.random.default_rng(3).integers(0, cases.VOCAB_SIZE, (2, 13))
    decoder = CachedDecoder(model.network, stop_ids=(), mesh=one_device, dtype="float32")
    tree = model.load(model.network, one_device)

    def both(penalty: float) -> tuple[list[list[int]], list[list[int]]]:
        how = dataclasses.replace(GREEDY, repetition_penalty=penalty)
        ours = decoder.rows(tree, prompts.tolist(), max_new_tokens=num_new, how=how)
        ids = torch.tensor(prompts)
        theirs = model.torch_model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_new,
            do_sample=False,
            repetition_penalty=penalty,
            pad_token_id=0,
        )
        return ours, theirs[:, ids.shape[1] :].tolist()

    ours, theirs = both(1.7)
    assert ours == theirs
    assert ours != both(1.0)[0]


@pytest.mark.parametrize("strings", [["ab"], ["cab", "ddd"], ["b c"], ["é"]])
def test_a_stop_string_ends_a_row_where_it_does_in_transformers(strings: list[str]) -> None:
    tokenizer = _letters_and_runs()
    criterion = transformers.StopStringCriteria(tokenizer, strings)
    rng, found = np.random.default_rng(0), set()
    for _ in range(60):
        row = rng.integers(0, len(tokenizer), 14).tolist()
        ends = text.ends_with(tokenizer, [row[:4]], strings)
        assert ends is not None
        for length in range(5, len(row) + 1):
            theirs = bool(criterion(torch.tensor([row[:length]]), None)[0])
            assert ends(0, row[4:length]) == theirs, (tokenizer.decode(row[:length]), strings)
            found.add(theirs)
    assert found == {True, False}


def _letters_and_runs() -> Any:
    """Return a tokenizer of bytes in which some tokens are several letters."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    few = [*"abcd", "Ġ", "Ã", "©", "ab", "cab", "dd", "bĠ", "Ġcab"]
    rest = [each for each in alphabet if each not in few and each in string.ascii_lowercase][:2]
    vocabulary = {token: index for index, token in enumerate([*few, *rest])}
    merges = [("a", "b"), ("c", "ab"), ("d", "d"), ("b", "Ġ"), ("Ġ", "cab")]
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner)
