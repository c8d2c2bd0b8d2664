"""Adapters on both sides: made by PEFT and read by jaxft, made by jaxft and opened by PEFT."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cases
import jax
import numpy as np
import peft
import pytest
import reference_features
import reference_models
import reference_runs
import tiny
import torch
from jax.sharding import Mesh
from reference_models import TinyModel

from jaxft import tree as trees
from jaxft.adapters import conversion, peft_format
from jaxft.config import LoraConfig
from jaxft.leaves.address import Address
from jaxft.lora import mask, numbers, starts, targets, tying
from jaxft.models import bind
from jaxft.models.network import Network
from jaxft.weights import names

GEMMA = cases.FIRST["gemma"]  # tied, and its embeddings are scaled
TOKENS = [61, 5, 17, 40, 2]  # not in order: rows stand as they are named
RANK, ALPHA = 4, 12  # a scaling of 3, which nobody gets by chance
# Of a size with the kernels' own, so that an adapter that is not there is missed.
STD = 0.1
ROUNDING = 1e-6  # of the largest gradient

# Of PEFT 0.21 beside transformers 5.23; the first asks for a property under its older name, the
# others speak of an adapter on the head, which is saved with its frozen head and moves it alone,
# and of a trained head, which is a copy. The last two are true: such an adapter cannot be merged,
# and a head lies the other way about than GPT-2's other modules, which PEFT finds out by itself.
IGNORED_WARNINGS = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "`is_gradient_checkpointing` is deprecated:FutureWarning",
        "Setting `save_embedding_layers` to `True`:UserWarning",
        "Model has `tie_word_embeddings=True`:UserWarning",
        "Input and output embeddings are no longer tied:UserWarning",
        # Where it ties nothing, and where rows of tokens are tied without being asked for.
        "You have requested `ensure_weight_tying`:UserWarning",
        # Of biases, which it saves and loads all the same.
        r"Adapter 'default'. \d+ LoRA tensor\(s\) have invalid shape",
        "`lora_bias=True` was passed but the targeted layer",
        "fan_in_fan_out is set to True but the target module is `torch.nn.Linear`",
    )
]

# Fields of `LoraConfig`, which has PEFT's names: what of a model is trained.
Choice = Mapping[str, Any]

# Every linear module of the text part, where PEFT's "all-linear" has those of what sees as well.
OF_THE_TEXT = r"model\.language_model\..*_proj"


def every_linear(case: str) -> Choice:
    """Return the choice of all linear modules that a case has for us."""
    config_class, _ = cases.CASES[case]
    has_text_part = "text_config" in cases.COMMON[config_class]
    return {"target_modules": OF_THE_TEXT if has_text_part else "all-linear"}


# One magnitude for each output of a fused module, of one whose parts stand head by head, of a head
# that is tied, of modules outside the layers.
DORA: dict[str, tuple[str, Choice]] = {
    "dora": (
        "llama",
        {
            "use_dora": True,
            "target_modules": "all-linear",
            "rank_pattern": {"q_proj": 2},
            "use_rslora": True,
        },
    ),
    "dora-fused": (
        "gpt2",
        {"use_dora": True, "target_modules": ["c_attn", "c_proj"], "bias": "lora_only"},
    ),
    "dora-by-head": ("bloom", {"use_dora": True, "target_modules": "all-linear"}),
}
# And what the covering set of test_variants_reference.py has not.
OTHER_DORA: dict[str, tuple[str, Choice]] = {
    "dora-convolutions": ("lfm2", {"use_dora": True, "target_modules": "all-linear"}),
    "dora-tied-head": ("llama-tied", {"use_dora": True, "target_modules": ["lm_head", "v_proj"]}),
    "dora-350m": (
        "opt-350m-smooth",
        {"use_dora": True, "target_modules": "all-linear", "modules_to_save": ["lm_head"]},
    ),
}

EVERY_FAMILY: dict[str, tuple[str, Choice]] = {
    f"all-linear-{family}": (case, every_linear(case)) for family, case in cases.FIRST.items()
}
EVERY_TRAIT: dict[str, tuple[str, Choice]] = {
    name: (case, chosen)
    for name, (case, chosen) in EVERY_FAMILY.items()
    if case in reference_features.STANDING
}


class Adapted(NamedTuple):
    """A network with what is trained of it, A and B and leaves of its own, and what is frozen."""

    network: Network
    adapters: trees.Tree
    frozen: trees.Tree

    @property
    def tree(self) -> trees.Tree:
        return trees.combine(self.adapters, self.frozen)


def peft_on(model: TinyModel, choice: Choice, seed: int | None) -> peft.PeftModel:
    """Return PEFT's fresh adapter on a model; with a seed, all that is trained is moved."""
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        task_type="CAUSAL_LM",
        lora_dropout=0.0,
        fan_in_fan_out=model.family.is_conv1d,
        **copy.deepcopy(dict(choice)),  # PEFT changes lists that it is given
    )
    adapted = peft.get_peft_model(reference_models.open_torch(model.folder), config).eval()
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                start = 0 if re.search(r"\.lora_[AB]\.", name) else parameter.detach()
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.data = start + drawn * STD
    return adapted


def peft_from(model: TinyModel, folder: Path) -> peft.PeftModel:
    """Open an adapter folder with PEFT."""
    return peft.PeftModel.from_pretrained(reference_models.open_torch(model.folder), folder).eval()


def read(model: TinyModel, folder: Path, mesh: Mesh) -> Adapted:
    """Open an adapter folder with jaxft."""
    config, tensors = peft_format.read_adapter(folder)
    lora = peft_format.read_lora_config(config, folder)
    network = targets.adapted_network(lora, model.family, model.spec)
    trained = peft_format.from_tensors(tensors, model.family, network, folder)
    fixed = numbers.leaves(lora, model.family, network)
    return Adapted(network, trained, trees.combine(own_leaves(model, network, mesh)[1], fixed))


def own_leaves(model: TinyModel, network: Network, mesh: Mesh) -> tuple[trees.Tree, trees.Tree]:
    """Return the leaves of the base model: those that `network` trains, and the frozen ones."""
    base = model.load(network, mesh)
    return trees.partition(base, mask.trainable_mask(network, base))


def begun(model: TinyModel, choice: Choice, theirs: peft.PeftModel, mesh: Mesh) -> Adapted:
    """Return our adapter with PEFT's A and B, beside what it begins as here."""
    lora = lora_config(choice)
    network = targets.adapted_network(lora, model.family, model.spec)
    own = model.load(network, mesh)
    tree = starts.with_adapters(own, model.family, network, lora, seed=0, mesh=mesh)
    tensors = {name: parameter.detach().numpy() for name, parameter in trained_by(theirs)}
    trained = peft_format.from_tensors(tensors, model.family, network, model.folder)
    return Adapted(network, trained, trees.partition(tree, mask.trainable_mask(network, tree))[1])


def ours_on(model: TinyModel, choice: Choice, mesh: Mesh, seed: int) -> Adapted:
    """Return our adapter on a model, all that is trained moved."""
    lora = lora_config(choice)
    network = targets.adapted_network(lora, model.family, model.spec)
    rng = np.random.default_rng(seed)
    start, frozen = own_leaves(model, network, mesh)
    leaves = {
        path: np.full(leaf.shape, path.endswith("lora_magnitude"), np.float32)
        for path, leaf in trees.flatten(bind.abstract_tree(network)).items()
        if Address.parse(path).is_adapter
    } | trees.flatten(start)
    moved = {
        path: (np.asarray(leaf) + rng.standard_normal(leaf.shape) * STD).astype(np.float32)
        for path, leaf in leaves.items()
    }
    tiny.clear_beyond_ranks(network, moved)
    fixed = numbers.leaves(lora, model.family, network)
    return Adapted(network, trees.unflatten(moved), trees.combine(frozen, fixed))


def export(
    model: TinyModel, choice: Choice, network: Network, adapters: Mapping[str, Any], folder: Path
) -> None:
    """Write an adapter folder with jaxft; what it began as is among `adapters`, if anything."""
    config, tensors = conversion.to_peft(
        lora_config(choice),
        model.family,
        network,
        jax.device_get(adapters),
        base_model=str(model.folder),
        revision=None,
    )
    peft_format.save_adapter(folder, tensors, config)


def assert_same_tensors(ours: Path, theirs: Path, model: TinyModel) -> None:
    """Assert that two adapter folders hold the same tensors, bit for bit."""
    (_, tensors), (_, their_tensors) = map(peft_format.read_adapter, (ours, theirs))
    # Beside an adapter on the head or the embedding, PEFT also stores them as they are.
    for frozen in (model.family.head_name, tying.embedding_module(model.family)):
        their_tensors.pop(f"base_model.model.{frozen}.base_layer.weight", None)
    assert {name: _bits(tensor) for name, tensor in tensors.items()} == {
        name: _bits(tensor) for name, tensor in their_tensors.items()
    }


def assert_same_files(ours: Path, theirs: Path, model: TinyModel) -> None:
    """Assert that two adapter folders hold the same tensors and mean the same."""
    assert_same_tensors(ours, theirs, model)
    (written, _), (expected, _) = map(peft_format.read_adapter, (ours, theirs))
    # Full names or their endings: what counts is which modules they mean.
    modules = names.adaptable_modules(model.family, model.spec)
    for config in (written, expected):
        if isinstance(config["exclude_modules"], list):
            config["exclude_modules"].sort()  # a set in PEFT
        config["target_modules"] = set(targets.select(modules, config["target_modules"]))
    assert written == {key: expected[key] for key in written}


def _bits(tensor: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return tensor.dtype.name, tensor.shape, tensor.tobytes()


def lora_config(choice: Choice) -> LoraConfig:
    return LoraConfig(r=RANK, lora_alpha=ALPHA, **choice)


def saved_name(name: str) -> str:
    """Return the name under which PEFT saves a parameter of its model."""
    name = name.replace("magnitude_vector.default.weight", "magnitude_vector")
    return re.sub(r"\.default(?=\.|$)", "", name.replace(".modules_to_save.", "."))


def trained_by(adapted: peft.PeftModel) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yield what PEFT trains, under the names it is saved by: a module that is tied under both."""
    seen = set()
    for name, parameter in adapted.named_parameters(remove_duplicate=False):
        if parameter.requires_grad and (parameter not in seen or ".modules_to_save." in name):
            seen.add(parameter)
            yield saved_name(name), parameter


def gradients_by_name(adapted: peft.PeftModel) -> dict[str, np.ndarray]:
    """Return the gradients of what PEFT trains, under the names it is saved by."""
    return {
        name: parameter.grad.numpy()
        for name, parameter in trained_by(adapted)
        if parameter.grad is not None
    }


def furthest(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """Return the largest relative difference in norm of any tensor's gradient.

    A bias of all keys moves all scores of a query alike, which softmax does not see: its gradient
    is 0, and what either side has instead is rounding.
    """
    assert ours.keys() == theirs.keys()
    zero = {name for name in theirs if re.search(r"k_proj\.(.*\.)?bias$", name)}
    largest = max(np.linalg.norm(gradient) for gradient in theirs.values())
    for name in zero:
        assert max(np.linalg.norm(side[name]) for side in (ours, theirs)) < ROUNDING * largest
    return max(
        reference_runs.norm_difference(ours[name], theirs[name]) for name in theirs.keys() - zero
    )
