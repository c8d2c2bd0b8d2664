"""What rounding loses of an update, by hand and by the law that the rest is what is left."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from jaxft.artifacts.rounding import Rounding

BF16 = np.dtype(ml_dtypes.bfloat16)
RNG = np.random.default_rng(0)


def test_a_step_of_bfloat16_by_hand():
    # From 1 the next number is 1 + 2**-7: a quarter of that is lost, three quarters are doubled up.
    base = np.ones((1, 2), BF16)
    merged = np.array([[1 + 2**-9, 1 + 3 * 2**-9]], np.float32)
    rounding = Rounding()
    rounding.add("w", base, merged, merged.astype(BF16))
    assert rounding.lost == pytest.approx((2 / 10) ** 0.5)
    assert rounding.report() == {
        "rounding": {
            "dtype": "bfloat16",
            "lost_of_update": 0.447,
            "worst_tensor": "w",
            "worst_lost_of_update": 0.447,
        }
    }
    assert rounding.in_words() == (
        "Rounding to bfloat16 lost 44.72% of the adapter's update; most in w, 44.72%."
    )


def test_the_worst_is_the_one_with_the_smallest_update():
    rounding, lost, updates = Rounding(), 0.0, 0.0
    for name, size in (("large", 1.0), ("small", 1e-3)):
        base = RNG.standard_normal((30, 20)).astype(BF16)
        update = size * RNG.standard_normal((30, 20)).astype(np.float32)
        merged = base.astype(np.float32) + update
        written = merged.astype(BF16)
        rounding.add(name, base, merged, written)
        lost += np.square(written.astype(np.float64) - merged).sum()
        updates += np.square(merged.astype(np.float64) - base.astype(np.float64)).sum()
    assert rounding.lost == pytest.approx((lost / updates) ** 0.5, rel=1e-5)
    name, share = rounding.worst()
    assert name == "small"
    assert share > 0.5 > rounding.lost


def test_an_update_that_is_too_small_is_lost_whole():
    rounding = Rounding()
    merged = np.full((3, 3), 1 + 2**-10, np.float32)
    rounding.add("w", np.ones((3, 3), BF16), merged, merged.astype(BF16))
    assert rounding.lost == 1


def test_float32_loses_nothing_and_a_tensor_without_an_update_is_left_out():
    rounding = Rounding()
    base = RNG.standard_normal((4, 4)).astype(np.float32)
    rounding.add("norm", base, base, base)
    assert not rounding.has_updates
    assert rounding.report() == {}
    rounding.add("w", base, base + 1, base + 1)
    assert rounding.lost == 0
    assert rounding.in_words() == (
        "Merged in float32: nothing of the adapter's update is lost by rounding."
    )
