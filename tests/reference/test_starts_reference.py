"""PiSSA and OLoRA beside PEFT, which takes the start from the base's weights in place.

Here the base stays, and the start is taken away in the forward pass: the model is the same one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import cases
import reference_adapters
import reference_runs
import reference_texts
import torch
from jax.sharding import Mesh
from reference_adapters import Choice
from reference_models import CALM_STD, TinyModel
from reference_runs import TOLERANCE, Record

from jaxft import tree as trees
from jaxft.adapters import peft_format
from jaxft.data.rows.tokenized import IGNORED
from jaxft.errors import AdapterError
from jaxft.lora import decomposition, mask, starts, targets
from jaxft.training import step
from jaxft.training.objective import CAUSAL_LM

pytestmark = [
    pytest.mark.reference,
    *reference_adapters.IGNORED_WARNINGS,
    # Of PEFT's own conversion, where it is asked for.
    pytest.mark.filterwarnings("ignore:PiSSA changes the base weights:UserWarning"),
    pytest.mark.filterwarnings("ignore:OLoRA changes the base weights:UserWarning"),
]

CLEARLY = 0.05  # by how much, of the largest logit, an adapter must move the logits
GRADIENT_TOLERANCE = 1e-4  # norm of the difference over the norm, for each tensor

# Of a rank whose double is more than a module has: 4 for k_proj and v_proj of 8 outputs fits, 6
# does not.
WIDE = {"target_modules": ["q_proj", "k_proj"], "rank_pattern": {"k_proj": 6}}
CHOICES: dict[str, tuple[str, Choice]] = {
    "pissa": ("llama", {"target_modules": "all-linear"}),
    "olora": ("llama", {"target_modules": "all-linear"}),
    "pissa-patterns": ("llama", WIDE | {"alpha_pattern": {"model.layers.1.self_attn.q_proj": 5}}),
    "olora-patterns": ("llama", WIDE | {"layers_to_transform": [0, 2]}),
    "pissa-rank-stabilised": ("mistral-window", {"use_rslora": True}),
    "pissa-head": ("llama", {"target_modules": ["q_proj", "lm_head"]}),
    "olora-saved": ("opt-smooth", {"modules_to_save": ["lm_head"], "bias": "all"}),
    "pissa-conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj"]}),
    "olora-by-head": ("gpt-neox", {"target_modules": "all-linear"}),
    "olora-fused": ("phi3", {"target_modules": "all-linear"}),
}
LENGTHS = (41, 29, 17)
SHARES = (0.9, 0.4, 0.7)


class Case:
    """One choice on both sides: PEFT's model, whose base has changed, and ours."""

    def __init__(self, name: str, model: TinyModel, mesh: Mesh) -> None:
        kind = name.partition("-")[0]
        self.kind, self.model, self.mesh = kind, model, mesh
        self.chosen = {**CHOICES[name][1], "init_lora_weights": kind}
        self.fresh = reference_adapters.peft_on(model, self.chosen, seed=None)
        self.begun = reference_adapters.begun(model, self.chosen, self.fresh, mesh)
        self.theirs = reference_adapters.peft_on(model, self.chosen, seed=1)
        self.ours = reference_adapters.begun(model, self.chosen, self.theirs, mesh)

    def tensors(self, tree: trees.Tree) -> dict[str, np.ndarray]:
        """Return leaves of ours as float64 under PEFT's names, whole modules left out."""
        made = peft_format.to_tensors(jax.device_get(tree), self.model.family, self.ours.network)
        return {name: leaf.astype(np.float64) for name, leaf in made.items() if ".lora_" in name}


@pytest.fixture(scope="module")
def case_of(tiny_model: Callable[..., TinyModel], one_device: Mesh) -> Callable[[str], Case]:
    @functools.cache
    def make(name: str) -> Case:
        return Case(name, tiny_model(CHOICES[name][0], std=CALM_STD), one_device)

    return make


@pytest.fixture(params=CHOICES)
def case(request: pytest.FixtureRequest, case_of: Callable[[str], Case]) -> Case:
    return case_of(request.param)


@pytest.fixture(scope="module")
def text() -> reference_texts.Text:
    return reference_texts.draw(LENGTHS, "right", cases.VOCAB_SIZE, seed=5)


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def test_a_and_b_begin_as_those_of_peft(case: Case, record_property: Record) -> None:
    theirs = case.tensors(case.begun.tree)  # with PEFT's A and B
    ours = case.tensors(starts.as_begun(case.begun.tree))
    furthest = 0.0
    for name in [name for name in theirs if "lora_A" in name]:
        (a, b), (a0, b0) = (
            (side[name], side[name.replace("lora_A", "lora_B")]) for side in (theirs, ours)
        )
        gaps = np.ones(len(a))
        if case.kind == "pissa":  # the signs of singular vectors are anybody's choice
            signs = np.sign((a * a0).sum(axis=1))
            a0, b0 = a0 * signs[:, None], b0 * signs
            # Rounding turns a singular vector by itself over the gap to the next singular value.
            values = (a**2).sum(axis=1)
            steps = np.abs(np.diff(values)) / values[0]
            gaps[:-1] = np.minimum(gaps[:-1], steps)
            gaps[1:] = np.minimum(gaps[1:], steps)
        turned = [relative(x * gaps[:, None], y * gaps[:, None]) for x, y in ((a0, a), (b0.T, b.T))]
        furthest = max(furthest, *turned, relative(b0 @ a0, b @ a))
    record_property("difference", furthest)
    assert furthest < 1e-4


def test_the_parameters_that_are_trained_are_as_many_as_in_peft(case: Case) -> None:
    trainable, _ = case.fresh.get_nb_trainable_parameters()
    assert mask.num_trained(case.ours.network) == trainable


def test_the_model_begins_as_its_base(case: Case, text: reference_texts.Text) -> None:
    tree = trees.combine(starts.as_begun(case.begun.tree))
    logits = reference_runs.our_logits(case.begun.network, tree, text, case.mesh)
    base = reference_runs.torch_logits(case.model.torch_model, text)
    assert reference_runs.difference(logits, base, text) < TOLERANCE
    # The leaves of the base are those that were read, to the bit.
    leaves = trees.flatten(case.begun.frozen)
    network = case.begun.network
    for path, leaf in trees.flatten(case.model.load(network, case.mesh)).items():
        if path in leaves:
            assert np.asarray(leaf).tobytes() == np.asarray(leaves[path]).tobytes()


def test_logits_equal_those_over_the_base_that_peft_changed(
    case: Case, text: reference_texts.Text, record_property: Record
) -> None:
    expected = reference_runs.torch_logits(case.theirs, text)
    logits = reference_runs.our_logits(case.ours.network, case.ours.tree, text, case.mesh)
    distance = reference_runs.difference(logits, expected, text)
    record_property("difference", distance)
    assert distance < TOLERANCE
    base = reference_runs.torch_logits(case.model.torch_model, text)
    assert reference_runs.difference(expected, base, text) > CLEARLY


def test_gradients_equal_those_over_the_base_that_peft_changed(
    case: Case, text: reference_texts.Text, record_property: Record
) -> None:
    labels = reference_texts.ragged_labels(text, SHARES, seed=7)
    case.theirs.zero_grad()
    reference_runs.torch_loss_sum(case.theirs, text, labels).backward()
    theirs = reference_adapters.gradients_by_name(case.theirs)
    batch = reference_texts.batch_of(text, labels, 1)
    capacity = int((labels != IGNORED).sum())
    ours = case.ours
    program = step.Program(ours.network, case.mesh, "float32", capacity, False, CAUSAL_LM)
    gradients = jax.jit(functools.partial(step.gradients, program))
    grads = gradients(ours.adapters, ours.frozen, batch, 0, 0)[1]
    found = peft_format.to_tensors(grads, case.model.family, ours.network)
    assert found.keys() == theirs.keys()
    # The bias of all keys moves no score against another: its gradient is rounding on either side.
    moved = [name for name in theirs if not name.endswith("k_proj.bias")]
    distance = max(relative(found[name], theirs[name]) for name in moved)
    record_property("difference", distance)
    assert distance < GRADIENT_TOLERANCE


def test_the_written_adapter_is_a_plain_one_for_the_unchanged_base(
    case: Case, text: reference_texts.Text, tmp_path: Path, record_property: Record
) -> None:
    model, ours = case.model, case.ours
    reference_adapters.export(model, case.chosen, ours.network, ours.tree, tmp_path / "adapter")
    config, tensors = peft_format.read_adapter(tmp_path / "adapter")
    assert config["init_lora_weights"] is True
    for name in [name for name in tensors if "lora_A" in name]:
        a, b = tensors[name], tensors[name.replace("lora_A", "lora_B")]
        before = case.tensors(ours.adapters)[name].shape[0]
        assert len(a) == min(2 * before, a.shape[1], b.shape[0])
    theirs = reference_adapters.peft_from(model, tmp_path / "adapter")
    expected = reference_runs.our_logits(ours.network, ours.tree, text, case.mesh)
    logits = reference_runs.torch_logits(theirs, text)
    distance = reference_runs.difference(logits, expected, text)
    record_property("difference", distance)
    assert distance < TOLERANCE
    base = reference_runs.torch_logits(model.torch_model, text)
    assert reference_runs.difference(logits, base, text) > CLEARLY
    # And here, with the network that the file describes.
    again = reference_adapters.read(model, tmp_path / "adapter", case.mesh)
    reread = reference_runs.our_logits(again.network, again.tree, text, case.mesh)
    assert reference_runs.difference(reread, expected, text) < TOLERANCE


@pytest.mark.parametrize("name", ["pissa", "olora", "pissa-rank-stabilised"])
def test_what_peft_converts_is_read_and_what_it_does_not_is_refused(
    name: str, case_of: Callable[[str], Case], text: reference_texts.Text, tmp_path: Path
) -> None:
    case = case_of(name)
    theirs = reference_adapters.peft_on(case.model, case.chosen, seed=None)
    # PEFT's recipe: the start is saved as a plain adapter before training.
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(tmp_path / "start")
    theirs.peft_config["default"].init_lora_weights = case.kind
    moved = dict(case.theirs.named_parameters())
    for key, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            parameter.data = moved[key].detach().clone()
    expected = reference_runs.torch_logits(theirs, text)
    theirs.save_pretrained(tmp_path / "changed")
    with pytest.raises(AdapterError) as raised:
        reference_adapters.read(case.model, tmp_path / "changed", case.mesh)
    assert case.kind in raised.value.found
    assert "path_initial_model_for_weight_conversion" in raised.value.remedy
    theirs.save_pretrained(
        tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    ours = reference_adapters.read(case.model, tmp_path / "plain", case.mesh)
    logits = reference_runs.our_logits(ours.network, ours.tree, text, case.mesh)
    assert reference_runs.difference(logits, expected, text) < TOLERANCE


@pytest.mark.parametrize("shape", [(40, 24), (24, 40)])
@pytest.mark.parametrize("iterations", [0, 3])
def test_the_randomised_decomposition_is_torchs_for_the_same_draw(
    shape: tuple[int, int], iterations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    draw = np.random.default_rng(7).standard_normal((min(shape), 5), np.float32)
    monkeypatch.setattr(torch, "randn", lambda *_, **__: torch.tensor(draw))
    u, s, v = torch.svd_lowrank(torch.tensor(w), 5, niter=iterations)
    take = decomposition.named(f"pissa_niter_{iterations}")
    a, b = take(w, 5, 2.0, np.random.default_rng(7))
    expected = (u * s @ v.T).numpy()
    assert relative(2.0 * b @ a, expected) < 1e-5


@pytest.mark.parametrize("kind", ["pissa_niter_4", "olora"])
def test_a_tied_head_leaves_the_embedding_as_it_is(
    kind: str, tiny_model: Callable[..., TinyModel], one_device: Mesh, text: Any
) -> None:
    # PEFT's start is taken from the embedding too, which is the same tensor there.
    model = tiny_model("llama-tied", std=CALM_STD)
    lora = reference_adapters.lora_config(
        {"target_modules": ["lm_head"], "init_lora_weights": kind}
    )
    network = targets.adapted_network(lora, model.family, model.spec)
    own = model.load(network, one_device)
    tree = starts.with_adapters(own, model.family, network, lora, seed=0, mesh=one_device)
    logits = reference_runs.our_logits(network, tree, text, one_device)
    base = reference_runs.torch_logits(model.torch_model, text)
    assert reference_runs.difference(logits, base, text) < TOLERANCE
    trained = trees.flatten(trees.partition(tree, mask.trainable_mask(network, tree))[0])
    assert trained.keys() == {"head/lora_a", "head/lora_b"}
    assert all(leaf.any() for leaf in trained.values())
