"""Instances and Masks: what they accept and refuse, choosing, copying, converting, drawing."""

from __future__ import annotations

import copy
import json
import pickle
import re
import sys

import cv2
import numpy as np
import pytest

from centermask import Instances, ops
from centermask.draw import class_color, draw_instances, smooth_ring
from centermask.instances import Masks

HEIGHT, WIDTH = 60, 80


def rectangle(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    bitmap = np.zeros((HEIGHT, WIDTH), bool)
    bitmap[y0:y1, x0:x1] = True
    return bitmap


BITMAPS = np.stack([rectangle(10, 20, 30, 50), rectangle(0, 0, 80, 60), rectangle(40, 5, 41, 6)])


def make(**changes: object) -> Instances:
    values: dict = {
        "boxes": [[10, 20, 30, 50], [0, 0, 80, 60], [40, 5, 41, 6]],
        "scores": [0.9, 0.5, 0.25],
        "labels": [1, 0, 1],
        "image_size": (HEIGHT, WIDTH),
        "class_names": ["cat", "dog"],
        "category_ids": [17, 18],
        "masks": Masks.from_bitmaps(BITMAPS),
    } | changes
    return Instances(values.pop("boxes"), values.pop("scores"), values.pop("labels"), **values)


def test_fields_have_the_promised_types() -> None:
    result = make()
    assert (result.boxes.dtype, result.scores.dtype, result.labels.dtype) == (np.float32, np.float32, np.int64)
    assert result.names == ["dog", "cat", "dog"]
    assert len(result) == 3
    assert repr(result) == "Instances(3 in 80x60 pixels: dog 0.90, cat 0.50, dog 0.25)"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": [[1, 2, 3]]}, "boxes must be [n, 4], got [1, 3]"),
        ({"boxes": np.zeros((2, 4))}, "scores must be [2] (as many as boxes), got [3]"),
        ({"labels": [0, 1]}, "labels must be [3] (as many as boxes), got [2]"),
        ({"labels": [0, 1, 2]}, "labels must be in 0..1 (class_names has 2), got 0..2"),
        ({"labels": [0, 1, -1]}, "labels must be in 0..1 (class_names has 2), got -1..1"),
        ({"labels": [0.0, 1.0, 1.0]}, "labels must be integers, got float64"),
        ({"category_ids": [1]}, "category_ids must have one id for each of the 2 classes, got 1"),
        ({"image_size": (0, 5)}, "image_size must be (height, width), both at least 1; got (0, 5)"),
        (
            {"image_size": (61, 80)},
            "masks must be 3 of size [61, 80] (as boxes and image_size), got 3 of size [60, 80]",
        ),
        ({"masks": Masks.from_bitmaps(BITMAPS[:2])}, "masks must be 3 of size [60, 80]"),
        ({"masks": [BITMAPS[0]] * 3}, "masks[0] must be an RLE dict with 'size' and 'counts', got ndarray"),
        (
            {"masks": [{"size": [1, 1], "counts": b"1"}] * 3},
            "masks[0] must have size [60, 80] (image_size), got [1, 1]",
        ),
        (
            {"masks": [{"size": [60, 80], "counts": [1, 2]}] * 3},
            "masks[0]: counts must be compressed (bytes or str), got list",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_expected_and_given(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**changes)


def test_is_immutable() -> None:
    result = make()
    with pytest.raises(AttributeError, match="immutable"):
        result.boxes = np.zeros((3, 4))  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        result.boxes[0, 0] = 5
    with pytest.raises(ValueError, match="read-only"):
        result.masks.bitmaps()[0, 0, 0] = True


def test_making_one_does_not_freeze_the_callers_array() -> None:
    boxes = np.zeros((3, 4), np.float32)
    make(boxes=boxes)
    boxes[0, 0] = 1


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (0, [0]),
        (-1, [2]),
        (np.int64(1), [1]),
        (slice(1, None), [1, 2]),
        (slice(None, None, -1), [2, 1, 0]),
        ([2, 0], [2, 0]),
        ([-1], [2]),
        (np.array([True, False, True]), [0, 2]),
        ([False, True, False], [1]),
        ([], []),
        (np.zeros(3, bool), []),
    ],
)
def test_choosing(index: object, expected: list[int]) -> None:
    result = make()
    chosen = result[index]  # type: ignore[index]
    np.testing.assert_array_equal(chosen.scores, result.scores[expected])
    np.testing.assert_array_equal(chosen.boxes, result.boxes[expected])
    assert chosen.names == [result.names[i] for i in expected]
    np.testing.assert_array_equal(chosen.masks.bitmaps(), BITMAPS[expected])


@pytest.mark.parametrize("index", [3, -4, [0, 3], [True, False], np.zeros((3, 1), bool), 1.5, [[0]]])
def test_wrong_indices_are_refused(index: object) -> None:
    with pytest.raises(IndexError):
        make()[index]  # type: ignore[index]


def test_iterating_gives_single_instances() -> None:
    assert [one.names for one in make()] == [["dog"], ["cat"], ["dog"]]
    assert list(make())[1] == make()[1]


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copying_and_pickling(clone: object) -> None:
    result = make(source="photo.jpg")
    result.masks.bitmaps()
    other = clone(result)  # type: ignore[operator]
    assert other == result
    assert other.source == "photo.jpg"
    assert other.masks == result.masks
    np.testing.assert_array_equal(other.masks.bitmaps(), BITMAPS)


def test_equality_sees_every_field() -> None:
    assert make() == make()
    for changes in (
        {"scores": [0.9, 0.5, 0.2]},
        {"labels": [1, 0, 0]},
        {"masks": None},
        {"class_names": ["cat", "cow"]},
    ):
        assert make() != make(**changes)


def test_conversions_of_masks_are_made_once() -> None:
    masks = make().masks
    assert masks.bitmaps() is masks.bitmaps()
    assert masks.polygons() is masks.polygons()
    np.testing.assert_array_equal(masks.areas, BITMAPS.sum(axis=(1, 2)))
    assert masks.bitmaps().dtype == np.bool_


def test_empty_results_convert_too() -> None:
    result = Instances.empty((HEIGHT, WIDTH), ["cat"], masks=[])
    assert len(result) == 0
    assert result.to_coco(1) == []
    assert result.masks.bitmaps().shape == (0, HEIGHT, WIDTH)
    assert result.masks.areas.shape == (0,)
    assert result.masks.polygons() == []
    image = np.full((HEIGHT, WIDTH, 3), 7, np.uint8)
    np.testing.assert_array_equal(result.draw(image), image)


def test_to_coco_is_what_pycocotools_reads() -> None:
    mask_api = pytest.importorskip("pycocotools.mask")
    results = json.loads(json.dumps(make().to_coco(42)))
    assert [r["image_id"] for r in results] == [42] * 3
    assert [r["category_id"] for r in results] == [18, 17, 18]
    assert results[0]["bbox"] == [10, 20, 20, 30]
    assert results[0]["score"] == pytest.approx(0.9)
    for result, bitmap in zip(results, BITMAPS, strict=True):
        assert isinstance(result["segmentation"]["counts"], str)
        np.testing.assert_array_equal(mask_api.decode(result["segmentation"]), bitmap)


def test_to_coco_of_boxes_alone_has_no_segmentation() -> None:
    assert "segmentation" not in make(masks=None).to_coco(1)[0]


def test_to_supervision() -> None:
    supervision = pytest.importorskip("supervision")
    detections = make().to_supervision()
    assert isinstance(detections, supervision.Detections)
    np.testing.assert_array_equal(detections.mask, BITMAPS)
    np.testing.assert_array_equal(detections.xyxy, make().boxes)
    assert detections.data["class_name"].tolist() == ["dog", "cat", "dog"]
    assert make(masks=None).to_supervision().mask is None


def test_to_supervision_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'centermask[viz]'")):
        make().to_supervision()


# ---- drawing ----


def test_draw_tints_the_mask_and_leaves_the_rest_and_the_input_alone() -> None:
    image = np.full((HEIGHT, WIDTH, 3), 200, np.uint8)
    drawn = make()[0].draw(image, labels=False)
    assert (image == 200).all()
    color = np.array(class_color(1))
    np.testing.assert_allclose(drawn[35, 20], 0.55 * 200 + 0.45 * color, atol=1)  # rounding to uint8
    far = np.ones((HEIGHT, WIDTH), bool)
    far[17:53, 7:33] = False  # the mask, and the width of an anti-aliased line around it
    assert (drawn[far] == 200).all()


def test_fills_of_masks_on_top_of_each_other_do_not_add_up() -> None:
    image = np.full((HEIGHT, WIDTH, 3), 200, np.uint8)
    twice = make()[[0, 0]].draw(image, labels=False, color_by="class")
    shades = [0.55 * 200 + 0.45 * np.array(class_color(1, variant)) for variant in (0, 1)]
    assert min(np.abs(twice[35, 20] - shade).max() for shade in shades) <= 1  # rounding to uint8


def test_draw_leaves_holes_open() -> None:
    bitmap = rectangle(10, 10, 70, 50) & ~rectangle(25, 20, 55, 40)
    result = Instances(
        [[10, 10, 70, 50]], [1], [0], image_size=(HEIGHT, WIDTH), class_names=["x"], masks=ops.rle_encode(bitmap[None])
    )
    drawn = result.draw(np.zeros((HEIGHT, WIDTH, 3), np.uint8), labels=False)
    assert (drawn[30, 40] == 0).all()
    assert (drawn[15, 40] > 0).any()


def test_opacity_zero_draws_outlines_only() -> None:
    drawn = make()[0].draw(np.zeros((HEIGHT, WIDTH, 3), np.uint8), labels=False, opacity=0)
    assert (drawn[35, 20] == 0).all()
    assert drawn.any()


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (300, 2), (100, 100), (10, 20000), (480, 640), (3000, 4000)])
def test_draw_works_at_any_size(size: tuple[int, int]) -> None:
    height, width = size
    bitmap = np.zeros((1, height, width), bool)
    bitmap[:, height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    box = [width // 4, height // 4, width - width // 4, height - height // 4]
    result = Instances(
        [box], [0.5], [0], image_size=size, class_names=["a rather long name"], masks=Masks.from_bitmaps(bitmap)
    )
    drawn = result.draw(np.zeros((height, width, 3), np.uint8), boxes=True)
    assert drawn.shape == (height, width, 3)
    assert drawn.any()


@pytest.mark.parametrize(
    "box", [(0, 0, 20, 20), (380, 0, 400, 20), (0, 280, 20, 300), (380, 280, 400, 300), (0, 0, 400, 300)]
)
def test_labels_lie_wholly_inside_the_picture(box: tuple[int, int, int, int]) -> None:
    result = Instances([box], [0.5], [0], image_size=(300, 400), class_names=["elephant"])
    with_label = result.draw(np.zeros((300, 400, 3), np.uint8)).any(axis=2)
    without = result.draw(np.zeros((300, 400, 3), np.uint8), labels=False).any(axis=2)
    in_the_middle = Instances([(150, 150, 170, 170)], [0.5], [0], image_size=(300, 400), class_names=["elephant"])
    label = in_the_middle.draw(np.zeros((300, 400, 3), np.uint8)).any(axis=2).sum() - without.sum()
    # As many pixels of label as where nothing is in the way, but for what lies on the box's line.
    assert (with_label & ~without).sum() >= 0.7 * min(label, 400)


def test_labels_in_a_crowd_avoid_each_other() -> None:
    boxes = [[100, 100, 200, 200]] * 2
    result = Instances(boxes, [0.9, 0.8], [0, 1], image_size=(300, 400), class_names=["cat", "dog"])
    one = result[:1].draw(np.zeros((300, 400, 3), np.uint8)).any(axis=2).sum()
    both = result.draw(np.zeros((300, 400, 3), np.uint8)).any(axis=2).sum()
    box = result[:1].draw(np.zeros((300, 400, 3), np.uint8), labels=False).any(axis=2).sum()
    assert both - box > 1.7 * (one - box)


def test_colors_are_stable_and_distinct() -> None:
    colors = np.array([class_color(i) for i in range(12)], float)
    distance = np.linalg.norm(colors[:, None] - colors[None], axis=2) + 1e9 * np.eye(12)
    assert distance.min() > 30
    assert class_color(3) == class_color(3)
    assert class_color(3) != class_color(3, variant=1)


def test_smoothing_removes_stairs_and_keeps_place_and_area() -> None:
    stairs = np.array([[i + step, i] for i in range(40) for step in (0, 1)] + [[0, 40]], float)
    smooth = smooth_ring(stairs, 3)
    area = abs(cv2.contourArea(stairs.astype(np.float32)))
    assert abs(cv2.contourArea(smooth.astype(np.float32))) == pytest.approx(area, rel=0.03)  # corners are rounded off
    # The middle of the stairs is the line x = y + 1/2; their corners lie 0.35 from it.
    for t in np.linspace(10, 30, 41):
        assert abs(cv2.pointPolygonTest(smooth.astype(np.float32), (t + 0.5, t), True)) < 0.3
    tiny = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    np.testing.assert_array_equal(smooth_ring(tiny, 5), tiny)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": np.zeros((5, 5, 3), np.uint8)}, "image must be uint8 [60, 80, 3], got uint8 [5, 5, 3]"),
        ({"opacity": 1.5}, "opacity must be in 0..1, got 1.5"),
        ({"line_width": 0}, "line_width must be at least 1, got 0"),
        ({"color_by": "mood"}, "color_by must be auto, class or instance; got 'mood'"),
    ],
)
def test_draw_refuses_wrong_options(arguments: dict, message: str) -> None:
    image = arguments.pop("image", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    with pytest.raises(ValueError, match=re.escape(message)):
        draw_instances(image, make(), **arguments)


def test_draw_without_a_picture_says_so() -> None:
    with pytest.raises(ValueError, match="keeps no picture"):
        make().draw()


def test_save_writes_the_drawn_picture_and_leaves_nothing_else(tmp_path) -> None:
    image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    make(source=image).save(tmp_path / "out.png")
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "out.png")), make().draw(image))
    with pytest.raises(ValueError, match=re.escape("OpenCV cannot write '.xyz'")):
        make().save(tmp_path / "out.xyz", image)
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
