from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxft.errors import UnsupportedModelError
from jaxft.models.families import rope_config
from jaxft.models.families.config_reader import ConfigReader
from jaxft.models.rope import frequencies
from jaxft.weights.formats import gguf_rope

CONFIG = {"head_dim": 64, "max_position_embeddings": 131072}


def nothing(name: str) -> None:
    del name


def angles(written: dict[str, Any], *, is_long: bool = False) -> np.ndarray:
    """Radians per position, as the model turns by what was written."""
    reader = ConfigReader(CONFIG | {"rope_parameters": written})
    rope = rope_config.read_rope(reader, head_dim=CONFIG["head_dim"], theta=1.0, partial=1.0)
    return frequencies(rope, is_long=is_long)


def llama_cpp(theta: float, factors: np.ndarray | float, rotary_dim: int = 64) -> np.ndarray:
    return theta ** -(np.arange(0, rotary_dim, 2) / rotary_dim) / factors


def llama3_factors(theta: float, factor: float) -> np.ndarray:
    """As the converter of Llama 3.1 computes them, with its loop."""
    factors = []
    for channel in range(0, 64, 2):
        wavelength = 2 * np.pi * theta ** (channel / 64)
        smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
        if wavelength < 8192 / 4.0:
            factors.append(1.0)
        elif wavelength > 8192 / 1.0:
            factors.append(factor)
        else:
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_factors_of_llama_3_are_recognised(factor: float) -> None:
    factors = llama3_factors(500_000.0, factor)
    assert 2 < len({*factors}) < 10
    written = gguf_rope.one(CONFIG, {"rope.freq_base": 500_000.0}, lambda _: factors)
    assert written == {
        "rope_theta": 500_000.0,
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    np.testing.assert_allclose(angles(written), llama_cpp(500_000.0, factors), rtol=1e-5)


@given(st.lists(st.floats(0.5, 100.0, width=32), min_size=32, max_size=32))
def test_any_other_factors_are_kept_one_by_one(drawn: list[float]) -> None:
    factors = np.array(drawn, np.float32)
    written = gguf_rope.one(CONFIG, {"rope.freq_base": 10_000.0}, lambda _: factors)
    for is_long in (False, True):
        np.testing.assert_allclose(
            angles(written, is_long=is_long), llama_cpp(10_000.0, factors), rtol=1e-5
        )


def test_one_factor_of_llama_3_that_differs_is_not_lost() -> None:
    factors = llama3_factors(500_000.0, 8.0)
    factors[-1] *= np.float32(1.01)
    written = gguf_rope.one(CONFIG, {"rope.freq_base": 500_000.0}, lambda _: factors)
    np.testing.assert_allclose(angles(written), llama_cpp(500_000.0, factors), rtol=1e-5)


@pytest.mark.parametrize(
    ("keys", "written"),
    [
        ({}, {"rope_theta": 10000.0, "rope_type": "default"}),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 8.0}, {"rope_type": "default"}),
        ({"rope.scaling.type": "linear"}, {"rope_type": "default"}),
        ({"rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0, "rope.freq_base": 500.0},
            {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0},
        ),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0},
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 131072,
            },
        ),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 32768,
            },
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        ),
    ],
)
def test_scaling_by_keys(keys: dict[str, Any], written: dict[str, Any]) -> None:
    assert gguf_rope.one(CONFIG, keys, nothing) == {"rope_theta": 10000.0} | written


@pytest.mark.parametrize(
    ("keys", "factors", "found"),
    [
        ({"rope.scaling.type": "longrope"}, None, "rope.scaling.type is longrope"),
        ({"rope.scaling.factor": 2.0}, np.ones(32, np.float32), "rope of kind linear and rope_f"),
        ({"rope.dimension_count": 32}, None, "dimension_count is 32 where a head's width is 64"),
    ],
)
def test_what_has_no_counterpart_is_refused(
    keys: dict[str, Any], factors: np.ndarray | None, found: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=found):
        gguf_rope.one(CONFIG, keys, lambda _: factors)


SHORT, LONG = np.linspace(1, 2, 24, dtype=np.float32), np.linspace(1, 40, 24, dtype=np.float32)
FACTORS = {"rope_factors_short": SHORT, "rope_factors_long": LONG}


def test_short_and_long_factors_turn_part_of_a_head() -> None:
    keys = {"rope.dimension_count": 48, "rope.scaling.attn_factor": 1.25, "rope.freq_base": 5e3}
    written = gguf_rope.by_length(CONFIG, keys, FACTORS.get)
    assert written["rope_type"] == "longrope"
    assert written["partial_rotary_factor"] == 0.75
    assert written["attention_factor"] == 1.25
    for is_long, factors in ((False, SHORT), (True, LONG)):
        np.testing.assert_allclose(
            angles(written, is_long=is_long), llama_cpp(5e3, factors, 48), rtol=1e-5
        )


def test_without_factors_there_is_no_scaling() -> None:
    assert gguf_rope.by_length(CONFIG, {"rope.scaling.attn_factor": 1.0}, nothing) == {
        "rope_theta": 10000.0,
        "rope_type": "default",
    }


@pytest.mark.parametrize("there", ["rope_factors_short", "rope_factors_long"])
def test_one_set_of_factors_alone_is_refused(there: str) -> None:
    with pytest.raises(UnsupportedModelError, match="some"):
        gguf_rope.by_length(CONFIG, {}, {there: SHORT}.get)


def test_a_magnitude_without_factors_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"magnitude of 1\.25"):
        gguf_rope.by_length(CONFIG, {"rope.scaling.attn_factor": 1.25}, nothing)
