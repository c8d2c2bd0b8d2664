"""Whether tensors hold numbers, found out at about the speed at which they are copied.

Separate because base models and adapters both have to be looked at: a weight that overflowed, in
float16 above all, makes every loss NaN, and then the learning rate would be blamed.
"""

import jax.numpy as jnp
import numpy as np

_BLOCK = 2**15  # elements looked at together, which stay in the processor's cache


def is_finite(tensor: np.ndarray) -> bool:
    """Return whether a tensor has no infinity and no NaN, True for [1, 2], False for [1, inf].

    The bits of a float are ordered as its absolute value is, infinity and NaN last, so integers are
    compared: numpy asks bfloat16 and float16 one by one, five times slower.
    """
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        return True
    bits = np.dtype(f"u{tensor.dtype.itemsize}")
    infinity = np.array(np.inf, tensor.dtype).view(bits)
    without_sign = np.array(np.iinfo(bits).max >> 1, bits)
    flat = tensor.ravel(order="K").view(bits)  # as it lies in memory: a transpose is not copied
    blocks = (flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK))
    return all((block & without_sign).max() < infinity for block in blocks)
