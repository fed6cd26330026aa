"""Masks, boxes and pictures follow one affine map."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from centermask.training.augment import GREY, LIGHTING_VALUES, LIGHTING_VECTORS, TrainTransform
from centermask.training.coco_masks import Bitmap
from centermask.training.coco_reader import Annotation, ImageRecord
from centermask.training.placing import cover, place
from centermask.training.raster import cell_coverage, fill_rings, warp_bitmap

seeds = st.integers(0, 2**32 - 1)
QUIET = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "lighting": 0.0}


def polygon(label, *rings, ignore=False):
    rings = tuple(np.array(r, dtype=np.float64) for r in rings)
    points = np.concatenate(rings)
    low, high = points.min(0), points.max(0)
    box = (*low.tolist(), *(high - low).tolist())
    return Annotation(label, ignore, box, box[2] * box[3], rings, None, None, 1)


def bitmap(label, full):
    rows, columns = np.flatnonzero(full.any(1)), np.flatnonzero(full.any(0))
    x, y = int(columns[0]), int(rows[0])
    cut = full[y : rows[-1] + 1, x : columns[-1] + 1]
    packed = Bitmap(x, y, cut.shape[1], np.packbits(cut, axis=1))
    return Annotation(label, False, (x, y, *cut.shape[::-1]), float(cut.sum()), (), packed, None, 1)


def record(width, height, *annotations):
    return ImageRecord(Path("none.png"), width, height, 1, True, 0, annotations, np.ones(3, dtype=bool))


def inside_even_odd(ring, x, y):
    """Plain ray casting to the left, float64."""
    inside = False
    for (xa, ya), (xb, yb) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if (ya <= y) != (yb <= y) and xa + (y - ya) * (xb - xa) / (yb - ya) <= x:
            inside = not inside
    return inside


def convex_ring(rng, middle, radius):
    """A convex ring: points of an ellipse in the order of their angles."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(5, 12)))
    return middle + np.stack([np.cos(angles), np.sin(angles) * rng.uniform(0.4, 1)], 1) * radius


def perimeter(ring):
    return np.hypot(*(ring - np.roll(ring, 1, axis=0)).T).sum()


# ---- polygons ----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_fill_rings_takes_exactly_the_pixels_whose_centre_lies_inside(seed):
    rng = np.random.default_rng(seed)
    x0, y0 = rng.integers(-5, 5, 2).tolist()
    window = (x0, y0, x0 + int(rng.integers(1, 20)), y0 + int(rng.integers(1, 20)))
    # Any ring: self-crossing, partly or wholly outside; sometimes with corners exactly on pixel centres.
    rings = [rng.uniform(-12, 24, (rng.integers(3, 8), 2)) for _ in range(rng.integers(1, 4))]
    if rng.integers(2):
        rings = [np.round(r) + 0.5 for r in rings]
    expected = np.zeros((window[3] - y0, window[2] - x0), np.uint8)
    for i, j in np.ndindex(*expected.shape):
        expected[i, j] = any(inside_even_odd(r, x0 + j + 0.5, y0 + i + 0.5) for r in rings)
    np.testing.assert_array_equal(fill_rings(rings, window), expected)


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_coverage_is_close_to_the_true_area(seed):
    rng = np.random.default_rng(seed)
    ring = convex_ring(rng, rng.uniform(28, 36, 2), rng.uniform(6, 26))
    cells = cell_coverage(fill_rings([ring], (0, 0, 64, 64))) / 255.0
    # The reference: 16 x 16 samples in each 4 x 4 cell, by the cross products with the edges of the convex ring.
    centres = (np.arange(256) + 0.5) / 4
    x, y = np.meshgrid(centres, centres)
    sides = [
        (xb - xa) * (y - ya) - (yb - ya) * (x - xa)
        for (xa, ya), (xb, yb) in zip(ring, np.roll(ring, -1, axis=0), strict=True)
    ]
    fine = (np.min(sides, axis=0) > 0).reshape(16, 16, 16, 16).mean(axis=(1, 3))
    # Each of the four rows of a cell is one interval of a convex shape, and either end is off by at most half a
    # pixel: 4 of 16 pixels. On top of that the samples' own grain (1/16 at either side) and the rounding to 1/255.
    assert np.abs(cells - fine).max() <= 0.25 + 2 / 16 + 1 / 255


def test_filled_areas_have_no_bias():
    rng = np.random.default_rng(0)
    filled = painted = outline = 0.0
    for _ in range(200):
        ring = convex_ring(rng, rng.uniform(28, 36, 2), rng.uniform(6, 26))
        x, y = ring.T
        area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
        filled += fill_rings([ring], (0, 0, 64, 64)).sum() - area
        canvas = np.zeros((64, 64), np.uint8)
        painted += cv2.fillPoly(canvas, [np.round((ring - 0.5) * 256).astype(np.int32)], 1, shift=8).sum() - area
        outline += perimeter(ring)
    # One pixel centre more or less is a coin toss: some 200 * 60 outline pixels with an error of +-0.3 each add up to
    # about 0.003 of the outline. cv2.fillPoly, which paints what the outline touches, is what this must not be.
    assert abs(filled) / outline < 0.01
    assert painted / outline > 0.3


def test_parts_are_united():
    square = np.array([[2.0, 2], [10, 2], [10, 10], [2, 10]])
    far = square + 12
    mask = fill_rings([square, square + 4, far], (0, 0, 24, 24))
    assert mask.sum() == 64 + 64 - 16 + 64  # the overlap of the first two counts once; far overlaps nothing more
    assert fill_rings([], (0, 0, 4, 8)).shape == (8, 4)


# ---- bitmaps -----------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_warp_bitmap_equals_bilinear_in_float64(seed):
    rng = np.random.default_rng(seed)
    bits = cv2.resize(rng.integers(0, 2, (4, 5), np.uint8), (15, 12), interpolation=cv2.INTER_NEAREST)
    angle, zoom = rng.uniform(-3, 3), rng.uniform(0.5, 2.5)
    turn = zoom * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = np.concatenate([turn, rng.uniform(0, 20, (2, 1))], 1)
    window = (4, 8, 28, 24)
    mask = warp_bitmap(bits, matrix, window)
    inverse = np.linalg.inv(turn)
    padded = np.pad(bits.astype(np.float64), 40)
    for i, j in np.ndindex(*mask.shape):
        x, y = inverse @ ((window[0] + j + 0.5, window[1] + i + 0.5) - matrix[:, 2]) - 0.5
        u, v = math.floor(x), math.floor(y)
        value = 0.0
        for dy, dx in np.ndindex(2, 2):
            weight = (1 - abs(x - u - dx)) * (1 - abs(y - v - dy))
            if 0 <= v + dy + 40 < padded.shape[0] and 0 <= u + dx + 40 < padded.shape[1]:
                value += weight * padded[v + dy + 40, u + dx + 40]
        # OpenCV 4 rounds the sampling point to 1/32 pixel along each axis; a bilinear value then moves by 1/32 at most.
        if abs(value - 0.5) > 1 / 32 + 1 / 255:
            assert mask[i, j] == (value > 0.5), (i, j, value)


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_a_bitmap_follows_like_the_polygon_that_it_came_from(seed):
    rng = np.random.default_rng(seed)
    ring = convex_ring(rng, rng.uniform(50, 60, 2), rng.uniform(20, 45))
    item = bitmap(0, fill_rings([ring], (0, 0, 120, 110)))
    transform = TrainTransform(64, (0.7, 1.2), rotation=float(rng.choice([0, 30])))
    matrix = transform.draw_matrix(120, 110, rng)
    frame = (0, 0, 64, 64)
    exact, warped = place(polygon(0, ring), matrix, frame), place(item, matrix, frame)
    if exact is None or warped is None:
        assert (exact or warped) is None or np.count_nonzero((exact or warped).mask) < 20
        return
    full = np.zeros((2, 64, 64), np.uint8)
    for plane, placed in zip(full, (exact, warped), strict=True):
        x0, y0, x1, y1 = placed.window
        plane[y0:y1, x0:x1] = placed.mask
    # Both roundings (of the bitmap in the image, of the mask in the input) move the outline by at most half a pixel
    # of the coarser grid: the two lie within one pixel of each other, so each minus its outermost pixels is in both.
    # What lies beyond the frame is not known: its rim is left out.
    core = cv2.erode(full[0], np.ones((5, 5), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    # Tips thinner than a pixel hold no centre and are in no mask: drawn with every pixel that they touch.
    touched = full[0].copy()
    outline = ring @ matrix[:, :2].T + matrix[:, 2] - 0.5
    cv2.fillPoly(touched, [np.round(outline * 16).astype(np.int32)], 1, shift=4)
    shell = cv2.dilate(touched, np.ones((5, 5), np.uint8))
    shell[:2] = shell[-2:] = shell[:, :2] = shell[:, -2:] = 1
    assert not (core & ~full[1] & 1).any()
    assert not (full[1] & ~shell & 1).any()
    assert np.abs(exact.box - warped.box).max() <= 2
    assert abs(int(full[0].sum()) - int(full[1].sum())) <= 0.25 * perimeter(ring) + 4


# ---- the whole transform -----------------------------------------------------------------------------------------


def test_a_rectangle_under_the_plain_transform_is_known_in_closed_form():
    # 128 x 64 in 64 x 64: scale 1/2, and a quarter of the height above and below.
    item = record(128, 64, polygon(2, [(16, 8), (48, 8), (48, 40), (16, 40)]))
    image = np.full((64, 128, 3), 200, np.uint8)
    sample = TrainTransform.plain(64)(item, image, np.random.default_rng(0))
    np.testing.assert_allclose(sample.boxes, [[8, 20, 24, 36]], atol=1e-6)
    np.testing.assert_array_equal(sample.labels, [2])
    expected = np.zeros((16, 16), np.uint8)
    expected[5:9, 2:6] = 255
    np.testing.assert_array_equal(sample.masks[0], expected)
    assert (sample.image[16:48] == 200).all()
    assert (sample.image[:16] == 0).all()
    assert (sample.image[48:] == 0).all()
    # A copy of half the size (as a cache may hold) gives the same targets and the same place of the picture.
    small = TrainTransform.plain(64)(item, image[::2, ::2], np.random.default_rng(0))
    np.testing.assert_array_equal(small.boxes, sample.boxes)
    np.testing.assert_array_equal(small.image, sample.image)


@settings(max_examples=25, deadline=None)
@given(seeds, st.booleans())
def test_the_mask_lies_where_the_picture_shows_the_object(seed, as_bitmap):
    rng = np.random.default_rng(seed)
    width, height = (int(v) for v in rng.integers(60, 200, 2))
    ring = convex_ring(rng, np.array([width, height]) * rng.uniform(0.3, 0.7, 2), min(width, height) * 0.35)
    full = fill_rings([ring], (0, 0, width, height))
    item = bitmap(1, full) if as_bitmap else polygon(1, ring)
    image = np.repeat(full[..., None] * np.uint8(255), 3, axis=2)
    transform = TrainTransform(96, aspect=1.3, rotation=20, **QUIET)
    sample = transform(record(width, height, item), image, rng)
    masks = np.concatenate([sample.masks, sample.ignore]).astype(np.float64) / 255
    shown = cv2.resize(sample.image[..., 0], (24, 24), interpolation=cv2.INTER_AREA) / 255.0
    if not len(masks):
        # Nothing is visible but perhaps a blurred rim.
        assert shown.max() < 0.51
        return
    # The picture is a blurred copy of a mask rounded to whole image pixels. Along an outline of at most 8 px in a
    # cell (two sides) the rounding to image pixels (up to 96 / (0.6 * 60) input px each), to input pixels and the
    # blur move it by at most half a pixel of their grids, seldom all to one side: the mean is the sharper test.
    pixel = np.linalg.norm(sample.image_to_input[:, 0])
    assert np.abs(masks[0] - shown).max() <= min(1.0, 0.5 * (0.5 + pixel))
    assert np.abs(masks[0] - shown).sum() * 16 <= 0.35 * (1 + pixel) * perimeter(ring) * pixel + 4
    assert abs(masks[0].sum() - shown.sum()) * 16 <= 0.12 * (1 + pixel) * perimeter(ring) * pixel + 4


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_boxes_are_tight_around_the_visible_pixels(seed):
    rng = np.random.default_rng(seed)
    ring = convex_ring(rng, rng.uniform(0, 100, 2), rng.uniform(5, 60))
    transform = TrainTransform(64, (0.6, 1.3), rotation=float(rng.choice([0, 45])))
    matrix = transform.draw_matrix(100, 100, rng)
    placed = place(polygon(0, ring), matrix, (0, 0, 64, 64))
    mapped = ring @ matrix[:, :2].T + matrix[:, 2]
    every = fill_rings([mapped], (0, 0, 64, 64))
    if placed is None:
        assert not every.any()
        return
    rows, columns = np.flatnonzero(every.any(1)), np.flatnonzero(every.any(0))
    pixels = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    assert np.abs(placed.box - pixels).max() <= 0.5
    assert (placed.box >= 0).all()
    assert (placed.box <= 64).all()
    # Where nothing is cut off, the box never reaches beyond the outline.
    assert (placed.box[:2] >= mapped.min(0) - 1e-9).all()
    assert (placed.box[2:] <= mapped.max(0) + 1e-9).all()


def test_an_axis_aligned_rectangle_keeps_its_exact_box():
    item = polygon(0, [(10.3, 20.7), (61.9, 20.7), (61.9, 44.2), (10.3, 44.2)])
    matrix = np.array([[0.71, 0, 3.3], [0, 0.71, -2.9]])
    placed = place(item, matrix, (0, 0, 96, 96))
    expected = np.array([10.3, 20.7, 61.9, 44.2]) * 0.71 + [3.3, -2.9, 3.3, -2.9]
    np.testing.assert_allclose(placed.box, expected, rtol=0, atol=1e-9)


def test_flipping_twice_is_the_identity():
    flipped = TrainTransform(64, (1.0, 1.0), flip=1.0).draw_matrix(64, 48, np.random.default_rng(0))
    once = np.vstack([flipped, [0, 0, 1]])
    shift = np.vstack([TrainTransform.plain(64).draw_matrix(64, 48, np.random.default_rng(0)), [0, 0, 1]])
    back = np.linalg.inv(shift)
    # With its own shift undone, the map is a mirror image of the sample.
    mirror = once @ back
    np.testing.assert_allclose(mirror @ mirror, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(mirror[0], [-1, 0, 64], atol=1e-12)


@pytest.mark.parametrize("as_bitmap", [False, True])
def test_a_flipped_sample_is_the_mirror_image_of_the_other(as_bitmap):
    rng = np.random.default_rng(5)
    ring = convex_ring(rng, np.array([60.0, 40.0]), 30)
    item = bitmap(0, fill_rings([ring], (0, 0, 120, 90))) if as_bitmap else polygon(0, ring)
    image = cv2.GaussianBlur(rng.integers(0, 256, (90, 120, 3), np.uint8), (0, 0), 2)
    straight, flipped = (
        TrainTransform(96, flip=p)(record(120, 90, item), image, np.random.default_rng(1)) for p in (0, 1)
    )
    np.testing.assert_array_equal(flipped.masks, straight.masks[..., ::-1])
    mirrored = straight.boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [96, 0, 96, 0]
    np.testing.assert_allclose(flipped.boxes, mirrored, atol=1e-4)
    # OpenCV 4 rounds sampling points to 1/32 pixel, not symmetrically; the picture is smooth.
    difference = np.abs(flipped.image.astype(int) - straight.image[:, ::-1])
    assert difference.max() <= 6
    assert difference.mean() < 0.5


def test_crops_stay_inside_the_picture_or_around_it():
    rng = np.random.default_rng(0)
    transform = TrainTransform(64, (0.5, 1.4))
    for _ in range(200):
        matrix = transform.draw_matrix(200, 120, rng)
        corners = np.array([[0, 0], [200, 120]]) @ matrix[:, :2].T + matrix[:, 2]
        for low, high in zip(corners.min(0), corners.max(0), strict=True):
            inside = low >= -1e-9 and high <= 64 + 1e-9
            around = low <= 1e-9 and high >= 64 - 1e-9
            assert inside or around


def test_crowds_small_and_cut_objects_become_ignore_regions():
    def square(x, y, side):
        return [(x, y), (x + side, y), (x + side, y + side), (x, y + side)]

    item = record(
        64,
        64,
        polygon(0, square(8, 8, 20)),
        polygon(1, square(30, 8, 20), ignore=True),  # a crowd
        polygon(2, square(40, 40, 3)),  # below 4 px
        polygon(1, square(-29, 30, 31)),  # 2 of 31 columns visible
        polygon(2, square(70, 10, 20)),  # outside
        polygon(2, square(-10, 40, 20)),  # half visible
    )
    sample = TrainTransform.plain(64)(item, np.zeros((64, 64, 3), np.uint8), np.random.default_rng(0))
    np.testing.assert_array_equal(sample.labels, [0, 2])
    np.testing.assert_array_equal(sample.boxes, [[8, 8, 28, 28], [0, 40, 10, 60]])
    np.testing.assert_array_equal(sample.ignore_labels, [1, 2, 1])
    assert sample.ignore[1].sum() == pytest.approx(255 * 9 / 16, abs=4)  # each of the touched cells rounds once
    kept = replace(TrainTransform.plain(64), min_side=0, min_visible=0)
    every = kept(item, np.zeros((64, 64, 3), np.uint8), np.random.default_rng(0))
    np.testing.assert_array_equal(every.labels, [0, 2, 1, 2])


def test_cover_takes_pixels_away_and_keeps_uncut_sides():
    below = place(polygon(0, [(4.2, 4), (20, 4), (20, 12), (4.2, 12)]), np.eye(2, 3), (0, 0, 32, 32))
    half = np.ones((8, 8), np.uint8)
    left = cover(below, (12, 4, 20, 12), half)
    np.testing.assert_allclose(left.box, [4.2, 4, 12.5, 12])
    assert left.visible == pytest.approx(0.5)
    assert left.mask.sum() == 64
    assert cover(below, (24, 24, 32, 32), half) is below
    assert cover(below, (0, 0, 32, 32), np.ones((32, 32), np.uint8)) is None
    assert below.mask.sum() == 128, "the object below is not changed in place"


# ---- colours -----------------------------------------------------------------------------------------------------


def test_colours_equal_the_steps_taken_one_after_the_other():
    rng = np.random.default_rng(2)
    image = rng.integers(90, 150, (64, 64, 3), np.uint8)  # no step leaves 0..255, where the joined form differs
    transform = TrainTransform(64, (1.0, 1.0), flip=0, brightness=0.2, contrast=0.3, saturation=0.4, lighting=0.1)
    for seed in range(6):
        result = image.copy()
        outline = np.array([[0, 0], [64, 0], [64, 64], [0, 64]], dtype=np.float64)
        transform.change_colours(result, outline, np.random.default_rng(seed))
        again = np.random.default_rng(seed)
        gains = again.uniform(-1, 1, 3) * (0.2, 0.3, 0.4) + 1
        order = again.permutation(3)
        shift = LIGHTING_VECTORS @ (LIGHTING_VALUES * again.normal(0, 1, 3) * 0.1) * 255
        expected = image.astype(np.float64)
        for kind in order:
            grey = expected @ GREY
            if kind == 0:
                expected = expected * gains[0]
            elif kind == 1:
                expected = expected * gains[1] + (1 - gains[1]) * grey.mean()
            else:
                expected = expected * gains[2] + (1 - gains[2]) * grey[..., None]
        expected = expected + shift
        assert expected.min() > 0
        assert expected.max() < 255
        assert np.abs(result - expected).max() <= 0.51 + 0.25  # rounding, and OpenCV's 10-bit fixed point


@pytest.mark.parametrize("rotation", [0, 30])
def test_the_border_stays_black_under_all_colours(rotation):
    transform = TrainTransform(96, (1.3, 1.3), rotation=rotation, brightness=0.4, lighting=0.1)
    image = np.full((60, 80, 3), 128, np.uint8)
    for seed in range(5):
        sample = transform(record(80, 60), image, np.random.default_rng(seed))
        matrix = sample.image_to_input
        corners = np.array([[0, 0], [80, 0], [80, 60], [0, 60]]) @ matrix[:, :2].T + matrix[:, 2]
        inside = fill_rings([corners], (0, 0, 96, 96))
        # One pixel around the picture blends with the border where it is axis-aligned.
        outside = cv2.dilate(inside, np.ones((3, 3), np.uint8)) == 0
        assert outside.any()
        assert (sample.image[outside] == 0).all()
        assert sample.image[inside == 1].mean() > 40


# ---- the rest ----------------------------------------------------------------------------------------------------


def test_a_sample_depends_on_the_generator_alone():
    item = record(100, 80, polygon(0, [(10, 10), (60, 15), (40, 70)]))
    image = np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)
    transform = TrainTransform(64)
    first, second, other = (transform(item, image, np.random.default_rng(s)) for s in (7, 7, 8))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.masks, second.masks)
    assert not np.array_equal(first.image, other.image)
    assert first.image.flags.c_contiguous
    assert (first.boxes.dtype, first.labels.dtype, first.masks.dtype) == (np.float32, np.int64, np.uint8)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"size": 300}, "size"),
        ({"size": 0}, "size"),
        ({"scale": (1.0, 0.5)}, "scale"),
        ({"scale": (0.0, 0.5)}, "scale"),
        ({"aspect": 0.5}, "aspect"),
        ({"contrast": 1.5}, "contrast"),
    ],
)
def test_settings_out_of_range_are_named(changes, named):
    with pytest.raises(ValueError, match=f"TrainTransform: {named} must"):
        TrainTransform(**{"size": 64, **changes})
