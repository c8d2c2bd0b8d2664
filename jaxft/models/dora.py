"""DoRA: a low-rank update turns the rows of a weight, and their lengths are trained separately.

    W' = m (W + s A B) / ||W + s A B||,  one length m and one norm for each output

Separate from `linear`, which stays unchanged: W's product and the LoRA branch are computed as
without DoRA, and their sum is rescaled. The norms are constants in the backward pass, which keeps
neither the product A B nor a copy of W.

Source: Liu et al. 2024, "DoRA", eq. 5 and section 4.3; `peft/tuners/lora/dora.py: DoraLinearLayer`.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def norms(
    matrices: Sequence[Float[Array, "n _"]],
    a: Float[Array, "r n"],
    b: Float[Array, "r m"],
    scaling: Float[Array, ""],
) -> Float[Array, " m"]:
    """Return the norm of each column of ``W + scaling * A^T B``, float32; it has no gradient.

    Each column belongs to one output; it is a row of Hugging Face's weight. The sum is not formed:
    ``||w + s A^T b||^2 = ||w||^2 + 2 s b (A w) + s^2 b (A A^T) b`` for columns w and b.

    Args:
        matrices: The parts of W, float32; side by side they have `m` columns.
        a: Down projection, float32.
        b: Up projection, float32.
        scaling: The factor on A^T B.
    """
    matrices, a, b = jax.lax.stop_gradient((matrices, a, b))
    # In full precision, which costs little here; accelerators round the operands by default.
    dot = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    ends = np.cumsum([matrix.shape[1] for matrix in matrices])[:-1]
    inner, squares = dot(a, a.T), []
    for matrix, part in zip(matrices, jnp.split(b, ends, axis=1), strict=True):
        mixed = 2 * dot(a, matrix) + scaling * dot(inner, part)
        squares.append(jnp.sum(matrix**2, axis=0) + scaling * jnp.sum(part * mixed, axis=0))
    return jnp.sqrt(jnp.maximum(jnp.concatenate(squares), 0.0))


@functools.partial(jax.checkpoint, prevent_cse=False)  # keeps `y`, and no float32 copy of it
def rescaled(
    y: Float[Array, "b t m"], magnitude: Float[Array, " m"], norms: Float[Array, " m"]
) -> Float[Array, "b t m"]:
    """Return ``y * magnitude / norms``, in the dtype of `y`.

    A row of zeros has no direction: its output, which is 0, stays 0, while PEFT computes 0 / 0.

    Args:
        y: The product of the activations with ``W + scaling * A^T B``, without a bias.
        magnitude: The trained length of each row, one for each output.
        norms: The norm of each row.
    """
    is_zero = norms == 0
    scale = jnp.where(is_zero, 1.0, magnitude / jnp.where(is_zero, 1.0, norms))
    return (y.astype(jnp.float32) * scale[None, None, :]).astype(y.dtype)
