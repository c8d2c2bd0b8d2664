"""The names of activations in config.json and in `ModelSpec`: names alone, without jax."""

from typing import Any

from jaxft.errors import UnsupportedModelError

# Those of `models.activations.ACTIVATIONS`, which a test holds this to.
ACTIVATION_NAMES = ("gelu", "gelu_tanh", "relu", "relu2", "silu")
_THEIRS = {
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "swish": "silu",
}


def read_activation(name: str) -> Any:
    """Return our name of a transformers activation.

    Raises:
        UnsupportedModelError: If it is not handled.
    """
    ours = _THEIRS.get(name, name)
    if ours not in ACTIVATION_NAMES:
        raise UnsupportedModelError(
            f"The model's config.json has the activation {name!r}, which is not handled.",
            f"Handled here: {', '.join(sorted([*ACTIVATION_NAMES, *_THEIRS]))}.",
        )
    return ours


def activation_name(ours: str) -> str:
    """Return transformers' name of one of our activations."""
    return {"gelu_tanh": "gelu_pytorch_tanh"}.get(ours, ours)
