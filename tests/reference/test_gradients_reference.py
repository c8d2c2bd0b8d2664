"""Adapter gradients held to PEFT's, tensor by tensor, at random A and B.

At B = 0, where training starts, every gradient of A is 0 and proves nothing. Activations are smooth
here: where a ReLU's input is 0 but for rounding, rounding decides whether a gradient passes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import reference_adapters
import reference_models
import reference_runs
import reference_texts
from jax.sharding import Mesh
from reference_adapters import TOKENS, Choice
from reference_models import CALM_STD, TinyModel
from reference_runs import Record

from jaxft import tree as trees
from jaxft.adapters import peft_format
from jaxft.config import LoraConfig, TuningConfig
from jaxft.data.rows.tokenized import IGNORED
from jaxft.lora import tuning
from jaxft.training import step
from jaxft.training.objective import CAUSAL_LM
from jaxft.weights import layout, names

pytestmark = [pytest.mark.reference, *reference_adapters.IGNORED_WARNINGS]

TOLERANCE = 1e-4  # norm of the difference over the norm, for each tensor
ACCUMULATION_TOLERANCE = 1e-5

# What the covering set of test_variants_reference.py has not: every trait of the families, windows,
# positions, rows of several tables.
CHOICES: dict[str, tuple[str, Choice]] = {
    "all-linear": ("llama-rope-llama3", {"target_modules": "all-linear"}),
    **reference_adapters.OTHER_DORA,
    **reference_adapters.EVERY_TRAIT,
    "regex": ("mistral-window", {"target_modules": r".*layers\.[02]\..*(q|k|down)_proj"}),
    "tied-head": ("llama-tied", {"target_modules": ["lm_head", "v_proj"]}),
    "saved-various": (
        "opt-smooth",
        {
            "target_modules": ["q_proj", "fc1"],
            "modules_to_save": ["lm_head", "final_layer_norm", "layers.1.fc1"],
        },
    ),
    "embedding-tied": ("llama-tied", {"target_modules": ["embed_tokens", "q_proj"]}),
    "embedding-and-positions": ("gpt2", {"target_modules": ["wte", "wpe", "c_attn"]}),
    "tokens": ("llama", {"trainable_token_indices": {"embed_tokens": TOKENS, "lm_head": [7]}}),
    "tokens-projected": ("opt-350m-smooth", {"trainable_token_indices": TOKENS}),
    "tokens-below-an-adapter": (
        "llama-tied",
        {"trainable_token_indices": TOKENS, "target_modules": ["lm_head", "q_proj"]},
    ),
}
LENGTHS = (43, 31, 22, 37, 43, 9, 40, 28)
SHARES = (0.9, 0.0, 0.4, 1.0, 0.1, 0.7, 0.0, 0.3)  # of each row's tokens that are targets


class Comparison:
    """One adapter on both sides, one text with ragged labels, and PEFT's gradients."""

    def __init__(self, model: TinyModel, chosen: Choice, folder: Path, mesh: Mesh) -> None:
        theirs = reference_adapters.peft_on(model, chosen, seed=4)
        theirs.save_pretrained(folder)
        self.model, self.mesh = model, mesh
        self.ours = reference_adapters.read(model, folder, mesh)
        self.text = reference_texts.draw(LENGTHS, "right", model.spec.vocab_size, seed=6)
        self.labels = reference_texts.ragged_labels(self.text, SHARES, seed=7)
        loss = reference_runs.torch_loss_sum(theirs, self.text, self.labels)
        loss.backward()
        self.loss, self.gradients = loss.item(), reference_adapters.gradients_by_name(theirs)

    def run(self, *, accumulation: int, remat: bool) -> tuple[float, dict[str, np.ndarray]]:
        """Return our loss sum and gradients, under PEFT's names."""
        batch = reference_texts.batch_of(self.text, self.labels, accumulation)
        capacity = int((batch["labels"] != IGNORED).sum(axis=(1, 2)).max())
        network = self.ours.network
        program = step.Program(network, self.mesh, "float32", capacity, remat, CAUSAL_LM)
        gradients = jax.jit(functools.partial(step.gradients, program))
        adapters, frozen = self.ours.adapters, self.ours.frozen
        terms, grads = gradients(adapters, frozen, batch, 0, 0)
        loss, count = terms["loss"]
        assert int(count) == (self.labels != IGNORED).sum()
        return float(loss), peft_format.to_tensors(grads, self.model.family, network)


@pytest.fixture(scope="module")
def comparison(
    tiny_model: Callable[..., TinyModel],
    tmp_path_factory: pytest.TempPathFactory,
    one_device: Mesh,
) -> Callable[[str], Comparison]:
    @functools.cache
    def make(name: str) -> Comparison:
        case, chosen = CHOICES[name]
        return Comparison(
            tiny_model(case, std=CALM_STD), chosen, tmp_path_factory.mktemp(name), one_device
        )

    return make


@pytest.mark.parametrize(
    ("name", "remat"),
    [
        *((name, False) for name in CHOICES),
        # Which layers are computed again, and how, does not depend on their traits.
        *((name, True) for name in ("all-linear", "dora-350m", "saved-various", "tokens")),
    ],
)
def test_every_gradient_equals_that_of_peft(
    name: str,
    remat: bool,
    comparison: Callable[[str], Comparison],
    record_property: Record,
) -> None:
    case = comparison(name)
    loss, gradients = case.run(accumulation=1, remat=remat)
    distance = reference_adapters.furthest(gradients, case.gradients)
    record_property("difference", distance)
    assert loss == pytest.approx(case.loss, rel=1e-5)
    assert distance < TOLERANCE


def test_accumulated_gradients_equal_those_of_one_batch(
    comparison: Callable[[str], Comparison], record_property: Record
) -> None:
    case = comparison("all-linear")
    whole, gradients = case.run(accumulation=1, remat=False)
    in_parts, accumulated = case.run(accumulation=4, remat=False)
    distance = reference_adapters.furthest(accumulated, gradients)
    record_property("difference", distance)
    assert in_parts == pytest.approx(whole, rel=1e-6)
    assert distance < ACCUMULATION_TOLERANCE
    assert reference_adapters.furthest(accumulated, case.gradients) < TOLERANCE


PARTS: dict[str, tuple[str, TuningConfig]] = {
    "full": ("llama-mlp-bias-gelu-tanh", TuningConfig(method="full")),
    "full-tied": ("llama-tied", TuningConfig(method="full")),
    "full-gpt2": ("gpt2", TuningConfig(method="full")),
    "full-lfm2": ("lfm2", TuningConfig(method="full")),
    "full-apertus": ("apertus", TuningConfig(method="full")),
    "full-350m": ("opt-350m-smooth", TuningConfig(method="full")),
    "some-layers": ("opt-smooth", TuningConfig(method="freeze", layers=[-1, 1])),
    "some-modules": (
        "llama-tied",
        TuningConfig(method="freeze", modules=["mlp", "lm_head", "model.norm"], layers=[0]),
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_gradients_of_the_models_own_weights_equal_those_of_torch(
    name: str, tiny_model: Callable[..., TinyModel], one_device: Mesh, record_property: Record
) -> None:
    case, chosen = PARTS[name]
    model = tiny_model(case, std=CALM_STD)
    network = tuning.tuned_network(chosen, LoraConfig(), model.family, model.spec)
    trained, frozen = reference_adapters.own_leaves(model, network, one_device)
    text = reference_texts.draw(LENGTHS, "right", model.spec.vocab_size, seed=6)
    labels = reference_texts.ragged_labels(text, SHARES, seed=7)
    theirs = reference_models.open_torch(model.folder)
    reference_runs.torch_loss_sum(theirs, text, labels).backward()
    expected = {each: leaf.grad.numpy() for each, leaf in theirs.named_parameters()}
    batch = reference_texts.batch_of(text, labels, 1)
    capacity = int((batch["labels"] != IGNORED).sum())
    program = step.Program(network, one_device, "float32", capacity, False, CAUSAL_LM)
    gradients = jax.jit(functools.partial(step.gradients, program))
    grads = trees.flatten(gradients(trained, frozen, batch, 0, 0)[1])
    table = names.own_tensors(model.family, network)
    ours = {
        each: layout.join(grads, slots) for each, slots in table.items() if slots[0].path in grads
    }
    if chosen.method == "full":
        assert ours.keys() == expected.keys()
        assert sum(map(np.size, ours.values())) == theirs.num_parameters()
    else:
        assert 0 < len(ours) < len(expected)
    distance = reference_adapters.furthest(ours, {each: expected[each] for each in ours})
    record_property("difference", distance)
    assert distance < TOLERANCE
