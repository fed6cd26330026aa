"""Where a picture lies in the network's input, for each size policy; and against OpenCV."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from centermask.cli import sample_picture
from centermask.config import PreprocessConfig
from centermask.predictor import boxes_in_image
from centermask.preprocess import input_transform, load_image, prepare

PLAIN = PreprocessConfig(size=64, color="bgr", mean=(0, 0, 0), std=(1, 1, 1))
SIDE = st.one_of(st.integers(1, 70), st.integers(1, 5000))


@settings(max_examples=200, deadline=None)
@given(height=SIDE, width=SIDE, size=st.integers(1, 700))
def test_fit(height: int, width: int, size: int) -> None:
    matrix, (h, w) = input_transform((height, width), replace(PLAIN, size=size))
    scale = size / max(height, width)
    assert matrix[0, 0] == matrix[1, 1] == scale
    assert matrix[0, 1] == matrix[1, 0] == 0
    for outer, side, shift in [(w, width, matrix[0, 2]), (h, height, matrix[1, 2])]:
        content = max(1, round(side * scale))
        assert outer % 32 == 0
        assert content <= outer < content + 32
        # Whole pixels of padding, and the middle of the picture in the middle of what remains.
        assert shift + side * scale / 2 == pytest.approx((outer - content) // 2 + content / 2, abs=1e-9)


def test_fit_of_a_picture_that_fits_is_a_copy() -> None:
    image = np.random.default_rng(0).integers(0, 256, (37, 64, 3), dtype=np.uint8)
    network_input, matrix = prepare(image, PLAIN)
    assert network_input.shape == (3, 64, 64)
    assert matrix.tolist() == [[1, 0, 0], [0, 1, 13]]
    np.testing.assert_array_equal(network_input[:, 13:50], image.transpose(2, 0, 1))
    assert (network_input[:, :13] == 0).all()
    assert (network_input[:, 50:] == 0).all()


@pytest.mark.parametrize(
    ("side", "padded"), [(1, 32), (31, 32), (32, 64), (427, 448), (480, 512), (512, 544), (640, 672)]
)
def test_keep_pads_as_published(side: int, padded: int) -> None:
    matrix, size = input_transform((side, 33), replace(PLAIN, policy="keep"))
    assert size == (padded, 64)
    assert matrix.tolist() == [[1, 0, 32 - 33 // 2], [0, 1, padded // 2 - side // 2]]


def published(image: np.ndarray, size: int | None) -> np.ndarray:
    """CenterNet's test-time geometry, stated with OpenCV: three points and warpAffine on pixel indices."""
    height, width = image.shape[:2]
    if size is None:
        out_width, out_height = (width | 31) + 1, (height | 31) + 1
        center, source = np.array([width // 2, height // 2]), out_width
    else:
        out_width = out_height = size
        center, source = np.array([width / 2, height / 2]), max(height, width)
    target = np.array([out_width / 2, out_height / 2])
    # The middle, the point half a source extent above it, and that arm turned by a quarter.
    arms_from = np.array([[0, 0], [0, -source / 2], [-source / 2, 0]])
    arms_to = np.array([[0, 0], [0, -out_width / 2], [-out_width / 2, 0]])
    matrix = cv2.getAffineTransform((center + arms_from).astype(np.float32), (target + arms_to).astype(np.float32))
    return cv2.warpAffine(image, matrix, (out_width, out_height), flags=cv2.INTER_LINEAR)


def smooth_image(height: int, width: int) -> np.ndarray:
    """Without steps, so that OpenCV's rounding of coordinates costs little and a half-pixel shift would show."""
    y, x = np.mgrid[:height, :width]
    channels = [128 + 100 * np.sin(x / 5 + p) * np.cos(y / 6 - p) for p in (0, 1, 2)]
    return np.stack(channels, -1).round().astype(np.uint8)


@pytest.mark.parametrize("shape", [(90, 120), (120, 91), (50, 50), (300, 40)])
def test_fixed_samples_the_published_pixels(shape: tuple[int, int]) -> None:
    image = smooth_image(*shape)
    config = replace(PLAIN, policy="fixed", size=128)
    ours = prepare(image, config)[0].transpose(1, 2, 0)
    theirs = published(image, 128).astype(np.float64)
    # OpenCV 4 rounds coordinates to 1/32 pixel: gradients of up to 20 grey levels a pixel, 1/64 of it on each axis,
    # and half a level of its own rounding to uint8. The rim, where the picture meets black, is steep: left out.
    inside = np.zeros(ours.shape[:2], bool)
    scale = 128 / max(shape)
    half_h, half_w = int(shape[0] * scale / 2) - 3, int(shape[1] * scale / 2) - 3
    inside[64 - half_h : 64 + half_h, 64 - half_w : 64 + half_w] = True
    assert np.abs(ours - theirs)[inside].max() < 1.2
    # The test can tell: half a pixel off is far outside that tolerance.
    assert np.abs(np.roll(ours, 1, 1) - theirs)[inside].max() > 5


@pytest.mark.parametrize("shape", [(90, 121), (64, 64), (1, 1), (33, 7)])
def test_keep_equals_the_published_input_exactly(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    ours = prepare(image, replace(PLAIN, policy="keep"))[0].transpose(1, 2, 0)
    np.testing.assert_array_equal(ours, published(image, None))  # a shift by whole pixels leaves nothing to round


def odd_photographs() -> list[np.ndarray]:
    """Ten windows of the sample photograph, of odd sizes."""
    photograph = load_image(sample_picture())
    sizes = [(427, 513), (333, 301), (255, 257), (97, 401), (401, 97), (31, 33), (223, 225), (149, 151), (7, 5), (1, 3)]
    return [photograph[11 : 11 + height, 3 : 3 + width] for height, width in sizes]


def test_keep_equals_the_published_input_of_photographs_byte_for_byte() -> None:
    for image in odd_photographs():
        ours = prepare(image, replace(PLAIN, policy="keep"))[0].transpose(1, 2, 0)
        np.testing.assert_array_equal(ours.astype(np.uint8), published(image, None))


def exact(image: np.ndarray, size: int) -> np.ndarray:
    """CenterNet's scaling into a square in float64: bilinear on pixel indices, black outside."""
    height, width = image.shape[:2]
    scale = size / max(height, width)

    def weights(side: int) -> np.ndarray:
        place = (np.arange(size) - size / 2) / scale + side / 2
        return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(side)))  # [size, side]: a hat for each pixel

    return np.einsum("yi,ijc,xj->yxc", weights(height), image.astype(np.float64), weights(width), optimize=True)


def test_fixed_is_within_a_grey_level_of_exact_arithmetic_on_photographs() -> None:
    for image in odd_photographs():
        for policy in ("fixed", "fixed_index"):
            ours = prepare(image, replace(PLAIN, policy=policy, size=256))[0].transpose(1, 2, 0)  # type: ignore[arg-type]
            assert np.abs(ours - exact(image, 256)).max() < 0.05, policy


def published_boxes(cells: np.ndarray, image_size: tuple[int, int], size: int | None) -> np.ndarray:
    """CenterNet's way back from boxes in cells to boxes in the picture, stated with OpenCV."""
    height, width = image_size
    if size is None:
        out_width, out_height = (width | 31) + 1, (height | 31) + 1
        center, source = np.array([width // 2, height // 2]), out_width
    else:
        out_width = out_height = size
        center, source = np.array([width / 2, height / 2]), max(height, width)
    target = np.array([out_width // 4, out_height // 4]) / 2
    arms_from = np.array([[0, 0], [0, -source / 2], [-source / 2, 0]])
    arms_to = np.array([[0, 0], [0, -(out_width // 4) / 2], [-(out_width // 4) / 2, 0]])
    matrix = cv2.getAffineTransform((target + arms_to).astype(np.float32), (center + arms_from).astype(np.float32))
    points = cells.reshape(-1, 2).astype(np.float64)
    return (points @ matrix[:, :2].T + matrix[:, 2]).reshape(-1, 4)


@pytest.mark.parametrize(("policy", "size"), [("keep", None), ("fixed_index", 512)])
def test_boxes_come_back_as_published(policy: str, size: int | None) -> None:
    generator = np.random.default_rng(4)
    for image in odd_photographs():
        config = replace(PLAIN, policy=policy, size=size or 64)  # type: ignore[arg-type]
        matrix, _ = input_transform(image.shape[:2], config)
        cells = generator.uniform(0, 128, (20, 4)).astype(np.float32)
        expected = published_boxes(cells, image.shape[:2], size)
        # float32 of OpenCV's three points leaves some 1e-5 of the picture's side.
        np.testing.assert_allclose(boxes_in_image(4 * cells, matrix), expected, atol=0.005)
    if size is not None:  # the policy that is consistent with its samples lies elsewhere
        other, _ = input_transform((31, 33), replace(PLAIN, policy="fixed", size=512))
        assert abs(boxes_in_image(4 * cells, other) - boxes_in_image(4 * cells, matrix)).max() > 0.4


def test_color_and_normalisation() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[:] = (10, 20, 30)
    config = PreprocessConfig(size=32, color="rgb", mean=(1, 2, 3), std=(1, 2, 4))
    as_bgr, _ = prepare(image, config, "bgr")
    np.testing.assert_array_equal(as_bgr[:, 5, 5], [29, 9, 1.75])
    as_rgb, _ = prepare(image, config, "rgb")
    np.testing.assert_array_equal(as_rgb[:, 5, 5], [9, 9, 6.75])


def test_extreme_sides() -> None:
    for shape in [(1, 1), (10, 20000), (20000, 10)]:
        for policy in ("fit", "fixed", "fixed_index", "keep"):
            config = replace(PLAIN, policy=policy)  # type: ignore[arg-type]
            network_input, _ = prepare(np.full((*shape, 3), 255, np.uint8), config)
            assert network_input.max() > 0
            assert np.isfinite(network_input).all()


def test_errors() -> None:
    with pytest.raises(ValueError, match="at least 1x1 pixels, got 0x4"):
        prepare(np.zeros((0, 4, 3), np.uint8), PLAIN)
    with pytest.raises(ValueError, match=r"image must be \[H >= 1, W >= 1, 3\], got \[4, 4\]"):
        prepare(np.zeros((4, 4), np.uint8), PLAIN)
    with pytest.raises(TypeError, match="image must be uint8, got float32"):
        prepare(np.zeros((4, 4, 3), np.float32), PLAIN)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="color must be 'bgr' or 'rgb', got 'gbr'"):
        prepare(np.zeros((4, 4, 3), np.uint8), PLAIN, "gbr")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="policy must be fit, fixed, fixed_index or keep, got 'stretch'"):
        input_transform((4, 4), replace(PLAIN, policy="stretch"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="preprocess size must be >= 1, got 0"):
        input_transform((4, 4), replace(PLAIN, size=0))


@pytest.mark.parametrize("size", [(1200, 1600), (1201, 1607), (3000, 200)])
def test_fine_patterns_of_large_pictures_become_grey_and_not_stripes(size: tuple[int, int]) -> None:
    height, width = size
    image = np.zeros((height, width, 3), np.uint8)
    image[:, ::2] = 255  # stripes of one pixel
    network_input, matrix = prepare(image, replace(PLAIN, size=200))
    assert matrix[0, 0] == 200 / max(size)
    x0, y0 = matrix[:, 2]
    x1, y1 = x0 + width * matrix[0, 0], y0 + height * matrix[1, 1]
    inside = network_input[:, int(y0) + 2 : int(y1) - 2, int(x0) + 2 : int(x1) - 2]
    # An odd factor averages one stripe more of the one colour than of the other.
    assert abs(inside - 127.5).max() < 127.5 / (max(size) // 200) + 2


def test_averaging_down_moves_nothing() -> None:
    image = np.zeros((1203, 1607, 3), np.uint8)
    image[300:500, 400:900] = 255
    network_input, matrix = prepare(image, replace(PLAIN, size=160))
    y, x = np.mgrid[: network_input.shape[1], : network_input.shape[2]] + 0.5
    weight = network_input[0] / network_input[0].sum()
    middle = np.array([(weight * x).sum(), (weight * y).sum()])
    # A tenth of an input pixel: grey levels are rounded twice.
    np.testing.assert_allclose(middle, matrix @ [650, 400, 1], atol=0.1)
