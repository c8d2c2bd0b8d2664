"""What a model is, what of it can be adapted, and what memory that takes, from headers alone.

Separate from training, which needs the weights themselves. The invariants: no tensor is read and
no device is touched, and every number of parameters is counted on the tree that training would
have, so it is the number that PEFT prints.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jax.sharding import AbstractMesh

from jaxft import console
from jaxft import tree as trees
from jaxft.config import LoraConfig
from jaxft.console import Share, Size
from jaxft.leaves.address import Address
from jaxft.lora import targets
from jaxft.models.bind import abstract_tree
from jaxft.models.families import foreign_quantization
from jaxft.models.families.family import Family
from jaxft.models.network import EMBED, HEAD, Network, base_network
from jaxft.models.spec import ConvSpec, ModelSpec
from jaxft.parallel import mesh as meshes
from jaxft.weights import base, names
from jaxft.weights.formats.checkpoint import Checkpoint
from jaxft.weights.formats.gguf import GgufCheckpoint
from jaxft.weights.places import source
from jaxft.weights.places.source import Source

_RANK = 8
_EVERY_MODULE = ".*"  # as a regular expression of targets: embeddings and the head too
# Of a trained parameter: itself, its gradient, and Adam's two moments, all in float32.
_STATE_BYTES = 4 * 4
# How a frozen base may be held: dtype, and to what its layers' matrices are quantized. The two
# kinds of 4 bits take the same bytes, and so do those of 8.
_WHOLE: dict[str, tuple[str, str | None]] = {
    "bf16 base": ("bfloat16", None),
    "f32 base": ("float32", None),
}
_QUANTIZED: dict[str, tuple[str, str | None]] = {
    "nf4 or int4": ("bfloat16", "nf4"),
    "int8 or fp8": ("bfloat16", "int8"),
}
# Where config.json says how many tokens the model was made for.
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions")


@dataclass(frozen=True)
class Stored:
    """The tensors of one element type in the files.

    Attributes:
        dtype: The element type by the name of the format: "bfloat16", or "Q4_1" in a GGUF.
        num_tensors: The number of tensors of this type.
        num_bytes: The bytes of all these tensors.
    """

    dtype: str
    num_tensors: int
    num_bytes: int


@dataclass(frozen=True)
class TuningSize:
    """One way to tune the model.

    Attributes:
        label: The name of the way, such as "full tuning".
        num_trained: The number of trained parameters.
        num_frozen: The number of frozen parameters.
        frozen_bytes: The bytes of the frozen parameters, by how the base is held: "bf16 base".
    """

    label: str
    num_trained: int
    num_frozen: int
    frozen_bytes: Mapping[str, int]

    @property
    def state_bytes(self) -> int:
        """The bytes of the trained parameters, their gradients and Adam's moments."""
        return self.num_trained * _STATE_BYTES

    def total_bytes(self, held: str) -> int:
        """Return `state_bytes` plus the bytes of the frozen base, which is held as `held` says."""
        return self.state_bytes + self.frozen_bytes[held]


@dataclass(frozen=True)
class Target:
    """A kind of module that can be adapted; most kinds have one module in each layer.

    Attributes:
        name: The shortest name in `target_modules` that matches only this kind.
        dims: (in, out) of a module; (rows, width) of an embedding.
        count: The number of such modules.
        num_trained: The parameters of adapters of the report's rank on all these modules.
        is_default: Whether these modules are adapted when `target_modules` is null.
        is_linear: Whether these modules are part of "all-linear".
    """

    name: str
    dims: tuple[int, int]
    count: int
    num_trained: int
    is_default: bool
    is_linear: bool


@dataclass(frozen=True)
class Inspection:
    """What `jaxft inspect` reports of a model, without reading its tensors.

    Attributes:
        name: The name or path that the user gave.
        origin: The place where the model was found.
        model_type: The family, by the `model_type` of config.json.
        architecture: The class in transformers; "" if config.json names none.
        spec: The network.
        context: The number of tokens that the model was made for; `None` if config.json does not
            say.
        has_chat_template: Whether the tokenizer has a chat template.
        format: The format of the weights, such as "safetensors".
        file_bytes: The size of each file of weights.
        stored: The stored tensors by element type, the largest first.
        num_parameters: The number of parameters; a tied head is counted once.
        num_in_tables: The number of parameters in the embedding and the head.
        rank: The rank of the adapters in this report.
        tunings: The ways to tune the model, the smallest first.
        targets: The modules that `target_modules` can name, embeddings first, the head last.
    """

    name: str
    origin: str
    model_type: str
    architecture: str
    spec: ModelSpec
    context: int | None
    has_chat_template: bool
    format: str
    file_bytes: tuple[int, ...]
    stored: tuple[Stored, ...]
    num_parameters: int
    num_in_tables: int
    rank: int
    tunings: tuple[TuningSize, ...]
    targets: tuple[Target, ...]


def inspect(model: str, revision: str | None) -> Inspection:
    """Find a model and look at it.

    Args:
        model: A folder, a .gguf file, or a name on the Hugging Face Hub.
        revision: A branch, tag or commit on the Hub; None is the main branch.

    Raises:
        WeightsError: If no place has it, or a file of it is damaged.
        UnsupportedModelError: If the architecture, or a feature of it, is not handled.
    """
    found = source.resolve(model, revision, console.note)
    config = found.config()
    family, spec = base.read_spec(found)
    checkpoint, weights = found.checkpoint(), found.weight_files()
    foreign_quantization.refuse_quantized_tensors(checkpoint.path, checkpoint.infos())
    leaves = _sizes(base_network(spec))
    rank = min(_RANK, *(min(module.dims) for module in names.adaptable_modules(family, spec)))
    return Inspection(
        name=found.name,
        origin=found.origin,
        model_type=family.model_type,
        architecture=", ".join(config.get("architectures") or ()),
        spec=spec,
        context=_context(config),
        has_chat_template=found.has_chat_template(),
        format=weights.format,
        file_bytes=tuple(file.stat().st_size for file in weights.files),
        stored=stored_dtypes(checkpoint),
        num_parameters=sum(leaves.values()),
        num_in_tables=sum(
            size for path, size in leaves.items() if Address.parse(path).module in (EMBED, HEAD)
        ),
        rank=rank,
        tunings=tunings(found, family, spec, rank),
        targets=adaptable(family, spec, rank),
    )


def stored_dtypes(checkpoint: Checkpoint) -> tuple[Stored, ...]:
    """Return a checkpoint's tensors by element type, the type that takes the most bytes first."""
    if isinstance(checkpoint, GgufCheckpoint):  # whose `infos` say what they are once read
        tensors = [(each.kind.name, each.num_bytes) for each in checkpoint.file.tensors.values()]
    else:
        tensors = [
            (info.dtype.name, math.prod(info.shape) * info.dtype.itemsize)
            for info in checkpoint.infos().values()
        ]
    counts = Counter(dtype for dtype, _ in tensors)
    sizes: Counter[str] = Counter()
    for dtype, num_bytes in tensors:
        sizes[dtype] += num_bytes
    return tuple(Stored(dtype, counts[dtype], size) for dtype, size in sizes.most_common())


def tunings(found: Source, family: Family, spec: ModelSpec, rank: int) -> tuple[TuningSize, ...]:
    """Return the ways to tune a model: LoRA on default targets and on all-linear, and full."""
    choices: dict[str, str | None] = {"default": None, "all-linear": targets.ALL_LINEAR}
    if not family.default_targets:
        del choices["default"]
    mesh = AbstractMesh((1,) * len(meshes.AXES), meshes.AXES)
    bases = {
        held: base.Base(found, family, spec, mesh, dtype, quantization)
        for held, (dtype, quantization) in (_WHOLE | _QUANTIZED).items()
    }
    ways = []
    for label, chosen in choices.items():
        lora = LoraConfig(r=rank, target_modules=chosen)
        network = targets.adapted_network(lora, family, spec)
        sizes, own = _sizes(network), network.trained_leaves()
        trained = {path for path in sizes if path in own or Address.parse(path).is_adapter}
        num_trained = sum(sizes[path] for path in trained)
        num_frozen = sum(sizes.values()) - num_trained
        frozen_bytes = {held: _frozen_bytes(each, network) for held, each in bases.items()}
        ways.append(TuningSize(f"LoRA, {label}", num_trained, num_frozen, frozen_bytes))
    num_parameters = sum(_sizes(base_network(spec)).values())
    ways.append(TuningSize("full tuning", num_parameters, 0, dict.fromkeys(bases, 0)))
    return tuple(ways)


def _frozen_bytes(held: base.Base, network: Network) -> int:
    """Return the bytes of the leaves of a base that are not trained."""
    own = network.trained_leaves()
    leaves = trees.flatten(held.abstract(network))
    return trees.num_bytes({path: leaf for path, leaf in leaves.items() if path not in own})


def adaptable(family: Family, spec: ModelSpec, rank: int) -> tuple[Target, ...]:
    """Return the kinds of modules that `target_modules` can name, in the model's order."""
    modules = names.adaptable_modules(family, spec)
    defaults = list(family.default_targets)
    in_default = {module.path for module in targets.select(modules, defaults)}
    in_linear = {module.path for module in targets.select(modules, targets.ALL_LINEAR)}
    counts = Counter(module.path for module in modules)
    kinds = {module.path: module for module in reversed(modules)}  # the first of each stays
    everywhere = LoraConfig(r=rank, target_modules=_EVERY_MODULE)
    trained: Counter[str] = Counter()
    for path, size in _sizes(targets.adapted_network(everywhere, family, spec)).items():
        address = Address.parse(path)
        if address.is_adapter:
            trained[address.module] += size
    return tuple(
        Target(
            name=_short_name(kinds[path], kinds),
            dims=kinds[path].dims,
            count=count,
            num_trained=trained[path],
            is_default=path in in_default,
            is_linear=path in in_linear,
        )
        for path, count in counts.items()
    )


def _short_name(module: names.Module, kinds: Mapping[str, names.Module]) -> str:
    """Return the shortest ending of a module's name that no other kind's name has."""
    last, *rest = reversed(module.name.split("."))
    others = [f".{other.name}" for other in kinds.values() if other.path != module.path]
    ending = last
    for part in rest:
        if part.isdecimal() or not any(other.endswith(f".{ending}") for other in others):
            break
        ending = f"{part}.{ending}"
    return ending


def _sizes(network: Network) -> dict[str, int]:
    """Return the number of parameters in each leaf of a network, numbers of adapters left out."""
    return {
        path: math.prod(leaf.shape)
        for path, leaf in trees.flatten(abstract_tree(network)).items()
        if not Address.parse(path).is_number
    }


def _context(config: Mapping[str, Any]) -> int | None:
    """Return how many tokens config.json says that the model was made for."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        for key in _CONTEXT_KEYS:
            if isinstance(part.get(key), int):
                return part[key]
    return None


def show(model: Inspection) -> None:
    """Print what is known of a model, on standard output."""
    console.facts(model.name, _facts(model))
    console.table(
        "What target_modules can name",
        ("module", "in", "out", "count", f"trained at r {model.rank}", "chosen by"),
        [
            (each.name, *each.dims, each.count, each.num_trained, _chosen_by(each))
            for each in model.targets
        ],
    )
    console.table(
        f"Memory to train it, adapters at r {model.rank}",
        ("", "trained", "of all", "state", *_WHOLE),
        [
            (
                each.label,
                each.num_trained,
                Share(each.num_trained / (each.num_trained + each.num_frozen)),
                Size(each.state_bytes),
                *(Size(each.total_bytes(held)) for held in _WHOLE),
            )
            for each in model.tunings
        ],
    )
    console.result("state: what is trained, its gradients and Adam's two moments, in float32;")
    console.result("the last two columns add the frozen base in bfloat16 or float32.")
    console.table(
        "Memory over a base quantized to",
        ("", *_QUANTIZED),
        [
            (each.label, *(Size(each.total_bytes(held)) for held in _QUANTIZED))
            for each in model.tunings
            if each.num_frozen
        ],
    )
    console.result("Activations come on top: they grow with the tokens in a micro-batch.")


def _facts(model: Inspection) -> Iterable[tuple[str, str]]:
    """Yield label and value of what a model is."""
    spec = model.spec
    yield "found", model.origin
    yield "family", model.model_type + (f" ({model.architecture})" if model.architecture else "")
    tables = "the embedding" if spec.tied_head else "embedding and head"
    yield "parameters", f"{model.num_parameters:,}, {model.num_in_tables:,} of them in {tables}"
    num_convs = sum(isinstance(block.mixer, ConvSpec) for block in spec.blocks)
    convs = f", {num_convs} with a convolution for attention" if num_convs else ""
    mlp_dims = {block.mlp.dim for block in spec.blocks}
    mlp = " to ".join(f"{dim:,}" for dim in sorted({min(mlp_dims), max(mlp_dims)}))
    yield "layers", f"{len(spec.blocks)}{convs}, width {spec.model_dim:,}, MLP {mlp}"
    is_grouped = spec.num_kv_heads != spec.num_heads
    grouped = f", {spec.num_kv_heads} for keys and values" if is_grouped else ""
    yield "heads", f"{spec.num_heads} of width {spec.head_dim}{grouped}"
    head = "tied to the embedding" if spec.tied_head else "with weights of its own"
    yield "vocabulary", f"{spec.vocab_size:,}, the head {head}"
    if model.context is not None:
        yield "context", f"{model.context:,} tokens"
    yield "chat template", "yes" if model.has_chat_template else "no"
    num_files = len(model.file_bytes)
    files = f"{num_files} file{'s' if num_files > 1 else ''}"
    yield "weights", f"{model.format}, {files}, {Size(sum(model.file_bytes))}"
    for index, each in enumerate(model.stored):
        tensors = f"{each.num_tensors} tensor{'s' if each.num_tensors > 1 else ''}"
        yield "" if index else "stored as", f"{each.dtype}: {tensors}, {Size(each.num_bytes)}"


def _chosen_by(target: Target) -> str:
    if not target.is_linear:
        return "its name only"
    return "default, all-linear" if target.is_default else "all-linear"
