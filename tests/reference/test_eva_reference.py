"""EVA beside PEFT's `initialize_lora_eva_weights` on the same batch: ranks, A, and the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import cases
import peft
import reference_adapters
import reference_runs
import reference_texts
import tiny
import torch
from jax.sharding import Mesh
from reference_models import TinyModel
from reference_runs import TOLERANCE, Record

from jaxft import tree as trees
from jaxft.adapters import peft_format
from jaxft.config import LoraConfig
from jaxft.data.rows.tokenized import IGNORED
from jaxft.lora import eva, init, mask, numbers, targets
from jaxft.models.network import Network, base_network
from jaxft.training.prepare import measure

pytestmark = [
    pytest.mark.reference,
    *reference_adapters.IGNORED_WARNINGS,
    pytest.mark.filterwarnings("ignore:the following layers were initialized"),  # tables
    pytest.mark.filterwarnings("ignore:lora with eva initialization used with low_cpu_mem"),
]


class Case(NamedTuple):
    """A model, what is asked for, and how it is measured.

    In none of them the budget ends among k and v, or among their like: PEFT's sort is not stable,
    and gives the last rank to either. The lengths of rows are such that the tokens that count are
    no more than twice the directions that are looked for: PEFT finds these in a random basis of
    that size, which is exact then.
    """

    model: str
    choice: dict[str, Any]
    eva: dict[str, Any]
    lengths: tuple[int, int] = (11, 7)

    @property
    def rows(self) -> tuple[reference_texts.Text, np.ndarray]:
        """The text and its shifted labels."""
        text = reference_texts.draw(self.lengths, "right", cases.VOCAB_SIZE, seed=5)
        return text, reference_texts.ragged_labels(text, (0.8, 0.9), seed=5)

    @property
    def asked(self) -> dict[str, Any]:
        """The fields of `LoraConfig`, but for `eva_config`."""
        return self.choice | {"init_lora_weights": "eva"}


ALL = {"target_modules": "all-linear"}
# Of 20 modules and more PEFT shortens the names to endings that mean those without adapter too.
FEWER = {
    "target_modules": ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "rank_pattern": {".*": 1},
}
CASES = {
    "llama": Case("llama-tied", ALL, {"rho": 2.0}),
    "llama-same-ranks": Case("llama-tied", ALL, {"rho": 1.0}, (8, 5)),
    "gpt2": Case("gpt2", ALL, {"rho": 2.0}),
    "gpt2-same-ranks": Case("gpt2", ALL, {"rho": 1.0}, (8, 5)),
    "head": Case("llama", {"target_modules": ["lm_head", "v_proj"]}, {"rho": 2.0}),
    "embedding": Case(
        "llama",
        {"target_modules": ["embed_tokens", "q_proj", "o_proj"], "rank_pattern": {"embed.*": 3}},
        {"rho": 2.0},
    ),
    "one-norm": Case("gptj", ALL, {"rho": 2.0}),
    "every-token": Case("llama", ALL, {"rho": 1.5, "use_label_mask": False}, (6, 6)),
    # Where modules share an input, PEFT divides by the root once for each of them.
    "white": Case("gpt2", ALL, {"whiten": True, "adjust_scaling_factors": False}),
    "none-for-some": Case("llama-tied", FEWER, {"rho": 6.0}),
    "patterns": Case(
        "gpt2",
        {
            "target_modules": ["c_attn", "c_fc"],
            "rank_pattern": {"c_fc": 2},
            "alpha_pattern": {"c_attn": 5},
            "use_rslora": True,
        },
        {"rho": 2.0},
    ),
}


class Both(NamedTuple):
    """The start on both sides."""

    theirs: peft.PeftModel
    lora: LoraConfig
    network: Network
    tree: trees.Tree
    found: measure.Measured


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def model(case: Case, tiny_model: Callable[..., TinyModel]) -> TinyModel:
    return tiny_model(case.model)


@pytest.fixture(scope="module")
def both(case: Case, model: TinyModel, one_device: Mesh) -> Both:
    return Both(started_by_peft(case, model), *started_here(case, model, one_device))


def started_by_peft(case: Case, model: TinyModel) -> peft.PeftModel:
    choice = case.asked | {"eva_config": peft.EvaConfig(**case.eva)}
    theirs = reference_adapters.peft_on(model, choice, seed=None)
    text, shifted = case.rows
    labels = np.roll(shifted, 1, axis=1)
    labels[:, 0] = IGNORED
    arrays = {
        "input_ids": text.input_ids,
        "attention_mask": text.attention_mask,
        "position_ids": text.positions,
        "labels": labels,
    }
    batch = {name: torch.tensor(array, dtype=torch.int64) for name, array in arrays.items()}
    peft.initialize_lora_eva_weights(theirs, [batch], show_progress_bar=False)
    return theirs


def started_here(
    case: Case, model: TinyModel, mesh: Mesh
) -> tuple[LoraConfig, Network, trees.Tree, measure.Measured]:
    lora = reference_adapters.lora_config(case.asked | {"eva_config": case.eva})
    assert lora.eva_config is not None
    asked = targets.adapted_network(lora, model.family, model.spec)
    bare = base_network(model.spec)
    sites = eva.sites(asked, bare, model.family, lora.eva_config.rho)
    batch = reference_texts.batch_of(*case.rows, 1)
    found = measure.measured(
        [batch, batch],
        model.load(bare, mesh),
        bare,
        sites,
        lora.eva_config,
        lambda _: None,
        mesh=mesh,
        dtype="float32",
    )
    tables = eva.tables(asked, model.family)
    decided = eva.decided(lora, sites, found.ranks, tables)
    network = targets.adapted_network(decided, model.family, model.spec)
    drawn = init.init_adapters(network, kind="eva", seed=0, mesh=mesh)
    adapters = eva.begun(drawn, found.directions, model.family, network)
    fixed = numbers.leaves(decided, model.family, network)
    return decided, network, trees.combine(adapters, fixed, model.load(network, mesh)), found


def their_directions(theirs: peft.PeftModel) -> dict[str, np.ndarray]:
    ending = ".lora_A.default.weight"
    return {
        name.removeprefix("base_model.model.").removesuffix(ending): parameter.detach().numpy()
        for name, parameter in theirs.named_parameters()
        if name.endswith(ending)
    }


def test_ranks_and_directions_are_those_of_peft(both: Both, record_property: Record) -> None:
    expected = their_directions(both.theirs)
    given = {name: rank for name, rank in both.found.ranks.items() if rank}
    assert given == {name: len(a) for name, a in expected.items()}
    distances = [
        reference_runs.norm_difference(ours, theirs)
        for name, a in both.found.directions.items()
        for ours, theirs in zip(a, expected[name], strict=True)
    ]
    record_property("difference", max(distances))
    assert max(distances) < 1e-3


def test_the_patterns_are_those_of_peft(case: Case, both: Both) -> None:
    config = both.theirs.peft_config["default"]
    assert both.lora.rank_pattern == config.rank_pattern
    assert both.lora.alpha_pattern == config.alpha_pattern
    differing = set(both.found.ranks.values())
    assert (len(differing) > 1) == (case.eva.get("rho") != 1.0)
    assert (0 in differing) == (".*" in case.choice.get("rank_pattern", {}))


def test_as_much_is_trained_as_in_peft(both: Both) -> None:
    assert mask.num_trained(both.network) == both.theirs.get_nb_trainable_parameters()[0]


def test_the_start_is_the_base_and_moved_it_gives_its_logits_in_peft(
    case: Case, model: TinyModel, both: Both, one_device: Mesh, tmp_path: Path
) -> None:
    text = case.rows[0]
    base = reference_runs.torch_logits(model.torch_model, text)
    start = reference_runs.our_logits(both.network, both.tree, text, one_device)
    assert reference_runs.difference(start, base, text) < TOLERANCE
    trained, frozen = trees.partition(both.tree, mask.trainable_mask(both.network, both.tree))
    rng = np.random.default_rng(4)
    moved = jax.tree.map(lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape), trained)
    moved = jax.tree.map(lambda leaf: np.array(leaf, np.float32), moved)
    tiny.clear_beyond_ranks(both.network, trees.flatten(moved))
    content = peft_format.adapter_config(both.lora, model.family, model.spec, "base", None)
    tensors = peft_format.to_tensors(moved, model.family, both.network)
    peft_format.save_adapter(tmp_path / "adapter", tensors, content)
    theirs = reference_adapters.peft_from(model, tmp_path / "adapter")
    logits = reference_runs.torch_logits(theirs, text)
    ours = trees.combine(moved, frozen)
    expected = reference_runs.our_logits(both.network, ours, text, one_device)
    assert reference_runs.difference(logits, expected, text) < TOLERANCE
    assert reference_runs.difference(logits, base, text) > 0.05


def test_a_start_of_peft_is_read_and_written_again_as_it_was(
    case: Case, model: TinyModel, both: Both, one_device: Mesh, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(3)
    theirs = both.theirs
    before = {name: value.detach().clone() for name, value in theirs.named_parameters()}
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.3
    theirs.save_pretrained(tmp_path / "theirs")
    expected = reference_runs.torch_logits(theirs, case.rows[0])
    for name, parameter in theirs.named_parameters():
        parameter.data = before[name]
    ours = reference_adapters.read(model, tmp_path / "theirs", one_device)
    logits = reference_runs.our_logits(ours.network, ours.tree, case.rows[0], one_device)
    assert reference_runs.difference(logits, expected, case.rows[0]) < TOLERANCE
    content, tensors = peft_format.read_adapter(tmp_path / "theirs")
    lora = peft_format.read_lora_config(content, tmp_path)
    name, revision = content["base_model_name_or_path"], content["revision"]
    again = peft_format.adapter_config(lora, model.family, model.spec, name, revision)
    again["target_modules"] = content["target_modules"]  # in whichever way they are named
    assert again == {key: content[key] for key in again}
    written = peft_format.to_tensors(jax.device_get(ours.adapters), model.family, ours.network)
    tensors.pop(f"base_model.model.{model.family.head_name}.base_layer.weight", None)
    assert written.keys() == tensors.keys()
    for key, tensor in written.items():
        np.testing.assert_array_equal(tensor, tensors[key])
