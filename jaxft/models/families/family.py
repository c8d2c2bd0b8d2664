"""What a family is: how its config.json and its tensor names map onto the decoder."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxft.leaves.address import Address
from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.spec import ModelSpec

# The values at which a feature that most families lack is absent. A family names those it has:
# `ModelSpec(..., **ABSENT | {"head_bias": True})`.
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

# Names, by their endings, of what is computed anew and files hold beside the weights: angles of
# rotary positions, masks, a table of sines, the version of a file. transformers passes over them.
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
    """One line of a name table, read both ways.

    Attributes:
        ours: Path in the tree; of a layer's leaf, the path within its block. Several where
            theirs is one tensor for them all, side by side along its outputs.
        theirs: Hugging Face's name, with ``{layer}`` for the layer's index and ``{expert}`` for the
            expert's: ``model.layers.{layer}.mlp.experts.{expert}.up_proj.weight``.
        transposed: Whether theirs is [out, in]; ours is [in, out].
        module: For the weight of a linear module, the path that an adapter on it has: "attn/q",
            or "attn/qkv" where theirs is one for three. Otherwise "".
        by_head: Where theirs is one tensor for several of ours, whether every kv head has its
            part of each together, instead of all of the first, then all of the second.
        parallel: Of which specs the line is, by their `parallel`; () is of all.
        is_buffer: Whether it is stored and never trained, as torch's buffers are.
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
        """Whether there is one such tensor a layer."""
        return "{layer}" in self.theirs

    @property
    def is_per_expert(self) -> bool:
        """Whether there is one such tensor an expert; their leaf has the experts stacked."""
        return "{expert}" in self.theirs


def plain(ours: str, theirs: str) -> Tensor:
    """Return the line of a tensor that is stored as it is."""
    return Tensor((ours,), theirs, transposed=False, module="", by_head=False)


def buffer(ours: str, theirs: str) -> Tensor:
    """Return the line of a tensor that is stored as it is, and never trained."""
    return dataclasses.replace(plain(ours, theirs), is_buffer=True)


def norm(ours: str, theirs: str, *, parallel: tuple[str, ...] = ()) -> tuple[Tensor, Tensor]:
    """Return the lines of a norm's scale and bias; `parallel` as in `Tensor`."""
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
        module: The path that an adapter on it has.
        theirs: Hugging Face's name of the module.
        parts: Our modules that it is cut into; none means that it is one of ours.
        by_head: As in `Tensor`.
        transposed: Whether its weight is [out, in], as torch's `Linear` has it.
    """
    ours = parts or (module,)
    kernels, biases = (tuple(f"{part}/{leaf}" for part in ours) for leaf in ("kernel", "bias"))
    return (
        Tensor(kernels, f"{theirs}.weight", transposed, module, by_head),
        Tensor(biases, f"{theirs}.bias", False, "", by_head),
    )


def replaced(table: tuple[Tensor, ...], *lines: Tensor) -> tuple[Tensor, ...]:
    """Return a name table with `lines` for their leaves, in place of those it had for them."""
    leaves = {leaf for line in lines for leaf in line.ours}
    return (*(line for line in table if not leaves.intersection(line.ours)), *lines)


def without_modules(table: tuple[Tensor, ...], *modules: str) -> tuple[Tensor, ...]:
    """Return a name table without the lines of some modules, "mlp_norm"."""
    return tuple(line for line in table if Address.parse(line.ours[0]).module not in modules)


@dataclasses.dataclass(frozen=True)
class Family:
    """How one `model_type` maps onto the decoder.

    Attributes:
        model_type: As config.json has it.
        read: Reads a config.json; see `spec_from_config`.
        config_from_spec: `ModelSpec` to all that config.json says of the model's numbers.
        tensors: The name table; lines whose leaf a spec does not have do not apply to it.
        ignored: Regular expressions of tensor names that carry no weights: `IGNORED`, and more.
        default_targets: What PEFT adapts when `target_modules` is null.
        head_name: Hugging Face's name of the output embedding module.
        base_prefix: What the names of all other modules begin with; files saved from the model
            without its head lack it.
        is_conv1d: Whether linear modules are transformers' `Conv1D`, with weights [in, out];
            PEFT calls that `fan_in_fan_out`.
        renames: Regular expressions, and what to put for them, that turn other names that files
            have into those of the table.
        file_names: The same for names of the table that files are written with others for.
        defaults: What transformers' config class has for keys that are missing, where `read` does
            not say it.
        settle: Puts a config.json right whose keys or values have other names than transformers'
            class has for them now.
        text_families: Of a model with other parts, such as one that sees: the families that its
            text part, which is all that is used of it, may be of.

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
        """Return the spec that a config.json says, every key of which is accounted for.

        Raises:
            UnsupportedModelError: If the model has a feature that is not handled, a key is missing,
                or one is left that may change numbers.
        """
        reader = ConfigReader({**self.defaults, **self.settle(config)})
        spec = self.read(reader)
        reader.finish()
        return spec

    def lines(self, spec: ModelSpec) -> tuple[Tensor, ...]:
        """Return the lines of the name table that are of such a spec."""
        return tuple(
            line for line in self.tensors if not line.parallel or spec.parallel in line.parallel
        )
