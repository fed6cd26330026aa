"""ops.preprocess against plain loops in double and against OpenCV."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from centermask import ops

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

# Weights, products and sums are float32 on values up to 255: a handful of roundings of 255 * 2^-24 = 1.5e-5 each.
GREY_TOLERANCE = 1e-4


def reference(
    image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], mean: Any, std: Any, swap: bool = False
) -> np.ndarray:
    height, width, _ = image.shape
    result = np.zeros((3, *size), np.float64)

    def pixel(y: int, x: int, c: int) -> float:
        return float(image[y, x, c]) if 0 <= y < height and 0 <= x < width else 0.0

    for v in range(size[0]):
        for u in range(size[1]):
            x = (u + 0.5 - matrix[0, 2]) / matrix[0, 0] - 0.5
            y = (v + 0.5 - matrix[1, 2]) / matrix[1, 1] - 0.5
            x0, y0 = math.floor(x), math.floor(y)
            fx, fy = x - x0, y - y0
            for c in range(3):
                s = 2 - c if swap else c
                top = (1 - fx) * pixel(y0, x0, s) + fx * pixel(y0, x0 + 1, s)
                bottom = (1 - fx) * pixel(y0 + 1, x0, s) + fx * pixel(y0 + 1, x0 + 1, s)
                result[c, v, u] = ((1 - fy) * top + fy * bottom - mean[c]) / std[c]
    return result


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def affine(ax: float, tx: float, ay: float, ty: float) -> np.ndarray:
    return np.array([[ax, 0, tx], [0, ay, ty]], np.float64)


SCALE = st.one_of(st.sampled_from([1.0, 2.0, 0.5, -1.0]), st.floats(0.05, 4), st.floats(-4, -0.05))
SHIFT = st.one_of(st.sampled_from([0.0, 0.5, 1e9, -1e300]), st.floats(-20, 20))


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    scales=st.tuples(SCALE, SCALE),
    shifts=st.tuples(SHIFT, SHIFT),
    swap=st.booleans(),
    threads=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 99),
)
def test_equals_the_loops(
    height: int,
    width: int,
    size: tuple[int, int],
    scales: tuple[float, float],
    shifts: tuple[float, float],
    swap: bool,
    threads: int,
    seed: int,
) -> None:
    image = random_image(height, width, seed)
    matrix = affine(scales[0], shifts[0], scales[1], shifts[1])
    result = ops.preprocess(image, matrix, size, mean=MEAN, std=STD, swap_channels=swap, threads=threads)
    expected = reference(image, matrix, size, MEAN, STD, swap)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=0, atol=GREY_TOLERANCE / min(STD))


def test_the_rim_fades_over_one_pixel() -> None:
    image = np.full((1, 1, 3), 255, np.uint8)
    for shift in np.linspace(-1.25, 1.25, 501):
        matrix = affine(1, shift, 1, 0)
        result = ops.preprocess(image, matrix, (1, 1), mean=(0, 0, 0), std=(1, 1, 1), threads=1)
        np.testing.assert_allclose(result, 255 * max(0.0, 1 - abs(shift)), rtol=0, atol=GREY_TOLERANCE)


def test_identity_is_exact() -> None:
    image = random_image(5, 7)
    result = ops.preprocess(image, affine(1, 0, 1, 0), (5, 7), mean=(0, 0, 0), std=(1, 1, 1))
    np.testing.assert_array_equal(result, image.transpose(2, 0, 1))


def test_padding_is_black_before_normalising() -> None:
    image = np.full((2, 2, 3), 255, np.uint8)
    result = ops.preprocess(image, affine(1, 3, 1, 4), (10, 10), mean=MEAN, std=STD)
    black = -np.array(MEAN) / STD
    np.testing.assert_allclose(result[:, 0, 0], black, rtol=1e-6)
    np.testing.assert_allclose(result[:, 9, 4], black, rtol=1e-6)
    np.testing.assert_allclose(result[:, 5, 4], (255 - np.array(MEAN)) / STD, rtol=1e-6)


def test_swapping_channels_equals_reversing_them() -> None:
    image = random_image(6, 5)
    matrix = affine(1.7, 0.3, 1.7, -0.2)
    swapped = ops.preprocess(image, matrix, (12, 9), mean=MEAN, std=STD, swap_channels=True)
    np.testing.assert_array_equal(swapped, ops.preprocess(image[..., ::-1], matrix, (12, 9), mean=MEAN, std=STD))


def test_any_strides() -> None:
    base = random_image(20, 24)
    planar = random_image(8, 9).transpose(2, 0, 1).copy().transpose(1, 2, 0)
    one_row = np.broadcast_to(base[:1], (6, 24, 3))
    for view in [base[3:11, 5:15], base[::-2, ::-3], planar, one_row, base[:, :, ::-1]]:
        matrix = affine(0.8, 1.25, 1.3, -0.75)
        expected = ops.preprocess(np.ascontiguousarray(view), matrix, (12, 14), mean=MEAN, std=STD)
        np.testing.assert_array_equal(ops.preprocess(view, matrix, (12, 14), mean=MEAN, std=STD), expected)


def test_threads_do_not_change_the_result() -> None:
    image = random_image(50, 40)
    matrix = affine(1.9, 2.5, 1.9, 7.5)
    results = [ops.preprocess(image, matrix, (96, 96), mean=MEAN, std=STD, threads=t) for t in (1, 2, 3, 8)]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_writes_into_a_slot_of_a_batch() -> None:
    image = random_image(8, 8)
    batch = np.full((2, 3, 10, 12), 7, np.float32)
    matrix = affine(1, 0, 1, 0)
    slot = batch[1, :, 1:9, 2:10]
    assert ops.preprocess(image, matrix, (8, 8), mean=MEAN, std=STD, out=slot) is slot
    np.testing.assert_array_equal(slot, ops.preprocess(image, matrix, (8, 8), mean=MEAN, std=STD))
    assert (batch[0] == 7).all()
    assert (batch[1, :, 0] == 7).all()
    assert (batch[1, :, :, :2] == 7).all()


def test_close_to_opencv() -> None:
    cv2 = pytest.importorskip("cv2")
    image = random_image(60, 80)
    matrix = affine(0.9, 3.2, 0.9, -4.4)
    # OpenCV counts from the centre of pixel 0, we from its corner: the same map, shifted by half a pixel on each side.
    theirs = matrix.copy()
    theirs[:, 2] += 0.5 * matrix[:, :2].sum(1) - 0.5
    warped = cv2.warpAffine(image, theirs, (64, 48), flags=cv2.INTER_LINEAR)
    ours = ops.preprocess(image, matrix, (48, 64), mean=(0, 0, 0), std=(1, 1, 1)).transpose(1, 2, 0)
    # OpenCV 4 rounds coordinates to 1/32 pixel: up to 255 / 32 grey levels an axis between neighbours that differ by
    # 255, and noise has such neighbours. On average the error is far smaller.
    difference = np.abs(ours - warped)
    assert difference.max() <= 2 * 255 / 64 + 0.5 + 1e-3
    assert difference.mean() <= 1.5


IMAGE = np.zeros((4, 5, 3), np.uint8)
IDENTITY = affine(1, 0, 1, 0)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"image": IMAGE[..., 0]}, ValueError, r"image must be \[H >= 1, W >= 1, 3\], got \[4, 5\]"),
        ({"image": np.zeros((0, 5, 3), np.uint8)}, ValueError, r"image must be \[H >= 1, W >= 1, 3\], got \[0, 5, 3\]"),
        ({"image": IMAGE.astype(np.float32)}, TypeError, "image must be uint8, got float32"),
        ({"image_to_input": np.eye(3)}, ValueError, r"image_to_input must be \[2, 3\], got \[3, 3\]"),
        ({"image_to_input": [[1, 0.1, 0], [0, 1, 0]]}, ValueError, r"image_to_input must be \[\[a, 0, t\]"),
        ({"image_to_input": [[0, 0, 0], [0, 1, 0]]}, ValueError, r"image_to_input must be \[\[a, 0, t\]"),
        ({"image_to_input": [[1, 0, math.nan], [0, 1, 0]]}, ValueError, "image_to_input must be finite, got"),
        ({"size": (0, 3)}, ValueError, "size must be"),
        ({"mean": (0, 0)}, ValueError, "mean and std must have 3 values, got 2 and 3"),
        ({"std": (1, 0, 1)}, ValueError, "std must be finite and > 0, got 0"),
        ({"out": np.zeros((3, 4, 4), np.float32)}, ValueError, r"out must be \[3, 6, 7\], got \[3, 4, 4\]"),
        ({"out": np.zeros((3, 6, 7))}, TypeError, "out must be float32, got float64"),
        ({"out": np.zeros((3, 7, 6), np.float32).transpose(0, 2, 1)}, ValueError, "out must have adjacent pixels"),
    ],
)
def test_errors_name_the_argument(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"image": IMAGE, "image_to_input": IDENTITY, "size": (6, 7), "mean": MEAN, "std": STD}
    arguments.update(changes)
    with pytest.raises(error, match=f"preprocess: {message}"):
        ops.preprocess(arguments.pop("image"), arguments.pop("image_to_input"), arguments.pop("size"), **arguments)
