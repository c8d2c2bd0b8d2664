"""A model comes out of jaxft as it went in, and merged with its adapter as PEFT merges it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import cases
import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import byte_tokenizer
import reference_adapters
import reference_features
import reference_formats
import reference_models
import reference_runs
import reference_texts
import torch
from jax.sharding import Mesh
from reference_adapters import Choice
from reference_models import TinyModel
from reference_runs import Record

from jaxft import tree as trees
from jaxft.artifacts.merge import Merged
from jaxft.config import LoraConfig, TuningConfig
from jaxft.lora import tuning
from jaxft.models.network import Network
from jaxft.verbs import export
from jaxft.weights import load, names, save
from jaxft.weights.formats import flax_names, opening
from jaxft.weights.formats.checkpoint import Checkpoint

pytestmark = [pytest.mark.reference, *reference_adapters.IGNORED_WARNINGS]

CASES = (
    *("llama", "llama-tied", "mistral-window"),
    *("opt", "opt-350m", "opt-no-bias-untied-gelu", "gpt2", "gpt2-untied-inner-relu"),
    *("falcon-new", "falcon-serial-by-head-bias-relu"),
    *(case for case in cases.FIRST.values() if case not in ("llama", "mistral-window", "gpt2")),
)
STANDING = ("opt-350m", *reference_features.STANDING)
IN_FLAX = {
    "opt-350m",
    *(case for family, case in cases.FIRST.items() if family in flax_names.FAMILIES),
}
# Formats that hold an embedding and a head where config.json ties them hold the same bits twice.
HEAD = "lm_head.weight"
BUFFERS = (".act_fn.beta", ".act_fn.eps")  # stored, and never trained
FULL = TuningConfig(method="full")
MERGED_TOLERANCE = 1e-5  # of the largest logit

# Layouts of their own: fused and head by head, fused and grouped, convolutions, many norms.
LAID_OUT = ("gpt_neox", "phi3", "lfm2", "gemma3_text", "gpt_bigcode", "mpt", "cohere")
ADAPTERS: dict[str, tuple[str, Choice]] = {
    "llama": ("llama", {"target_modules": "all-linear"}),
    "opt": ("opt-350m", {"target_modules": "all-linear", "bias": "all"}),
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "c_proj"]}),
    "saved-tied-head": ("gpt2", {"modules_to_save": ["lm_head"]}),
    "saved-tied-embedding": ("opt", {"modules_to_save": ["embed_tokens"]}),
    "adapted-tied-head": ("llama-tied", {"target_modules": ["lm_head", "v_proj"]}),
    "grouped-by-head": ("falcon-new", {"target_modules": "all-linear"}),
    **reference_adapters.DORA,
    **reference_adapters.OTHER_DORA,
    **{
        f"all-linear-{family}": reference_adapters.EVERY_FAMILY[f"all-linear-{family}"]
        for family in (cases.FIRST if reference_features.TAKES_EVERY_FAMILY else LAID_OUT)
    },
}


def tree_of(
    model: TinyModel, network: Network, checkpoint: Checkpoint, mesh: Mesh, dtype: str
) -> trees.Tree:
    return load.load_base(
        checkpoint,
        model.family,
        network,
        dtype=dtype,
        mesh=mesh,
        progress=lambda _: None,
        quantization=None,
        rounding=None,
    )


def of_the_text(model: TinyModel) -> Checkpoint:
    """Return a model's tensors as they are written, without those of what sees."""
    checkpoint = names.under_full_names(model.checkpoint(), model.family)
    ignored = re.compile("|".join(model.family.ignored) or r"(?!)")
    kept = {
        names.file_name(name, model.family): name
        for name in checkpoint.infos()
        if not ignored.fullmatch(name)
    }
    return names.Renamed(checkpoint, kept)


def bits(checkpoint: Checkpoint, *, but: str = "") -> dict[str, tuple[str, bytes]]:
    return {
        name: (str(info), np.ascontiguousarray(checkpoint.read(name)).tobytes())
        for name, info in checkpoint.infos().items()
        if name != but
    }


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in [*cases.FIRST.values(), "opt-350m"]
        for kind in reference_formats.FORMATS
        # The names in msgpack are a family's own; the other formats have those of safetensors.
        if (name in IN_FLAX if kind == "msgpack" else name in STANDING)
    ],
)
def test_every_format_gives_the_same_leaves_and_transformers_logits(
    name: str,
    kind: str,
    tiny_model: Callable[..., TinyModel],
    one_device: Mesh,
    tmp_path: Path,
    record_property: Record,
) -> None:
    model = tiny_model(name)
    reference_formats.write(model, kind, tmp_path / "model")
    checkpoint = opening.open_folder(tmp_path / "model")
    tree = tree_of(model, model.network, checkpoint, one_device, "float32")
    jax.tree.map(np.testing.assert_array_equal, tree, model.load(model.network, one_device))
    text = reference_texts.draw(reference_texts.PADDED, "left", cases.VOCAB_SIZE, seed=12)
    ours = reference_runs.our_logits(model.network, tree, text, one_device)
    theirs = reference_runs.torch_logits(model.torch_model, text)
    distance = reference_runs.difference(ours, theirs, text)
    record_property("family", model.family.model_type)
    record_property("format", kind)
    record_property("difference", distance)
    assert distance < reference_runs.TOLERANCE


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in CASES),
        *((name, torch.bfloat16) for name in STANDING),
    ],
    ids=str,
)
def test_what_is_imported_is_exported_bit_for_bit_whatever_the_formats(
    name: str, dtype: torch.dtype, one_device: Mesh, tmp_path: Path
) -> None:
    model = reference_models.make(name, tmp_path / "original", dtype=dtype)
    stored = str(dtype).removeprefix("torch.")
    expected = bits(of_the_text(model))
    is_tied = model.spec.tied_head
    kinds = reference_formats.formats_of(model)
    for source in kinds:
        reference_formats.write(model, source, tmp_path / source)
        checkpoint = opening.open_folder(tmp_path / source)
        # All is trained, so that all that is written comes out of the leaves.
        full = tuning.tuned_network(FULL, LoraConfig(), model.family, model.spec)
        tree = tree_of(model, full, checkpoint, one_device, stored)
        merged = Merged(tree, model.family, full, checkpoint, model.family)
        untrained = [each for each in merged.names() if not merged.is_trained(each)]
        assert all(each.endswith(BUFFERS) for each in untrained)
        infos = {each: merged.info(each) for each in merged.names()}
        for target in ("merged", "flax") if "msgpack" in kinds else ("merged",):
            folder = tmp_path / f"{source} to {target}"
            config = {"model_type": model.family.model_type}
            save.save_model(
                folder,
                config,
                infos,
                lambda each, merged=merged: merged.read(each).astype(stored),
                target,
                lambda _: None,
                replaces=None,
            )
            written = opening.open_folder(folder)
            assert bits(written, but=HEAD if is_tied else "") == expected
            if HEAD in written.infos() and is_tied:
                embedding = written.read("model.embed_tokens.weight")
                np.testing.assert_array_equal(written.read(HEAD), embedding)


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_merged_model_has_the_logits_of_peft_in_transformers(
    name: str,
    tiny_model: Callable[..., TinyModel],
    tmp_path: Path,
    record_property: Record,
) -> None:
    case, choice = ADAPTERS[name]
    model = tiny_model(case, std=reference_models.CALM_STD)
    byte_tokenizer.byte_level().save_pretrained(model.folder)
    theirs = reference_adapters.peft_on(model, choice, seed=8)
    theirs.save_pretrained(tmp_path / "adapter")
    export.export(
        adapter=tmp_path / "adapter",
        model=None,
        output=tmp_path / "merged",
        kind="merged",
        dtype="auto",
    )
    ours = reference_models.open_torch(tmp_path / "merged")
    text = reference_texts.draw((41, 29), "left", cases.VOCAB_SIZE, seed=13)
    expected = reference_runs.torch_logits(theirs, text)
    logits = reference_runs.torch_logits(ours, text)
    distance = reference_runs.difference(logits, expected, text)
    record_property("difference", distance)
    assert distance < MERGED_TOLERANCE
    if name not in (
        "adapted-tied-head",
        "dora-tied-head",
    ):  # where PEFT's own merge moves the embedding as well
        merged = reference_runs.torch_logits(theirs.merge_and_unload(), text)
        assert reference_runs.difference(logits, merged, text) < MERGED_TOLERANCE
    base = reference_runs.torch_logits(model.torch_model, text)
    assert reference_runs.difference(expected, base, text) > 0.05
