"""Attention against the whole score matrix, forward and backward, and what is chosen to do it."""

import functools

import jax
import jax.numpy as jnp
import naive
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxft.models.attention import attend as attending
from jaxft.models.attention import chunked, slots
from jaxft.models.attention.attend import Implementation, attend
from jaxft.models.attention.layout import Slots, WholeRows
from jaxft.models.attention.scores import Scores, alibi_slopes

B, G, MANY, WIDTH, SCALE = 2, 2, 3, 8, 0.4


def draw(length, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(B, length, G, MANY, WIDTH), (B, length, G, WIDTH), (B, length, G, WIDTH)]
    q, k, v, d_out = (rng.standard_normal(shape) for shape in [*shapes, shapes[0]])
    return [jnp.asarray(array, jnp.float32) for array in (2 * q, k, v, d_out)]


def two_segments(length):
    """Return segment ids: row 0 is one text, row 1 two texts and padding."""
    ids = np.ones((B, length), np.int32)
    ids[1, length // 3 :] = 2
    ids[1, length - length // 5 :] = 0
    return jnp.asarray(ids)


@functools.partial(jax.jit, static_argnums=(5, 6))
def value_and_gradients(q, k, v, segments, d_out, scoring, plain):
    def mixed(q, k, v):
        if plain:
            seen = naive_visible(segments, scoring.window)
            extra = {"softcap": scoring.softcap, "slopes": scoring.slopes}
            return naive.attention(q, k, v, seen, SCALE, jnp, **extra)
        return within_rows(q, k, v, segments, scoring)

    value, pull_back = jax.vjp(mixed, q, k, v)
    return value, *pull_back(d_out)


def within_rows(q, k, v, segments, scoring):
    return attend(scoring, q, k, v, WholeRows(segments), tiny.one_device())


def naive_visible(segments, window):
    length = segments.shape[1]
    behind = jnp.arange(length)[:, None] - jnp.arange(length)[None, :]
    seen = (behind >= 0) & (behind < (length if window is None else window))
    return (segments[:, :, None] == segments[:, None, :]) & seen[None]


def scoring(window, softcap=None, slopes=None):
    return Scores(window, SCALE, softcap, slopes)


def check(length, scores, segments, seed=0):
    q, k, v, d_out = draw(length, seed)
    found = value_and_gradients(q, k, v, segments, d_out, scores, False)
    expected = value_and_gradients(q, k, v, segments, d_out, scores, True)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


# One position; one chunk; a last chunk of one; a multiple of the chunk; more than four chunks.
@pytest.mark.parametrize(
    ("length", "window"),
    [(1, None), (13, 1), (33, 7), (64, None), (259, 100)],
)
def test_value_and_gradients_are_those_of_the_whole_score_matrix(length, window):
    check(length, scoring(window), two_segments(length))


SLOPES = alibi_slopes(G * MANY)


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("extra", [{"softcap": 1.5}, {"slopes": SLOPES}], ids=["softcap", "alibi"])
def test_soft_caps_and_penalties_on_distance_too(extra, window):
    # Not compiled: at the optimization level of these tests XLA makes NaN of the oracle's gradient
    # where a weight underflows, which it is not, taken operation by operation.
    q, k, v, d_out = draw(150)
    arrays = (q, k, v, two_segments(150), d_out, scoring(window, **extra))
    found = value_and_gradients(*arrays, False)
    with jax.disable_jit():
        expected = value_and_gradients(*arrays, True)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


def test_slopes_are_a_geometric_series_and_other_counts_borrow_from_the_next():
    assert alibi_slopes(8) == pytest.approx(naive.alibi_slopes(8))
    eleven = [*naive.alibi_slopes(8), *naive.alibi_slopes(16)[0:6:2]]
    assert alibi_slopes(11) == pytest.approx(eleven)


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=33, max_size=33), min_size=B, max_size=B),
    st.integers(0, 2**16),
)
def test_any_segments_are_kept_apart(segments, seed):
    check(33, scoring(7), jnp.asarray(segments, jnp.int32), seed)


@given(st.integers(1, 5000), st.none() | st.integers(1, 5000))
def test_chunks_cover_every_query_once_and_every_key_it_sees(length, window):
    covered = 0
    chunks = list(chunked._chunks(length, window))
    for rows, keys in chunks:
        assert rows.start == covered
        covered = rows.stop
        first_seen = 0 if window is None else max(rows.start - window + 1, 0)
        assert keys.start <= first_seen
        assert keys.stop == rows.stop
    assert covered == length
    assert len(chunks) <= chunked._MAX_CHUNKS


@given(st.integers(256, 5000), st.integers(1, 100))
def test_a_window_bounds_the_keys_of_a_chunk(length, window):
    for rows, keys in chunked._chunks(length, window):
        assert keys.stop - keys.start < rows.stop - rows.start + window


def test_rows_of_nothing_but_padding_are_finite_and_harm_no_one():
    length = 33
    q, k, v, d_out = draw(length)
    segments = two_segments(length).at[1].set(0)
    found = value_and_gradients(q, k, v, segments, d_out, scoring(7), False)
    whole = value_and_gradients(q, k, v, two_segments(length), d_out, scoring(7), False)
    for ours, theirs in zip(found, whole, strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_array_equal(ours[0], theirs[0])


def test_bfloat16_is_within_a_hundredth_of_float32():
    arrays = [array.astype(jnp.bfloat16) for array in draw(33)]
    exact = [array.astype(jnp.float32) for array in arrays]
    segments = two_segments(33)
    found = value_and_gradients(*arrays[:3], segments, arrays[3], scoring(7), False)
    expected = value_and_gradients(*exact[:3], segments, exact[3], scoring(7), True)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == jnp.bfloat16
        error = np.linalg.norm(ours.astype(jnp.float32) - theirs) / np.linalg.norm(theirs)
        assert error < 1e-2


def test_nothing_as_large_as_the_scores_is_kept():
    q, k, v, _ = draw(259)
    segments = two_segments(259)

    def mixed(q, k, v):
        return within_rows(q, k, v, segments, scoring(None))

    pull_back = jax.eval_shape(lambda *arrays: jax.vjp(mixed, *arrays)[1], q, k, v)
    kept = sum(leaf.size for leaf in jax.tree.leaves(pull_back))
    # q and the output, k and v, the log of the sums, the segments.
    assert kept <= 2 * q.size + k.size + v.size + q.size // WIDTH + segments.size


def in_slots(q, k, v, seen, scoring):
    """Attend to a cache whose slots are the tokens themselves, in their order."""
    distance = np.arange(13)[:, None] - np.arange(13)[None, :]
    layout = Slots(jnp.asarray(seen), jnp.asarray(distance, jnp.int32), jnp.int32(0))
    return attend(scoring, q, k, v, layout, tiny.one_device())


@pytest.mark.parametrize(
    "extra", [{}, {"softcap": 1.5}, {"slopes": SLOPES}], ids=["plain", "softcap", "alibi"]
)
@pytest.mark.parametrize("window", [None, 5])
def test_new_tokens_attend_to_the_visible_slots_within_the_window(window, extra):
    q, k, v, _ = draw(13)
    seen = naive.visible(two_segments(13), None)
    found = in_slots(q, k, v, seen, scoring(window, **extra))
    within = naive.visible(two_segments(13), window)
    expected = naive.attention(*map(np.asarray, (q, k, v)), within, SCALE, **extra)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_slots_give_a_finite_output_where_a_query_sees_nothing():
    q, k, v, _ = draw(13)
    assert np.isfinite(in_slots(q, k, v, np.zeros((B, 13, 13), bool), scoring(None))).all()


# A kernel as it might come: of GPUs, for training, without soft caps, for heads of 8's multiples.
KERNEL = Implementation(
    WholeRows,
    frozenset(["gpu"]),
    lambda scoring, q: scoring.softcap is None and q.shape[-1] % 8 == 0,
    lambda scoring, q, k, v, layout, mesh: v,
)
TABLE = (KERNEL, *attending.IMPLEMENTATIONS)
ROWS_LAYOUT = WholeRows(np.ones((B, 13), np.int32))
SLOTS_LAYOUT = Slots(np.ones((B, 13, 13), bool), np.zeros((13, 13), np.int32), np.int32(0))


@pytest.mark.parametrize(
    ("platform", "layout", "softcap", "width", "chosen"),
    [
        ("gpu", ROWS_LAYOUT, None, 16, KERNEL.attend),
        ("cpu", ROWS_LAYOUT, None, 16, chunked.attend),
        ("gpu", ROWS_LAYOUT, 2.0, 16, chunked.attend),
        ("gpu", ROWS_LAYOUT, None, 12, chunked.attend),
        ("gpu", SLOTS_LAYOUT, None, 16, slots.attend),
    ],
)
def test_the_first_implementation_that_serves_is_chosen(platform, layout, softcap, width, chosen):
    q = jax.ShapeDtypeStruct((B, 13, G, MANY, width), jnp.float32)
    found = attending.choose(TABLE, scoring(None, softcap), q, layout, platform)
    assert found.attend is chosen


def test_scores_that_no_implementation_makes_are_an_error():
    q = jax.ShapeDtypeStruct((B, 13, G, MANY, WIDTH), jnp.float32)
    with pytest.raises(LookupError, match=r"softcap=2\.0.* over WholeRows on gpu"):
        attending.choose([KERNEL], scoring(None, 2.0), q, ROWS_LAYOUT, "gpu")


def test_an_implementation_of_the_meshs_platform_is_called_with_the_mesh(monkeypatch):
    called = []

    def noting(scoring, q, k, v, layout, mesh):
        called.append(mesh)
        return q

    kernel = Implementation(WholeRows, frozenset(["cpu"]), lambda scoring, q: True, noting)
    monkeypatch.setattr(attending, "IMPLEMENTATIONS", (kernel, *attending.IMPLEMENTATIONS))
    q, k, v, _ = draw(13)
    found = within_rows(q, k, v, two_segments(13), scoring(None))
    np.testing.assert_array_equal(found, q)
    assert called == [tiny.one_device()]
