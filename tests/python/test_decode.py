"""decode_centers against plain loops and against torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from centermask import ops


def reference(heatmap: np.ndarray, top_k: int, score_threshold: float) -> list[list[tuple[float, int, int]]]:
    """(logit, class, index) of the centres of each image, best first."""
    n, classes, height, width = heatmap.shape
    if score_threshold <= 0:
        least = -math.inf
    elif score_threshold >= 1:
        least = math.inf
    else:
        least = math.log(score_threshold / (1 - score_threshold))
    images = []
    for i in range(n):
        found = []
        for c in range(classes):
            for y in range(height):
                for x in range(width):
                    value = float(heatmap[i, c, y, x])
                    if math.isnan(value) or value < least:
                        continue
                    around = [
                        float(heatmap[i, c, v, u])
                        for v in range(max(y - 1, 0), min(y + 2, height))
                        for u in range(max(x - 1, 0), min(x + 2, width))
                    ]
                    if all(math.isnan(a) or a <= value for a in around):
                        found.append((value, c, y * width + x))
        found.sort(key=lambda f: (-f[0], f[1], f[2]))
        images.append(found[:top_k])
    return images


def check(heatmap: np.ndarray, top_k: int, score_threshold: float, threads: int = 1) -> None:
    centers = ops.decode_centers(heatmap, top_k, score_threshold, threads=threads)
    expected = reference(heatmap, top_k, score_threshold)
    assert centers.scores.shape == centers.labels.shape == centers.index.shape == (len(heatmap), top_k)
    assert centers.count.tolist() == [len(e) for e in expected]
    for i, rows in enumerate(expected):
        k = len(rows)
        assert centers.labels[i, :k].tolist() == [c for _, c, _ in rows]
        assert centers.index[i, :k].tolist() == [x for _, _, x in rows]
        # Computed in double and rounded once, so half a unit in the last place; a whole one for another libm.
        values = np.array([v for v, _, _ in rows], np.float64)
        with np.errstate(over="ignore"):
            scores = 1 / (1 + np.exp(-values))
        np.testing.assert_allclose(centers.scores[i, :k], scores, rtol=2 * np.finfo(heatmap.dtype).eps, atol=1e-45)
        assert (centers.scores[i, k:] == 0).all()
        assert (centers.labels[i, k:] == -1).all()
        assert (centers.index[i, k:] == 0).all()


# Few distinct values make plateaus and ties; the special ones are where comparisons go wrong.
LOGITS = st.sampled_from([-3.0, -1.0, -0.0, 0.0, 0.5, 2.0, math.inf, -math.inf, math.nan])


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_equals_the_loops_on_small_maps(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(low, high)) for low, high in [(0, 3), (1, 4), (1, 7), (1, 9)])
    size = math.prod(shape)
    values = data.draw(st.lists(LOGITS, min_size=size, max_size=size))
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    heatmap = np.array(values, dtype).reshape(shape)
    top_k = data.draw(st.sampled_from([1, 2, 5, 300]))
    threshold = data.draw(st.sampled_from([0.0, 0.1, 0.5, 0.6, 1.0]))
    check(heatmap, top_k, threshold, data.draw(st.sampled_from([1, 2, 3])))


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("quantum", [0.0, 0.25], ids=["distinct", "ties"])
def test_prunes_correctly_on_maps_larger_than_a_block(threads: int, quantum: float) -> None:
    # 130 columns: two vector blocks and a rest of 2; enough cells for several ranges of rows for each image.
    heatmap = np.random.default_rng(7).normal(-2, 2, (2, 3, 60, 130)).astype(np.float32)
    if quantum:
        heatmap = (np.round(heatmap / quantum) * quantum).astype(np.float32)
    for top_k, threshold in [(1, 0.0), (10, 0.0), (100, 0.3), (5000, 0.05)]:
        check(heatmap, top_k, threshold, threads)


def test_a_rising_map_replaces_its_best_all_the_way() -> None:
    # Isolated peaks, each higher than all before: the running bound never prunes and the buffer overflows often.
    heatmap = np.full((1, 1, 64, 96), -20.0, np.float32)
    heatmap[:, :, ::2, ::2] = np.linspace(-5, 5, 32 * 48, dtype=np.float32).reshape(32, 48)
    check(heatmap, 3, 0.0)
    check(heatmap[:, :, ::-1, ::-1], 3, 0.0)


@pytest.mark.parametrize("value", [-math.inf, -1.0, 0.0, math.inf])
def test_plateaus_are_kept_whole_and_in_order(value: float) -> None:
    check(np.full((1, 2, 40, 70), value, np.float32), 50, 0.0, threads=2)
    check(np.full((2, 2, 3, 4), value, np.float32), 50, 0.0)


def test_nan_neither_wins_nor_suppresses() -> None:
    heatmap = np.full((1, 1, 3, 3), np.nan, np.float32)
    assert ops.decode_centers(heatmap, 5).count.tolist() == [0]
    heatmap[0, 0, 1, 1] = -4
    centers = ops.decode_centers(heatmap, 5)
    assert centers.count.tolist() == [1]
    assert centers.index[0, 0] == 4


def test_negative_zero_ties_with_zero() -> None:
    heatmap = np.full((1, 2, 1, 5), -9.0, np.float32)
    heatmap[0, 0, 0, 3] = -0.0
    heatmap[0, 1, 0, 1] = 0.0
    centers = ops.decode_centers(heatmap, 2)
    assert centers.labels.tolist() == [[0, 1]]
    assert centers.index.tolist() == [[3, 1]]


@pytest.mark.parametrize("threshold", [0.05, 0.1, 0.25, 0.3, 0.5, 0.7, 0.9])  # rounded to float32 up and down
def test_the_threshold_is_the_logit_that_is_documented(threshold: float) -> None:
    logit = math.log(threshold / (1 - threshold))
    least = np.float32(logit)
    if float(least) < logit:
        least = np.nextafter(least, np.float32(9))
    below = np.nextafter(least, np.float32(-9))
    assert float(below) < logit <= float(least)
    centers = ops.decode_centers(np.array([least, -99, below], np.float32).reshape(1, 1, 1, 3), 5, threshold)
    assert centers.count.tolist() == [1]
    assert centers.index[0, 0] == 0


def test_the_ends_of_the_threshold() -> None:
    extremes = np.array([50, -900, -800], np.float32).reshape(1, 1, 1, 3)
    assert ops.decode_centers(extremes, 5, 0.0).count.tolist() == [2]
    assert ops.decode_centers(extremes, 5, 1.0).count.tolist() == [0]


def test_the_running_bound_lets_the_next_larger_value_in() -> None:
    heatmap = np.full((1, 1, 64, 96), -9.0, np.float32)
    heatmap[:, :, ::2, ::2] = 1.0
    heatmap[0, 0, 62, 90] = np.nextafter(np.float32(1), np.float32(2))
    assert ops.decode_centers(heatmap, 1).index.tolist() == [[62 * 96 + 90]]


def test_any_strides() -> None:
    base = np.random.default_rng(3).normal(size=(2, 20, 150, 4)).astype(np.float32)
    for view in [
        base.transpose(0, 3, 1, 2),  # channels last
        base.transpose(0, 3, 2, 1),
        base[:, ::-1, ::2, ::-1].transpose(0, 3, 1, 2),
        np.broadcast_to(base[:1, :1, :, :1].transpose(0, 3, 1, 2), (3, 2, 5, 150)),
    ]:
        check(view, 4000, 0.0)  # every peak: the few best would be peaks with any neighbours
        check(view, 20, 0.2, threads=3)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (2, 3, 4, 0), (1, 1, 1, 1), (33, 1, 1, 2)])
def test_empty_and_tiny_shapes(shape: tuple[int, ...]) -> None:
    check(np.zeros(shape, np.float32), 4, 0.0)


def test_equals_torch() -> None:
    torch = pytest.importorskip("torch")
    heatmap = torch.randn(2, 5, 40, 48, generator=torch.Generator().manual_seed(0)) * 3
    peak = torch.nn.functional.max_pool2d(heatmap, 3, 1, 1) == heatmap
    flat = torch.where(peak, heatmap, -torch.inf).flatten(1)
    values, position = flat.topk(100, dim=1)
    centers = ops.decode_centers(heatmap, 100)  # through DLPack
    np.testing.assert_array_equal(centers.labels, position.numpy() // (40 * 48))
    np.testing.assert_array_equal(centers.index, position.numpy() % (40 * 48))
    # Both round a value computed to about one unit in the last place of float32.
    np.testing.assert_allclose(centers.scores, values.sigmoid().numpy(), rtol=3e-7)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.zeros((2, 3), np.float32), 1), ValueError, r"heatmap must be \[N, C, H, W\], got \[2, 3\]"),
        ((np.zeros((1, 1, 2, 2), np.float16), 1), TypeError, "heatmap must be float32 or float64, got float16"),
        ((np.zeros((1, 1, 2, 2), np.int64), 1), TypeError, "heatmap must be float32 or float64, got int64"),
        (([[[[0.0]]]], 1), TypeError, "heatmap must be a NumPy array or a DLPack tensor, got list"),
        ((np.zeros((1, 1, 2, 2), np.float32), 0), ValueError, "top_k must be >= 1, got 0"),
        ((np.zeros((1, 1, 2, 2), np.float32), 1, 1.5), ValueError, r"score_threshold must be in \[0, 1\], got 1.5"),
        ((np.zeros((1, 1, 2, 2), np.float32), 1, math.nan), ValueError, r"score_threshold must be in \[0, 1\]"),
    ],
)
def test_errors_name_the_argument(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"decode_centers: {message}"):
        ops.decode_centers(*arguments)
