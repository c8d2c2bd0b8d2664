"""A model family: how its config.json and its tensor names map onto the decoder.

"Ours" is a name or a layout in the parameter tree, "theirs" is the one in Hugging Face's files.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxft.leaves.address import Address
from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.spec import ModelSpec

# Features that most families lack, each at the value that turns it off. A family names the ones
# it has: `ModelSpec(..., **ABSENT | {"head_bias": True})`.
ABSENT: dict[str, Any] = {
    "embed_scale": 1.0,
    "embed_norm": False,
    "attn_gate": False,
    "query_scaling": None,
    "attn_softcap": None,
    "qk_norm": "none",
    "other_norms": (),
    "parallel": "no",
    "residual_scale": 1.0,
    "head_bias": False,
    "logit_scale": 1.0,
    "logit_softcap": None,
}

# Tensors that files may hold beside the weights, and that a model computes anew: the angles of
# rotary positions, masks, a table of sines, the version of a file. transformers ignores them too.
IGNORED = (
    r"(.*\.)?\w*inv_freq",
    r"(.*\.)?(cos|sin)_cached",
    r"(.*\.)?masked_bias",
    r"(.*\.)?position_ids",
    r"(.*\.)?embed_positions\.(weights|_float_tensor)",
    r"(.*\.)?decoder\.version",
)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One line of a name table: a tensor of the files and the leaves that it fills.

    Import reads the line in one direction, export in the other.

    Attributes:
        ours: The path of the leaf; for a leaf of a layer, its path within the block. A fused
            tensor has several paths, whose leaves lie side by side along its outputs.
        theirs: Hugging Face's name, with ``{layer}`` for the layer's index and ``{expert}`` for the
            expert's: ``model.layers.{layer}.mlp.experts.{expert}.up_proj.weight``.
        transposed: Whether the files store the tensor as [out, in]; the leaf is [in, out].
        module: The path of an adapter on this weight: "attn/q", or "attn/qkv" for a fused one.
            "" if the line is not the weight of a linear module.
        by_head: How a fused tensor is laid out. True: q, k and v of the first kv head, then those
            of the second. False: all of q, then all of k, then all of v.
        parallel: The line applies to specs whose `parallel` is one of these; () is all specs.
        is_buffer: Whether the tensor is stored and never trained, as torch's buffers are.
    """

    ours: tuple[str, ...]
    theirs: str
    transposed: bool
    module: str
    by_head: bool
    parallel: tuple[str, ...] = ()
    is_buffer: bool = False

    @property
    def is_per_layer(self) -> bool:
        """Whether there is one such tensor for each layer."""
        return "{layer}" in self.theirs

    @property
    def is_per_expert(self) -> bool:
        """Whether there is one such tensor for each expert; the leaf is the stack of them."""
        return "{expert}" in self.theirs


def plain(ours: str, theirs: str) -> Tensor:
    """Return the line of a tensor that files store in the leaf's layout."""
    return Tensor((ours,), theirs, transposed=False, module="", by_head=False)


def buffer(ours: str, theirs: str) -> Tensor:
    """Return the line of a tensor that files store in the leaf's layout and that is not trained."""
    return dataclasses.replace(plain(ours, theirs), is_buffer=True)


def norm(ours: str, theirs: str, *, parallel: tuple[str, ...] = ()) -> tuple[Tensor, Tensor]:
    """Return the lines of a norm's scale and bias; `Tensor` explains `parallel`."""
    scale, bias = (
        plain(f"{ours}/scale", f"{theirs}.weight"),
        plain(f"{ours}/bias", f"{theirs}.bias"),
    )
    return (
        dataclasses.replace(scale, parallel=parallel),
        dataclasses.replace(bias, parallel=parallel),
    )


def linear(
    module: str,
    theirs: str,
    *,
    parts: tuple[str, ...] = (),
    by_head: bool = False,
    transposed: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return the lines of a linear module's weight and bias.

    Args:
        module: The path of an adapter on the module, "attn/q".
        theirs: Hugging Face's name of the module.
        parts: Our modules that a fused module is cut into; () if it is one module of ours.
        by_head: How a fused weight is laid out; `Tensor` explains it.
        transposed: Whether the weight is [out, in], as in torch's `Linear`.
    """
    ours = parts or (module,)
    kernels, biases = (tuple(f"{part}/{leaf}" for part in ours) for leaf in ("kernel", "bias"))
    return (
        Tensor(kernels, f"{theirs}.weight", transposed, module, by_head),
        Tensor(biases, f"{theirs}.bias", False, "", by_head),
    )


def replaced(table: tuple[Tensor, ...], *lines: Tensor) -> tuple[Tensor, ...]:
    """Return a name table in which `lines` replace the lines of the same leaves."""
    leaves = {leaf for line in lines for leaf in line.ours}
    return (*(line for line in table if not leaves.intersection(line.ours)), *lines)


def without_modules(table: tuple[Tensor, ...], *modules: str) -> tuple[Tensor, ...]:
    """Return a name table without the lines of the named modules, such as "mlp_norm"."""
    return tuple(line for line in table if Address.parse(line.ours[0]).module not in modules)


@dataclasses.dataclass(frozen=True)
class Family:
    """How one `model_type` maps onto the decoder.

    Attributes:
        model_type: The `model_type` of its config.json.
        read: Returns the spec, from the keys that it reads; `spec_from_config` calls it.
        config_from_spec: Turns a `ModelSpec` into the keys of config.json that set its numbers.
        tensors: The name table; a line does not apply to a spec that lacks its leaf.
        ignored: Regular expressions of the tensors in files that are no weights.
        default_targets: The modules that PEFT adapts when `target_modules` is null.
        head_name: Hugging Face's name of the output embedding module.
        base_prefix: The start of the names of all other modules. Files of a model that was saved
            without its head lack it.
        is_conv1d: Whether linear modules are transformers' `Conv1D`, with weights [in, out];
            PEFT calls that `fan_in_fan_out`.
        renames: Pairs of a regular expression and its replacement; they turn other names in files
            into the names of the table.
        file_names: Pairs of the same kind; they turn names of the table into names for new files.
        defaults: The defaults of transformers' config class for missing keys, where they differ
            from the defaults in `read`.
        settle: Returns a config.json with the names of transformers' class for older keys and
            values, or with a default rope.
        text_families: For a model of text and images, the families that its text part may belong
            to; only the text part is used. () for a model of text alone.

    Source of `default_targets`: `peft/utils/constants.py:
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING`.
    """

    model_type: str
    read: Callable[[ConfigReader], ModelSpec]
    config_from_spec: Callable[[ModelSpec], dict[str, Any]]
    tensors: tuple[Tensor, ...]
    ignored: tuple[str, ...] = IGNORED
    default_targets: tuple[str, ...] = ("q_proj", "v_proj")
    head_name: str = "lm_head"
    base_prefix: str = "model."
    is_conv1d: bool = False
    renames: tuple[tuple[str, str], ...] = ()
    file_names: tuple[tuple[str, str], ...] = ()
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    settle: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    text_families: "tuple[Family, ...]" = ()

    def spec_from_config(self, config: Mapping[str, Any]) -> ModelSpec:
        """Return the spec of a config.json, and account for every key.

        Raises:
            UnsupportedModelError: A feature is not supported, a key is missing, or an unread key
                may change the model's numbers.
        """
        reader = ConfigReader({**self.defaults, **self.settle(config)})
        spec = self.read(reader)
        reader.finish()
        return spec

    def lines(self, spec: ModelSpec) -> tuple[Tensor, ...]:
        """Return the lines of the name table that apply to a spec."""
        return tuple(
            line for line in self.tensors if not line.parallel or spec.parallel in line.parallel
        )
