"""Run-length masks against pycocotools, byte for byte, and against plain loops."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from centermask import ops

peer = pytest.importorskip("pycocotools.mask")

BITMAPS = hnp.arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20)))


def blobs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A mask with large regions, holes and specks, as masks are in practice."""
    y, x = np.mgrid[:height, :width]
    field = sum(
        np.sin((rng.uniform(0.5, 8) * x / width + rng.uniform(0.5, 8) * y / height) * 3 + rng.uniform(0, 7))
        for _ in range(3)
    )
    return (field > rng.uniform(-2, 2)) ^ (rng.random((height, width)) < rng.choice([0, 0.01]))


def random_masks(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    masks = []
    for i in range(count):
        height, width = rng.integers(1, 90, 2)
        masks.append(blobs(rng, height, width) if i % 2 else rng.random((height, width)) < rng.random())
    return masks


def loop_counts(bitmap: np.ndarray) -> list[int]:
    counts, value = [0], False
    for x in range(bitmap.shape[1]):
        for y in range(bitmap.shape[0]):
            if bool(bitmap[y, x]) != value:
                counts.append(0)
                value = not value
            counts[-1] += 1
    return counts


def test_thousand_masks_are_byte_equal_to_pycocotools() -> None:
    for bitmap in random_masks(1000):
        mask = ops.rle_encode(bitmap)
        theirs = peer.encode(np.asfortranarray(bitmap, dtype=np.uint8))
        assert mask == {"size": list(bitmap.shape), "counts": theirs["counts"]}
        np.testing.assert_array_equal(ops.rle_decode(theirs), bitmap)
        assert ops.rle_area(mask) == peer.area(theirs) == bitmap.sum()
        np.testing.assert_array_equal(ops.rle_bbox(mask), peer.toBbox(theirs))
        assert ops.rle_from_counts(ops.rle_to_counts(mask), *bitmap.shape) == mask


@given(BITMAPS)
def test_runs_equal_a_plain_loop(bitmap: np.ndarray) -> None:
    mask = ops.rle_encode(bitmap)
    assert ops.rle_to_counts(mask) == loop_counts(bitmap)
    np.testing.assert_array_equal(ops.rle_decode(mask), bitmap)


@pytest.mark.parametrize(
    "make",
    [
        lambda bitmap: np.asfortranarray(bitmap),
        lambda bitmap: np.repeat(bitmap, 2, axis=1)[:, ::2],
        lambda bitmap: bitmap[::-1, ::-1].copy()[::-1, ::-1],
        lambda bitmap: bitmap.astype(np.uint8) * 255,
        lambda bitmap: np.where(bitmap, np.arange(bitmap.size).reshape(bitmap.shape) % 255 + 1, 0).astype(np.uint8),
    ],
    ids=["fortran", "strided", "reversed", "255", "any-value"],
)
def test_encode_takes_any_layout_and_value(make: Any) -> None:
    bitmap = blobs(np.random.default_rng(1), 37, 29)
    assert ops.rle_encode(make(bitmap)) == ops.rle_encode(bitmap)


def test_batches() -> None:
    rng = np.random.default_rng(2)
    bitmaps = np.stack([blobs(rng, 21, 18) for _ in range(5)])
    masks = ops.rle_encode(bitmaps)
    assert masks == [ops.rle_encode(bitmap) for bitmap in bitmaps]
    np.testing.assert_array_equal(ops.rle_decode(masks), bitmaps)
    assert ops.rle_decode(masks).dtype == np.uint8
    np.testing.assert_array_equal(ops.rle_area(masks), bitmaps.sum((1, 2)))
    assert ops.rle_bbox(masks).shape == (5, 4)
    assert ops.rle_encode(bitmaps[:0]) == []
    assert ops.rle_decode([]).shape == (0, 0, 0)
    assert ops.rle_bbox([]).shape == (0, 4)


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_masks_without_pixels(size: tuple[int, int]) -> None:
    mask = ops.rle_encode(np.zeros(size, bool))
    assert mask == {"size": list(size), "counts": b"0"}
    assert ops.rle_decode(mask).shape == size
    assert ops.rle_area(mask) == 0
    assert ops.rle_to_polygons(mask) == []
    assert ops.rle_from_polygons([[0, 0, 4, 0, 4, 4]], *size) == mask


def test_counts_as_str_and_as_list() -> None:
    bitmap = blobs(np.random.default_rng(3), 30, 40)
    mask = ops.rle_encode(bitmap)
    for counts in (mask["counts"].decode(), loop_counts(bitmap), np.array(loop_counts(bitmap))):
        np.testing.assert_array_equal(ops.rle_decode({"size": [30, 40], "counts": counts}), bitmap)
    assert ops.rle_from_counts(loop_counts(bitmap), 30, 40) == peer.frPyObjects(
        {"size": [30, 40], "counts": loop_counts(bitmap)}, 30, 40
    )


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=6), st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_iou_equals_pycocotools(crowd: list[bool], detections: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = [rng.random((9, 11)) < rng.choice([0, 0.1, 0.5, 1]) for _ in range(detections + len(crowd))]
    for mask in masks:  # boxes apart, so that some pairs do not even touch
        mask[:, : rng.integers(0, 11)] = False
    rles = [ops.rle_encode(mask) for mask in masks]
    found, truth = rles[:detections], rles[detections:]
    iou = ops.rle_iou(found, truth, crowd)
    assert iou.shape == (detections, len(crowd))
    if iou.size:
        np.testing.assert_array_equal(iou, peer.iou(found, truth, crowd))
    np.testing.assert_array_equal(ops.rle_iou(found, truth, crowd, threads=1), iou)


def test_iou_by_definition() -> None:
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    a[:2], b[1:3] = True, True
    first, second = ops.rle_encode(a), ops.rle_encode(b)
    assert ops.rle_iou([first], [second]) == [[4 / 12]]
    assert ops.rle_iou([first], [second], [1]) == [[4 / 8]]
    empty = ops.rle_encode(np.zeros((4, 4), bool))
    assert ops.rle_iou([empty], [empty]) == [[0]]
    with pytest.raises(ValueError, match=r"is_crowd must be \[G=1\]"):
        ops.rle_iou([first], [second], [0, 1])


@given(st.lists(hnp.arrays(bool, (7, 6)), min_size=1, max_size=5), st.booleans())
def test_merge_equals_pycocotools(bitmaps: list[np.ndarray], intersect: bool) -> None:
    masks = [ops.rle_encode(bitmap) for bitmap in bitmaps]
    merged = ops.rle_merge(masks, intersect)
    assert merged == peer.merge(masks, intersect)
    expected = np.all(bitmaps, axis=0) if intersect else np.any(bitmaps, axis=0)
    np.testing.assert_array_equal(ops.rle_decode(merged), expected)


def test_merge_makes_empty_inner_runs_canonical() -> None:
    odd = ops.rle_from_counts([2, 0, 1, 3, 0, 2, 4, 0], 3, 4)
    bitmap = ops.rle_decode(odd)
    assert ops.rle_merge([odd, odd]) == ops.rle_encode(bitmap)
    rings = ops.rle_to_polygons(odd)
    assert ops.rle_from_polygons(rings, 3, 4, fill="evenodd") == ops.rle_encode(bitmap)


# ---- polygons ----


def theirs_of(polygons: list[list[float]], height: int, width: int) -> dict[str, Any]:
    return peer.merge([peer.frPyObjects([polygon], height, width)[0] for polygon in polygons])


COORDINATES = st.one_of(
    st.floats(-30, 60, allow_nan=False), st.integers(-5, 30).map(float), st.integers(-50, 300).map(lambda v: v / 10)
)
POLYGONS = st.lists(st.lists(st.tuples(COORDINATES, COORDINATES), min_size=3, max_size=9), min_size=1, max_size=3)


@settings(max_examples=600, deadline=None)
@given(POLYGONS, st.integers(1, 25), st.integers(1, 25))
def test_polygons_are_byte_equal_to_pycocotools(polygons: Any, height: int, width: int) -> None:
    flat = [[value for point in polygon for value in point] for polygon in polygons]
    assert ops.rle_from_polygons(flat, height, width) == theirs_of(flat, height, width)
    assert ops.rle_from_polygons([np.array(p) for p in polygons], height, width) == theirs_of(flat, height, width)


def test_large_polygons_are_byte_equal_to_pycocotools() -> None:
    rng = np.random.default_rng(4)
    for _ in range(100):
        height, width = rng.integers(50, 900, 2)
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 60)))
        radius = rng.uniform(5, 700, len(angles))
        centre = rng.uniform(-100, 900, 2)
        flat = (centre + np.stack([np.cos(angles), np.sin(angles)], 1) * radius[:, None]).round(2).ravel().tolist()
        assert ops.rle_from_polygons([flat], height, width) == theirs_of([flat], height, width)


@pytest.mark.parametrize(
    "polygon",
    [
        [1, 1, 1, 1, 1, 1],
        [1, 1, 5, 5, 9, 9],
        [1, 1, 8, 8, 8, 1, 1, 8],
        [2, 2, 2, 2, 9, 2, 9, 9, 9, 9, 2, 9, 2, 2],
        [-100000, -100000, 100000, -100000, 100000, 100000, -100000, 100000],
        [-5, -5, -1, -5, -1, -1],
        [0, 0, 12, 0, 12, 10, 0, 10],
        [0.5, 0.5, 11.5, 0.5, 11.5, 9.5],
        [0.49999, 3, 4.50001, 3, 4.5, 7.1],
        [-16777216, 3, 16777216, 4, 16777216, 9],
        [3, -4000000, 4.3, 4000000, 9, 4000000.7],
        [3, 3, 4.3, 8, 3, 3, 9, 1],
    ],
    ids=str,
)
def test_odd_polygons_are_byte_equal_to_pycocotools(polygon: list[float]) -> None:
    assert ops.rle_from_polygons([polygon], 10, 12) == theirs_of([polygon], 10, 12)


def test_no_polygons_are_an_empty_mask() -> None:
    assert ops.rle_from_polygons([], 4, 6) == ops.rle_encode(np.zeros((4, 6), bool))


@given(st.lists(st.tuples(*[st.floats(-10, 30)] * 4), max_size=4))
def test_boxes_are_byte_equal_to_pycocotools(boxes: list[tuple[float, ...]]) -> None:
    masks = ops.rle_from_boxes(np.reshape(boxes, (-1, 4)), 15, 17)
    assert len(masks) == len(boxes)
    if boxes:
        assert masks == peer.frPyObjects(np.reshape(boxes, (-1, 4)), 15, 17)


def test_box_by_definition() -> None:
    bitmap = ops.rle_decode(ops.rle_from_boxes([[2, 1, 3, 4]], 8, 9))[0]
    expected = np.zeros((8, 9), bool)
    expected[1:5, 2:5] = True
    np.testing.assert_array_equal(bitmap, expected)


def shoelace(ring: np.ndarray) -> float:
    x, y = ring.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def check_rings(bitmap: np.ndarray) -> None:
    mask = ops.rle_encode(bitmap)
    rings = ops.rle_to_polygons(mask)
    assert ops.rle_from_polygons(rings, *bitmap.shape, fill="evenodd") == mask
    assert sum(shoelace(ring) for ring in rings) == bitmap.sum()
    for ring in rings:
        step = np.roll(ring, -1, axis=0) - ring
        assert ((step != 0).sum(axis=1) == 1).all()  # along the axes
        assert (step[:, 0] != 0).tolist() == (np.roll(step, 1, axis=0)[:, 0] == 0).tolist()  # a corner at every point


@given(BITMAPS)
def test_outlines_give_the_mask_again(bitmap: np.ndarray) -> None:
    check_rings(bitmap)


def test_outlines_of_large_masks() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        check_rings(blobs(rng, *rng.integers(100, 300, 2)))


def test_outlines_by_hand() -> None:
    ring = np.ones((5, 6), bool)
    ring[2, 2:4] = False
    outer, hole = ops.rle_to_polygons(ops.rle_encode(ring))
    assert shoelace(outer) == 30
    assert {tuple(point) for point in outer} == {(0, 0), (6, 0), (6, 5), (0, 5)}
    assert shoelace(hole) == -2
    assert {tuple(point) for point in hole} == {(2, 2), (4, 2), (4, 3), (2, 3)}
    assert outer.dtype == np.float64
    diagonal = ops.rle_to_polygons(ops.rle_encode(np.eye(2, dtype=bool)))
    assert [shoelace(ring) for ring in diagonal] == [1, 1]  # two rings: they touch at a corner only


# ---- what must be refused ----


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"size": [2, 2], "counts": b"5"}, "run 0 is 5"),
        ({"size": [2, 2], "counts": b"3"}, "must add up to height \\* width = 2 \\* 2 = 4, got 3"),
        ({"size": [2, 2], "counts": b""}, "got 0"),
        ({"size": [2, 2], "counts": b"O"}, "run 0 is -1"),
        ({"size": [2, 2], "counts": b"4P"}, "end within a number"),
        ({"size": [2, 2], "counts": b"4 "}, "got byte 32 at position 1"),
        ({"size": [2, 2], "counts": b"4\x00"}, "got byte 0"),
        ({"size": [2, 2], "counts": b"P" * 40}, "too many bytes"),
        ({"size": [2, 2], "counts": "4\u00e9"}, "'0' to 'o'"),
        ({"size": [2, 2], "counts": [1, 4]}, "got 5"),
        ({"size": [2, 2], "counts": [-1, 5]}, "integers"),
        ({"size": [2, 2], "counts": [2**32, 1]}, "integers"),
        ({"size": [2, 2], "counts": [1.5, 2.5]}, "integers"),
        ({"size": [2, 2], "counts": [[4]]}, "integers"),
        ({"size": [2, 2], "counts": ["4"]}, "integers"),
        ({"size": [2, 2], "counts": None}, "integers"),
        ({"size": [-2, -2], "counts": b"4"}, "size must be"),
        ({"size": [2], "counts": b"4"}, "size must be"),
        ({"size": [2.5, 2], "counts": b"5"}, "size must be"),
        ({"size": [2**31, 2**31], "counts": b"4"}, "size must be"),
        ({"size": [10**30, 0], "counts": b"0"}, "size must be"),
        ({"size": "ab", "counts": b"4"}, "size must be"),
        ({"counts": b"4"}, '"size" and "counts"'),
    ],
)
def test_malformed_masks_are_refused_by_every_function(mask: dict[str, Any], message: str) -> None:
    calls = [
        ops.rle_decode,
        ops.rle_area,
        ops.rle_bbox,
        ops.rle_to_counts,
        ops.rle_to_polygons,
        lambda m: ops.rle_merge([m]),
        lambda m: ops.rle_iou([m], [m]),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call(mask)


def test_random_bytes_are_parsed_or_refused() -> None:
    random.seed(6)
    good = ops.rle_encode(blobs(np.random.default_rng(6), 20, 20))["counts"]
    refused = 0
    for _ in range(5000):
        counts = bytearray(good)
        for _ in range(random.randint(1, 3)):
            counts[random.randrange(len(counts))] = random.randrange(256)
        try:
            assert ops.rle_decode({"size": [20, 20], "counts": bytes(counts)}).shape == (20, 20)
        except ValueError:
            refused += 1
    assert 4000 < refused < 5000  # both ways were seen


def test_other_errors() -> None:
    small, large = ops.rle_encode(np.ones((2, 2), bool)), ops.rle_encode(np.ones((2, 3), bool))
    for call in (lambda: ops.rle_merge([small, large]), lambda: ops.rle_iou([small], [large])):
        with pytest.raises(ValueError, match=r"one size, got \[2, 2\] and \[2, 3\]"):
            call()
    with pytest.raises(ValueError, match="at least one mask"):
        ops.rle_merge([])
    with pytest.raises(TypeError, match="bool or uint8"):
        ops.rle_encode(np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match=r"\[N, H, W\], got \[4\]"):
        ops.rle_encode(np.zeros(4, bool))
    with pytest.raises(ValueError, match="polygon 1 must have at least 3 points, got 2"):
        ops.rle_from_polygons([[0, 0, 1, 0, 1, 1], [0, 0, 4, 4]], 5, 5)
    with pytest.raises(ValueError, match="even number of coordinates"):
        ops.rle_from_polygons([[0, 0, 1, 0, 1, 1, 2]], 5, 5)
    for bad in (np.nan, np.inf, 1e9):
        with pytest.raises(ValueError, match="finite and at most"):
            ops.rle_from_polygons([[0, 0, 1, 0, 1, bad]], 5, 5)
    with pytest.raises(ValueError, match="polygon 0 must be"):
        ops.rle_from_polygons([0, 0, 1, 0, 1, 1], 5, 5)  # a polygon where a list of polygons belongs
    with pytest.raises(ValueError, match=r"boxes must be \[N, 4\]"):
        ops.rle_from_boxes([1, 2, 3, 4], 5, 5)
    with pytest.raises(ValueError, match="fill"):
        ops.rle_from_polygons([], 5, 5, fill="nonzero")  # type: ignore[arg-type]
