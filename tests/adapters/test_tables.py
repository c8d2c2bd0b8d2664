"""Which tables stand in an adapter's file, how many rows it speaks of, and what is not trained."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import runs
import safetensors.numpy

from jaxft.adapters import serving, tables
from jaxft.artifacts import loaded
from jaxft.config import LoraConfig, TuningConfig
from jaxft.errors import AdapterError, ConfigError
from jaxft.lora import tuning
from jaxft.models.families import llama
from jaxft.verbs import export
from jaxft.weights import base
from jaxft.weights.places import new_tokens, source

HEAD, EMBEDDING = "base_model.model.lm_head.", "base_model.model.model.embed_tokens."
ROWS = {"embed_tokens": [260, 261], "lm_head": [260, 261]}
FULL, LORA = TuningConfig(method="full"), TuningConfig()


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """A Llama of 260 tokens."""
    return runs.write_model(tmp_path_factory.mktemp("tables") / "model")


@pytest.fixture(scope="module")
def untied(tied):
    """The same with a head of its own."""
    folder = tied.parent / "untied"
    folder.mkdir()
    for path in tied.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    head = {"lm_head.weight": -tensors["model.embed_tokens.weight"]}
    path = folder / "model.safetensors"
    safetensors.numpy.save_file(tensors | head, path, metadata={"format": "pt"})
    return folder


@pytest.fixture
def grown(request, tied, untied):
    """Return a function that finds one of the two with two new tokens, and what is trained."""

    def find(name, how=LORA, **lora):
        folder = {"tied": tied, "untied": untied}[name]
        found = source.resolve(str(folder), None, lambda line: None)
        found = new_tokens.with_new_tokens(found, ["<go>", "</go>"], lambda line: None)
        family, spec = base.read_spec(found)
        return found, family, tuning.tuned_network(how, LoraConfig(**lora), family, spec)

    return find


def test_a_base_as_its_files_have_it_is_not_written(tied):
    found = source.resolve(str(tied), None, lambda line: None)
    family, spec = base.read_spec(found)
    network = tuning.tuned_network(LORA, LoraConfig(), family, spec)
    assert tables.to_write(found, family, network) == tables.NOTHING


@pytest.mark.parametrize(
    ("name", "lora", "written"),
    [
        ("untied", {}, {f"{EMBEDDING}weight", f"{HEAD}weight"}),
        ("tied", {}, {f"{EMBEDDING}weight"}),
        ("untied", {"trainable_token_indices": ROWS}, set()),
        ("tied", {"trainable_token_indices": [260, 261]}, set()),
        ("untied", {"trainable_token_indices": [261, 260, 3]}, {f"{HEAD}weight"}),
        (
            "tied",
            {"trainable_token_indices": [261]},
            {f"{EMBEDDING}token_adapter.base_layer.weight"},
        ),
        ("untied", {"modules_to_save": ["embed_tokens", "lm_head"]}, set()),
        ("tied", {"modules_to_save": ["embed_tokens"]}, {f"{HEAD}weight"}),
        ("tied", {"modules_to_save": ["lm_head"]}, {f"{EMBEDDING}weight"}),
        (
            "untied",
            {"target_modules": ["lm_head", "embed_tokens"]},
            {f"{HEAD}base_layer.weight", f"{EMBEDDING}base_layer.weight"},
        ),
    ],
)
def test_a_table_is_written_where_a_new_row_of_it_is_not_trained(grown, name, lora, written):
    found, family, network = grown(name, **lora)
    beside = tables.to_write(found, family, network)
    assert beside.rows == 262
    assert beside.tensors.keys() == written
    stored = found.checkpoint()
    for table, own in tables.frozen_names(family).items():
        if table in written:
            is_tied = name == "tied"
            expected = stored.read("model.embed_tokens.weight" if is_tied else own)
            np.testing.assert_array_equal(beside.tensors[table], expected)


def test_an_adapter_says_by_its_shapes_how_many_rows_there_are():
    def rows(tensors, **lora):
        arrays = {name: np.zeros(shape) for name, shape in tensors.items()}
        return tables.num_rows(arrays, LoraConfig(**lora), llama.LLAMA, 260)

    assert rows({"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": (4, 32)}) is None
    assert rows({f"{EMBEDDING}weight": (270, 32)}) == 270
    assert (
        rows({f"{EMBEDDING}lora_embedding_A": (4, 270), f"{EMBEDDING}lora_embedding_B": (32, 4)})
        == 270
    )
    assert rows({f"{HEAD}lora_A.weight": (4, 32), f"{HEAD}lora_B.weight": (250, 4)}) == 250
    row = {f"{EMBEDDING}token_adapter.trainable_tokens_delta": (2, 32)}
    assert rows(row, trainable_token_indices=[261, 260]) == 262
    assert rows(row, trainable_token_indices={"embed_tokens": [260, 5]}) == 261
    # Not all rows from 260 on: the file is of another model, and is refused as that.
    assert rows(row, trainable_token_indices=[261, 270]) is None


def write_adapter(folder, base, beside):
    """Write an adapter on the queries that adds nothing, and what is beside it."""
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    config |= {"base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    shapes = {"A": (1, runs.WIDTH), "B": (runs.WIDTH, 1)}
    adapters = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{side}.weight": np.zeros(
            shape, np.float32
        )
        for layer in range(runs.LAYERS)
        for side, shape in shapes.items()
    }
    safetensors.numpy.save_file(adapters | beside, folder / "adapter_model.safetensors")


def table_of(rows, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, runs.WIDTH)).astype(np.float32)


@pytest.mark.parametrize("name", [HEAD, EMBEDDING])
def test_a_copy_of_the_head_in_the_bases_file_is_replaced_with_its_embedding(
    tied, tmp_path, capsys, name
):
    base_folder = shutil.copytree(tied, tmp_path / "base")
    path = base_folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
    table = table_of(260)
    write_adapter(tmp_path / "adapter", base_folder, {f"{name}weight": table})
    found = loaded.find(tmp_path / "adapter", None).source
    assert base.read_spec(found)[1].tied_head
    for own in ("model.embed_tokens.weight", "lm_head.weight"):
        np.testing.assert_array_equal(found.checkpoint().read(own), table)
    assert "ties" not in capsys.readouterr().err


def test_an_export_counts_only_what_is_in_the_bases_file(tied, tmp_path):
    write_adapter(tmp_path / "adapter", tied, {f"{HEAD}weight": table_of(263)})
    export.export(
        adapter=tmp_path / "adapter",
        model=None,
        output=tmp_path / "whole",
        kind="merged",
        dtype="auto",
    )
    record = json.loads((tmp_path / "whole" / "verification.json").read_text())
    # Neither the queries, which are adapted, nor the embedding.
    assert record["num_untrained_equal_to_base_file"] == record["num_tensors"] - runs.LAYERS - 1


def test_frozen_tables_take_the_place_of_the_bases(tied, tmp_path):
    table = table_of(263)
    write_adapter(tmp_path, tied, {f"{HEAD}weight": table})
    found = loaded.find(tmp_path, None).source
    read = found.checkpoint().read("model.embed_tokens.weight")
    np.testing.assert_array_equal(read, table)
    write_adapter(tmp_path, tied, {f"{HEAD}weight": table[:, 1:].copy()})
    with pytest.raises(AdapterError, match=r"has shape \(263, 31\).*needs \(263, 32\)"):
        loaded.find(tmp_path, None)


def test_an_adapter_that_lacks_a_row_of_its_base_is_refused(grown, tmp_path):
    lora = {"target_modules": ["embed_tokens"]}
    _, family, network = grown("untied", **lora)
    beside = {own for name, own in tables.frozen_names(family).items()}
    tables.check_complete(beside, family, network, 260, tmp_path)
    tables.check_complete((), family, network, 262, tmp_path)
    # So PEFT writes it: of an embedding that is adapted, and not of the head beside it.
    with pytest.raises(AdapterError, match="rows of the head are not in the adapter's file"):
        tables.check_complete(["model.embed_tokens.weight"], family, network, 260, tmp_path)


@pytest.mark.parametrize(
    ("name", "how", "lora", "untrained"),
    [
        ("tied", LORA, {}, "embedding and the head"),
        ("untied", LORA, {"trainable_token_indices": [260, 261]}, "head"),
        ("untied", LORA, {"trainable_token_indices": {**ROWS, "lm_head": [260]}}, "head"),
        ("untied", LORA, {"modules_to_save": ["lm_head"]}, "embedding"),
        ("tied", LORA, {"modules_to_save": ["lm_head"]}, "embedding"),
        ("untied", LORA, {"trainable_token_indices": ROWS}, None),
        ("tied", LORA, {"trainable_token_indices": [260, 261]}, None),
        ("tied", LORA, {"target_modules": ["embed_tokens", "lm_head"]}, None),
        ("tied", FULL, {}, None),
        ("tied", TuningConfig(method="freeze", layers=[0]), {}, "embedding and the head"),
        ("tied", TuningConfig(method="freeze", modules=["embed_tokens"]), {}, None),
    ],
)
def test_new_tokens_that_are_not_trained_are_said_and_refused_if_nothing_is(
    grown, capsys, name, how, lora, untrained
):
    found, family, network = grown(name, how, **lora)
    tables.warn_of_untrained(found, family, network, how.method)
    said = capsys.readouterr().err
    assert (f"{untrained} are not trained." in said) if untrained else not said
    if untrained == "embedding and the head":
        with pytest.raises(ConfigError, match="the tokens 260, 261, and none"):
            tables.refuse_untrained(found, family, network, how.method)
    else:
        tables.refuse_untrained(found, family, network, how.method)


def test_a_table_beside_an_adapter_keeps_vllm_from_serving_it():
    content = {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    assert serving.vllm_objections(content, [f"{HEAD}base_layer.weight"]) == []
    (objection,) = serving.vllm_objections(content, [f"{HEAD}weight"])
    assert "embedding or head is in it" in objection


def test_what_to_write_is_said_for_the_model_at_hand(grown):
    def remedy(*arguments, **lora):
        found, family, network = grown(*arguments, **lora)
        with pytest.raises(ConfigError) as raised:
            tables.refuse_untrained(found, family, network, (*arguments, LORA)[1].method)
        return raised.value.remedy

    both = "`lora.modules_to_save: [embed_tokens, lm_head]`"
    assert remedy("tied") == f"Write `lora.trainable_token_indices: [260, 261]`, or {both}."
    assert remedy("untied") == (
        "Write `lora.trainable_token_indices: {embed_tokens: [260, 261], lm_head: [260, 261]}`, "
        f"or {both}."
    )
    freeze = TuningConfig(method="freeze", layers=[0])
    assert remedy("tied", freeze) == "Name [embed_tokens, lm_head] among tuning.modules."
