"""The nonlinearities of MLPs: plain functions, and one with learned parameters."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}


class Xielu(nnx.Module):
    """xIELU: a parabola above 0, and below 0 an exponential with the same slope at 0.

    `beta` and `eps` are stored beside the learned `alpha_p` and `alpha_n`, and are never trained.

    Source: Huang and Schlag 2024, "Deriving Activation Functions Using Integration", eq. 12;
    transformers `activations.py: XIELUActivation`.
    """

    def __init__(self) -> None:
        """Create the leaves with transformers' initial values, in effect 0.8 for both alphas."""
        self.alpha_p = nnx.Param(jnp.log(jnp.expm1(jnp.full(1, 0.8))))
        self.alpha_n = nnx.Param(jnp.log(jnp.expm1(jnp.full(1, 0.8 - 0.5))))
        self.beta = nnx.Param(jnp.array(0.5))
        self.eps = nnx.Param(jnp.array(-1e-6))

    def numbers(self) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Return the arguments of `xielu` that follow `x`."""
        return self.alpha_p[...], self.alpha_n[...], self.beta[...], self.eps[...]


def xielu(
    x: Float[Array, "b t f"],
    alpha_p: Float[Array, " 1"],
    alpha_n: Float[Array, " 1"],
    beta: Float[Array, ""],
    eps: Float[Array, ""],
) -> Float[Array, "b t f"]:
    """Apply xIELU, computed in float32.

    Args:
        x: Activations.
        alpha_p: The parabola's factor, before a softplus.
        alpha_n: The exponential's factor minus `beta`, before a softplus.
        beta: The slope at 0.
        eps: The largest argument of the exponential; just below 0, so that it is exact there.
    """
    wide, p, n, beta, eps = (each.astype(jnp.float32) for each in (x, alpha_p, alpha_n, beta, eps))
    p, n = jax.nn.softplus(p)[None, None], beta + jax.nn.softplus(n)[None, None]
    below = (jnp.expm1(jnp.minimum(wide, eps)) - wide) * n
    return (jnp.where(wide > 0, p * wide * wide, below) + beta * wide).astype(x.dtype)
