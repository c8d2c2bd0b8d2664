"""Decomposes a weight matrix into the initial A and B of its adapter, for PiSSA and OLoRA.

Pure functions of numpy arrays, in float32 as in PEFT; `starts` chooses the matrices. A weight is
[out, in], with its rows in Hugging Face's order: the signs in a QR decomposition depend on it.

Source: `peft/tuners/lora/layer.py: LoraLayer.pissa_init` and `olora_init`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Factors(NamedTuple):
    """A part of a weight, ``scaling * B A``: A [r, in] and B [out, r], float32."""

    a: np.ndarray
    b: np.ndarray


# (weight [out, in], rank, the adapter's scaling, random numbers for a randomised SVD) -> A and B
Decomposition = Callable[[np.ndarray, int, float, np.random.Generator], Factors]


def named(kind: str) -> Decomposition:
    """Return the decomposition for a value of `LoraConfig.init_lora_weights`, such as "pissa"."""
    if kind == "olora":
        return _olora
    if kind == "pissa":
        return _pissa
    num_iterations = int(kind.removeprefix("pissa_niter_"))

    def fast(w: np.ndarray, rank: int, scaling: float, rng: np.random.Generator) -> Factors:
        return _principal(*_randomised_svd(w, rank, num_iterations, rng), rank, scaling)

    return fast


def _pissa(
    w: Float[np.ndarray, "o i"], rank: int, scaling: float, rng: np.random.Generator
) -> Factors:
    """Keep the largest singular values. Source: Meng et al. 2024, "PiSSA", eq. 2 to 4."""
    return _principal(*np.linalg.svd(w, full_matrices=False), rank, scaling)


def _olora(
    w: Float[np.ndarray, "o i"], rank: int, scaling: float, rng: np.random.Generator
) -> Factors:
    """Keep the first columns of Q and rows of R. Source: Büyükakyüz 2024, "OLoRA", algorithm 1.

    As in PEFT, Q and R are not divided by the scaling, so `scaling` times Q R is subtracted from W.
    For a Conv1D, PEFT decomposes the transposed weight, whose factors fit only a square weight.
    """
    q, r = np.linalg.qr(w)
    return Factors(r[:rank], q[:, :rank])


def _principal(u: np.ndarray, s: np.ndarray, vh: np.ndarray, rank: int, scaling: float) -> Factors:
    root = np.sqrt(s[:rank] / np.float32(scaling))
    return Factors(root[:, None] * vh[:rank], u[:, :rank] * root)


def _randomised_svd(
    w: Float[np.ndarray, "o i"], rank: int, num_iterations: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return approximately the first `rank` singular vectors and values, as `np.linalg.svd` does.

    Source: `torch/_lowrank.py: svd_lowrank`; Halko et al. 2011, algorithms 4.4 and 5.1.
    """
    if w.shape[0] < w.shape[1]:
        v, s, uh = _randomised_svd(w.T, rank, num_iterations, rng)
        return uh.T, s, v.T
    basis = _columns(w @ rng.standard_normal((w.shape[1], rank), np.float32))
    for _ in range(num_iterations):
        basis = _columns(w @ _columns(w.T @ basis))
    u, s, vh = np.linalg.svd(basis.T @ w, full_matrices=False)
    return basis @ u, s, vh


def _columns(x: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of the column space of `x`."""
    return np.linalg.qr(x).Q
