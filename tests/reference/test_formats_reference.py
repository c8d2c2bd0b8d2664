"""The same models in every format: held to torch's own tensors, and to the Flax classes' files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from jaxft.weights.formats import flax_msgpack, opening, safetensors, torch_pickle  # noqa: E402
from jaxft.weights.formats.checkpoint import Checkpoint  # noqa: E402

pytestmark = pytest.mark.reference

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference"
FLAX = [REFERENCE / "flax" / name for name in ("opt", "gpt2")]
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="no reference files here")

# Everything at sizes of its own, so that no dimension can stand in for another.
COMMON = {"vocab_size": 40, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2}
GPT = {"n_layer": 2, "n_head": 2, "n_embd": 12, "n_positions": 24}
LAYERS = {"num_layers": 2, "num_heads": 2}
LLAMA = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 20,
}
OPT = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 20,
    "max_position_embeddings": 24,
    "word_embed_proj_dim": 12,
}
POST_NORM = {"word_embed_proj_dim": 8, "do_layer_norm_before": False}
CASES = {
    "bloom": ("bloom", {"hidden_size": 12, "n_layer": 2, "n_head": 2}),
    "gemma": ("gemma", {**LLAMA, "head_dim": 8}),
    "gpt2": ("gpt2", GPT),
    "gpt_neo": (
        "gpt_neo",
        {
            **LAYERS,
            "hidden_size": 12,
            "max_position_embeddings": 24,
            "attention_types": [[["global", "local"], 1]],
        },
    ),
    "gptj": ("gptj", {**GPT, "rotary_dim": 4, "tie_word_embeddings": False}),
    "llama": ("llama", {**LLAMA, "tie_word_embeddings": False}),
    "mistral": ("mistral", {**LLAMA, "tie_word_embeddings": False}),
    "opt": ("opt", OPT),
    "opt_postln_proj": ("opt", OPT | POST_NORM),
    "xglm": (
        "xglm",
        {
            "d_model": 12,
            "num_layers": 2,
            "attention_heads": 2,
            "ffn_dim": 20,
            "max_position_embeddings": 24,
        },
    ),
}


def tiny(case: str) -> transformers.PreTrainedModel:
    model_type, features = CASES[case]
    config = transformers.AutoConfig.for_model(model_type, **(COMMON | features))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def equal(checkpoint: Checkpoint, expected: dict[str, torch.Tensor]) -> None:
    infos = checkpoint.infos()
    assert set(infos) == set(expected)
    for name, tensor in expected.items():
        values = checkpoint.read(name)
        assert values.shape == infos[name].shape == tuple(tensor.shape), name
        assert values.dtype == infos[name].dtype, name
        assert values.tobytes() == bits(tensor), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", ["gpt2", "opt_postln_proj"])
def test_safetensors_and_both_bin_formats_give_the_same_bits(
    tmp_path: Path, case: str, dtype: torch.dtype
) -> None:
    model = tiny(case).to(dtype)
    model.save_pretrained(tmp_path)
    state = model.state_dict()
    expected = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
    equal(safetensors.open_safetensors(tmp_path), expected)
    for is_zip in (True, False):
        # torch keeps the tied head, which shares the embedding's storage.
        path = tmp_path / torch_pickle.SINGLE
        torch.save(state, path, _use_new_zipfile_serialization=is_zip)
        equal(torch_pickle.open_torch(tmp_path), state)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("is_zip", [True, False])
def test_views_parameters_and_every_dtype_are_read_as_torch_saves_them(
    tmp_path: Path, is_zip: bool, protocol: int
) -> None:
    grid = torch.arange(24.0).reshape(4, 6)
    dtypes = (
        *(torch.float64, torch.float16, torch.bfloat16, torch.bool),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
    )
    tensors = {str(dtype): grid[0].to(dtype) for dtype in dtypes} | {
        "grid": grid,
        "turned": grid.t(),
        "part": grid[1:3, ::2],
        "empty": grid[:0],
        "scalar": grid[2, 3],
        "parameter": torch.nn.Parameter(grid[0]),
    }
    torch.save(
        tensors,
        tmp_path / torch_pickle.SINGLE,
        _use_new_zipfile_serialization=is_zip,
        pickle_protocol=protocol,
    )
    equal(torch_pickle.open_torch(tmp_path), tensors)


def test_sharded_bin_reads_as_one(tmp_path: Path) -> None:
    state = tiny("gpt2").state_dict()
    names = list(state)
    placed = {name: f"pytorch_model-0000{1 + n % 2}-of-00002.bin" for n, name in enumerate(names)}
    for file in set(placed.values()):
        torch.save({n: state[n] for n in names if placed[n] == file}, tmp_path / file)
    (tmp_path / torch_pickle.INDEX).write_text(json.dumps({"weight_map": placed}))
    equal(opening.open_folder(tmp_path), state)


@pytest.mark.parametrize("case", CASES)
def test_flax_names_and_layouts_are_torchs_for_every_family(tmp_path: Path, case: str) -> None:
    """Export a torch model; the file has the paths of the Flax class, and gives the model back."""
    model = tiny(case)
    model.save_pretrained(tmp_path)
    saved = safetensors.open_safetensors(tmp_path)
    path = tmp_path / flax_msgpack.SINGLE
    flax_msgpack.save_msgpack(path, saved.infos(), saved.read, CASES[case][0])
    read = flax_msgpack.open_flax(tmp_path)
    equal(read, {name: model.state_dict()[name] for name in saved.infos()})
    tree = REFERENCE / "flax_param_trees" / f"{case}.json"
    if not tree.exists():
        pytest.skip("no parameter trees here")

    def patterns(keys: set[str]) -> set[str]:
        return {"/".join("N" if part.isdigit() else part for part in k.split("/")) for k in keys}

    assert patterns(set(read.paths.values())) == patterns(set(json.loads(tree.read_text())))


@needs_reference
@pytest.mark.parametrize("folder", FLAX, ids=lambda folder: folder.name)
def test_flax_files_have_torchs_names_and_shapes(folder: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(folder / "fp32")
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for variant in ("fp32", "fp32_sharded", "bf16"):
        infos = flax_msgpack.open_flax(folder / variant).infos()
        assert {name: info.shape for name, info in infos.items()} == expected


@needs_reference
@pytest.mark.parametrize("folder", FLAX, ids=lambda folder: folder.name)
def test_flax_shards_and_file_give_the_same_bits_and_bf16_its_own(folder: Path) -> None:
    single, sharded, half = (
        flax_msgpack.open_flax(folder / variant) for variant in ("fp32", "fp32_sharded", "bf16")
    )
    assert single.infos() == {name: sharded.infos()[name] for name in single.infos()}
    for name in single.infos():
        values = single.read(name)
        assert values.tobytes() == sharded.read(name).tobytes()
        rounded = values.astype(half.infos()[name].dtype)
        assert rounded.dtype.name == "bfloat16"
        assert half.read(name).tobytes() == rounded.tobytes()


@needs_reference
@pytest.mark.parametrize("variant", ["fp32", "bf16"])
@pytest.mark.parametrize("folder", FLAX, ids=lambda folder: folder.name)
def test_an_imported_file_is_exported_byte_for_byte(
    tmp_path: Path, folder: Path, variant: str
) -> None:
    original = folder / variant / flax_msgpack.SINGLE
    read = flax_msgpack.open_flax(folder / variant)
    copy = tmp_path / flax_msgpack.SINGLE
    flax_msgpack.save_msgpack(copy, read.infos(), read.read, folder.name)
    assert copy.read_bytes() == original.read_bytes()


@needs_reference
@pytest.mark.parametrize("folder", FLAX, ids=lambda folder: folder.name)
def test_torch_computes_the_flax_classes_logits_from_the_imported_weights(folder: Path) -> None:
    """So each kernel has the right orientation, where its shape could not tell."""
    config = transformers.AutoConfig.from_pretrained(folder / "fp32")
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    read = flax_msgpack.open_flax(folder / "fp32")
    state = {name: torch.from_numpy(read.read(name).copy()) for name in read.infos()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    with np.load(folder / "reference_fp32.npz") as expected:
        input_ids, logits = expected["nopad/input_ids"], expected["nopad/logits"]
    with torch.no_grad():
        found = model(torch.from_numpy(input_ids).long()).logits
    np.testing.assert_allclose(found.numpy(), logits, atol=1e-4)
