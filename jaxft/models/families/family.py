"""What a family is, and how a config.json is read without overlooking anything.

`ConfigReader` hands out keys one by one and remembers them; `finish` raises for every key left
over that is not known to be harmless. So a config key that changes numbers and is not handled
can not pass unseen.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxft.errors import UnsupportedModelError
from jaxft.models.layers import ACTIVATIONS
from jaxft.models.spec import ModelSpec

_REQUIRED = object()

_ACTIVATION_NAMES = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "swish": "silu"}

# Dropout of the base model. It is not applied in training: only the adapter's own dropout is.
TRAINING_ONLY = frozenset(
    {"attention_dropout", "attn_pdrop", "dropout", "embd_pdrop", "layerdrop", "resid_pdrop"}
)

# Keys that describe files, training or tokens, and never the logits of a causal forward pass.
HARMLESS = frozenset(
    {
        "_name_or_path",
        "architectures",
        "auto_map",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "id2label",
        "init_std",
        "initializer_range",
        "is_decoder",
        "is_encoder_decoder",
        "is_llama_config",
        "keys_to_ignore_at_inference",
        "label2id",
        "max_position_embeddings",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "tokenizer_class",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "use_cache",
    }
)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One line of a name table, read both ways.

    Attributes:
        ours: Path in the tree; of a layer's leaf, the path within its block. Several where
            theirs is one tensor for them all, side by side along its outputs.
        theirs: Hugging Face's name, with ``{layer}`` for the layer's index.
        transposed: Whether theirs is [out, in]; ours is [in, out].
        module: For the weight of a linear module, the path that an adapter on it has: "attn/q",
            or "attn/qkv" where theirs is one for three. Otherwise "".
    """

    ours: tuple[str, ...]
    theirs: str
    transposed: bool
    module: str

    @property
    def is_per_layer(self) -> bool:
        """Whether there is one such tensor a layer."""
        return "{layer}" in self.theirs


def plain(ours: str, theirs: str) -> Tensor:
    """Return the line of a tensor that is stored as it is."""
    return Tensor((ours,), theirs, transposed=False, module="")


def linear(
    module: str, theirs: str, *, parts: tuple[str, ...] = (), transposed: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the lines of a linear module's weight and bias.

    Args:
        module: The path that an adapter on it has.
        theirs: Hugging Face's name of the module.
        parts: Our modules that it is cut into; none means that it is one of ours.
        transposed: Whether its weight is [out, in], as torch's `Linear` has it.
    """
    ours = parts or (module,)
    kernels, biases = (tuple(f"{part}/{leaf}" for part in ours) for leaf in ("kernel", "bias"))
    return (
        Tensor(kernels, f"{theirs}.weight", transposed, module),
        Tensor(biases, f"{theirs}.bias", transposed=False, module=""),
    )


@dataclasses.dataclass(frozen=True)
class Family:
    """How one `model_type` maps onto the decoder.

    Attributes:
        model_type: As config.json has it.
        spec_from_config: config.json to `ModelSpec`.
        tensors: The name table; lines whose leaf a spec does not have do not apply to it.
        ignored: Regular expressions of tensor names that carry no weights.
        default_targets: What PEFT adapts when `target_modules` is null.
        head_name: Hugging Face's name of the output embedding module.
        base_prefix: What the names of all other modules begin with; files saved from the model
            without its head lack it.
        is_conv1d: Whether linear modules are transformers' `Conv1D`, with weights [in, out];
            PEFT calls that `fan_in_fan_out`.

    Source of `default_targets`: `peft/utils/constants.py:
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING`.
    """

    model_type: str
    spec_from_config: Callable[[Mapping[str, Any]], ModelSpec]
    tensors: tuple[Tensor, ...]
    ignored: tuple[str, ...]
    default_targets: tuple[str, ...]
    head_name: str
    base_prefix: str
    is_conv1d: bool


class ConfigReader:
    """Reads a config.json key by key, and accounts for every key."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Start with nothing read."""
        self._config = config
        self._seen: set[str] = set()

    def get(self, key: str, default: Any = _REQUIRED) -> Any:
        """Return the value of `key`; `default` is what transformers' config class has.

        Raises:
            UnsupportedModelError: If the key is absent and has no default.
        """
        self._seen.add(key)
        if key in self._config:
            return self._config[key]
        if default is _REQUIRED:
            raise UnsupportedModelError(
                f"The model's config.json has no {key!r}.",
                "Take the config.json that belongs to the weights.",
            )
        return default

    def require(self, key: str, allowed: tuple[Any, ...], default: Any = None) -> None:
        """Read a key of which only some values are handled.

        Raises:
            UnsupportedModelError: If the value is another one.
        """
        value = self.get(key, default)
        if value not in allowed:
            raise UnsupportedModelError(
                f"The model's config.json has {key}={value!r}, which is not handled.",
                f"Handled here: {', '.join(map(repr, allowed))}.",
            )

    def finish(self) -> None:
        """Raise for keys that nobody read.

        Raises:
            UnsupportedModelError: Names them.
        """
        left = sorted(
            key
            for key, value in self._config.items()
            if key not in self._seen | HARMLESS | TRAINING_ONLY and value is not None
        )
        if left:
            raise UnsupportedModelError(
                f"The model's config.json has keys that are not handled: {', '.join(left)}.",
                "They may change its numbers. Remove them only if you know that they do not.",
            )


def unapplied_dropout(config: Mapping[str, Any]) -> list[str]:
    """Return the base model's own dropouts, which training here leaves out: "dropout=0.1"."""
    return [f"{key}={config[key]}" for key in sorted(TRAINING_ONLY) if config.get(key)]


def read_activation(name: str) -> Any:
    """Return our name of a transformers activation.

    Raises:
        UnsupportedModelError: If it is not handled.
    """
    ours = _ACTIVATION_NAMES.get(name, name)
    if ours not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"The model's config.json has the activation {name!r}, which is not handled.",
            f"Handled here: {', '.join(sorted([*ACTIVATIONS, *_ACTIVATION_NAMES]))}.",
        )
    return ours
