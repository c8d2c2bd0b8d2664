"""The names of activations in config.json and in `ModelSpec`.

The module holds names only, so that reading a config.json does not import jax.
"""

from typing import Any

from jaxft.errors import UnsupportedModelError

# The keys of `models.activations.ACTIVATIONS`; a test compares the two.
ACTIVATION_NAMES = ("gelu", "gelu_tanh", "relu", "relu2", "silu")
_THEIRS = {
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "swish": "silu",
}


def read_activation(name: str) -> Any:
    """Return our name of a transformers activation: "silu" for "swish".

    Raises:
        UnsupportedModelError: The activation is not supported.
    """
    ours = _THEIRS.get(name, name)
    if ours not in ACTIVATION_NAMES:
        raise UnsupportedModelError(
            f"The model's config.json has the activation {name!r}, which is not handled.",
            f"Handled here: {', '.join(sorted([*ACTIVATION_NAMES, *_THEIRS]))}.",
        )
    return ours


def activation_name(ours: str) -> str:
    """Return transformers' name of one of our activations, the inverse of `read_activation`."""
    return {"gelu_tanh": "gelu_pytorch_tanh"}.get(ours, ours)
