"""COCO results and their average precision: by hand, and against pycocotools' own summary."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from centermask.coco import evaluate_coco, read_results, write_results

mask_api = pytest.importorskip("pycocotools.mask")

ONE = pytest.approx(1.0, abs=1e-12)  # pycocotools adds an epsilon to the divisor of each precision


def rectangle(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def truth(*annotations: dict[str, Any], images: int = 1) -> dict[str, Any]:
    return {
        "images": [{"id": i, "height": 200, "width": 300} for i in range(images)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [{"id": i, "iscrowd": 0, **a} for i, a in enumerate(annotations)],
    }


def annotation(box: tuple[float, ...], category: int = 3, image: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "area": box[2] * box[3],
        "segmentation": rectangle(*box),
        **more,
    }


def result(box: tuple[float, ...], score: float, category: int = 3, image: int = 0) -> dict[str, Any]:
    mask = mask_api.merge(mask_api.frPyObjects(rectangle(*box), 200, 300))
    return {
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "score": score,
        "segmentation": {"size": [200, 300], "counts": mask["counts"].decode()},
    }


BIG = (10.0, 10.0, 100.0, 120.0)
MIDDLE = (150.0, 20.0, 50.0, 60.0)
SMALL = (250.0, 150.0, 20.0, 20.0)


def test_perfect_results_score_one() -> None:
    summary = evaluate_coco(
        truth(annotation(BIG), annotation(MIDDLE, 7), annotation(SMALL)),
        [result(BIG, 0.9), result(MIDDLE, 0.8, 7), result(SMALL, 0.7)],
    )
    for prefix in ("box", "mask"):
        for key in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"):
            assert summary[f"{prefix}_{key}"] == ONE
    assert summary["per_class"]["cat"] == {
        "instances": 2,
        **{f"{p}_{k}": ONE for p in ("box", "mask") for k in ("ap", "ap50", "ap75")},
    }
    assert summary["images"] == 1
    assert summary["max_dets"] == 100
    json.dumps(summary, allow_nan=False)


def test_half_found_scores_half() -> None:
    # One of two found, first in rank: precision 1 up to recall 0.5, which is 51 of the 101 recall points.
    summary = evaluate_coco(truth(annotation(BIG), annotation(MIDDLE)), [result(BIG, 0.9)])
    assert summary["mask_ap"] == pytest.approx(51 / 101)
    assert summary["box_ap_large"] == ONE
    assert summary["box_ap_medium"] == 0.0
    assert summary["box_ap_small"] is None  # nothing to be found
    assert summary["per_class"]["dog"]["mask_ap"] is None
    assert summary["per_class"]["dog"]["instances"] == 0


def test_iou_decides_between_thresholds() -> None:
    # 100 x 120 against 100 x 85 inside it: IoU 0.708 passes five of the ten thresholds, 0.5 .. 0.7.
    summary = evaluate_coco(truth(annotation(BIG)), [result((10.0, 10.0, 100.0, 85.0), 0.5)])
    assert summary["box_ap50"] == ONE
    assert summary["box_ap75"] == 0.0
    assert summary["box_ap"] == pytest.approx(0.5)


def test_nothing_found_and_nothing_there() -> None:
    assert evaluate_coco(truth(annotation(BIG)), [])["mask_ap"] == 0.0
    empty = evaluate_coco(truth(), [])
    assert empty["mask_ap"] is None
    assert empty["box_ap50"] is None
    assert evaluate_coco(truth(), [result(BIG, 0.5)])["mask_ap"] is None


def test_annotation_zero_counts() -> None:
    # pycocotools by itself takes a match with annotation id 0 for none.
    assert evaluate_coco(truth(annotation(BIG)), [result(BIG, 0.9)])["box_ap"] == ONE


def test_crowds_are_neither_missed_nor_punished() -> None:
    crowd = annotation(BIG, iscrowd=1)
    crowd["segmentation"] = mask_api.merge(mask_api.frPyObjects(rectangle(*BIG), 200, 300))
    summary = evaluate_coco(
        truth(crowd, annotation(SMALL)),
        [result((20.0, 20.0, 30.0, 30.0), 0.95), result((50.0, 60.0, 40.0, 40.0), 0.94), result(SMALL, 0.9)],
    )
    assert summary["mask_ap"] == summary["box_ap"] == ONE
    assert summary["per_class"]["cat"]["instances"] == 1


def test_masks_are_classed_by_their_own_area() -> None:
    # A thin diagonal in a large box: its mask is small (< 32^2), so a false one must not weigh on the large ones.
    diagonal = result(BIG, 0.99)
    strip = [[10.0, 10.0, 14.0, 10.0, 110.0, 130.0, 106.0, 130.0]]
    mask = mask_api.merge(mask_api.frPyObjects(strip, 200, 300))
    assert mask_api.area(mask) < 32 * 32
    diagonal["segmentation"] = mask
    big = (120.0, 5.0, 110.0, 110.0)
    summary = evaluate_coco(truth(annotation(big)), [diagonal, result(big, 0.5)])
    assert summary["mask_ap_large"] == ONE
    assert summary["box_ap_large"] == pytest.approx(0.5)
    assert summary["mask_ap"] == pytest.approx(0.5)


def test_unknown_categories_of_an_image_are_left_out() -> None:
    annotations = truth(annotation(BIG), annotation(MIDDLE, 7, image=1), images=2)
    results = [result(BIG, 0.5), result(MIDDLE, 0.9, 7, image=0), result(MIDDLE, 0.4, 7, image=1)]
    assert evaluate_coco(annotations, results)["per_class"]["dog"]["mask_ap"] == pytest.approx(0.5)
    summary = evaluate_coco(annotations, results, known_categories={0: {3}})
    assert summary["per_class"]["dog"]["mask_ap"] == ONE
    assert summary["per_class"]["cat"]["mask_ap"] == ONE


def random_case(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    random = np.random.default_rng(seed)

    def box() -> tuple[float, ...]:
        w, h = random.uniform(4, 130, 2)
        return (random.uniform(0, 300 - w), random.uniform(0, 200 - h), w, h)

    annotations, results = [], []
    for image in range(6):
        for _ in range(int(random.integers(0, 7))):
            category = int(random.choice([3, 7]))
            place = box()
            annotations.append(annotation(place, category, image, iscrowd=int(random.random() < 0.15)))
            near = tuple(np.clip(np.array(place) + random.normal(0, 4, 4), 1, 190))
            if random.random() < 0.8:
                results.append(result(near, float(random.random()), category, image))
        for _ in range(4):
            results.append(result(box(), float(random.random()), int(random.choice([3, 7])), image))
    return truth(*annotations, images=6), results


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_summary_of_pycocotools(seed: int) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    ground_truth, results = random_case(seed)
    summary = evaluate_coco(ground_truth, results)
    for iou_type, prefix, left_out in [("bbox", "box", "segmentation"), ("segm", "mask", "bbox")]:
        with contextlib.redirect_stdout(io.StringIO()):
            theirs = COCO()
            theirs.dataset = json.loads(json.dumps(ground_truth))
            for a in theirs.dataset["annotations"]:
                a["id"] += 1
            theirs.createIndex()
            found = theirs.loadRes([{k: v for k, v in r.items() if k != left_out} for r in results])
            evaluation = COCOeval(theirs, found, iou_type)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        keys = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
        for key, expected in zip(keys, evaluation.stats[:6], strict=True):
            assert summary[f"{prefix}_{key}"] == (None if expected == -1 else pytest.approx(expected, abs=1e-12))


def test_max_dets_is_obeyed_and_needs_no_hundred() -> None:
    boxes = [(float(10 * (i % 25)), float(10 * (i // 25)), 8.0, 8.0) for i in range(150)]
    annotations = truth(*[annotation(box) for box in boxes])
    results = [result(box, 1 - i / 1000) for i, box in enumerate(boxes)]
    assert evaluate_coco(annotations, results, max_dets=400)["mask_ap"] == ONE
    # 100 of 150 found: recall points 0 .. 0.66 of 101.
    assert evaluate_coco(annotations, results, max_dets=100)["mask_ap"] == pytest.approx(67 / 101)
    assert evaluate_coco(annotations, results, max_dets=1)["mask_ap"] == pytest.approx(1 / 101)


def test_every_form_of_segmentation() -> None:
    compressed = result(BIG, 0.5)
    as_bytes = {**compressed, "segmentation": mask_api.merge(mask_api.frPyObjects(rectangle(*BIG), 200, 300))}
    # Columns: 10 empty and 10 rows, then 100 runs of 120 set and 80 clear.
    runs = [10 * 200 + 10, *([120, 80] * 99), 120, 300 * 200 - (10 * 200 + 10 + 99 * 200 + 120)]
    uncompressed = {**compressed, "segmentation": {"size": [200, 300], "counts": runs}}
    polygons = {**compressed, "segmentation": [[1.0, 1.0, 2.0, 2.0], *rectangle(*BIG)]}  # one ring is degenerate
    for form in (compressed, as_bytes, uncompressed, polygons):
        assert evaluate_coco(truth(annotation(BIG)), [form])["mask_ap"] == ONE
    without_box = {key: value for key, value in compressed.items() if key != "bbox"}
    assert evaluate_coco(truth(annotation(BIG)), [without_box])["box_ap"] == ONE
    boxes_only = {key: value for key, value in compressed.items() if key != "segmentation"}
    summary = evaluate_coco(truth(annotation(BIG)), [boxes_only], iou_types=["bbox"])
    assert summary["box_ap"] == ONE
    assert "mask_ap" not in summary


@pytest.mark.parametrize("engine", ["auto", "pycocotools"])
def test_nothing_is_printed_or_logged_and_nothing_is_changed(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, engine: Any
) -> None:
    ground_truth, results = random_case(9)
    before = json.dumps([ground_truth, results])
    other = logging.getLogger("faster_coco_eval")
    other.setLevel(logging.DEBUG)
    try:
        with caplog.at_level(logging.DEBUG):
            evaluate_coco(ground_truth, results, engine=engine)
        assert other.level == logging.DEBUG, "what the caller wants to see elsewhere stays"
    finally:
        other.setLevel(logging.NOTSET)
    assert capsys.readouterr().out == ""
    assert not caplog.records
    assert json.dumps([ground_truth, results]) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": 99}, "result 0 names image 99, which is not in `images`"),
        ({"category_id": 4}, "result 0 names category 4, which is not in `categories`"),
        ({"score": float("nan")}, "result 0 has score nan"),
        ({"bbox": [1, 2, 3]}, "result 0: bbox must be 4 numbers"),
        (
            {"segmentation": {"size": [300, 200], "counts": "abc"}},
            r"mask size is \[300, 200\], its image is \[200, 300",
        ),
        ({"segmentation": []}, "result 0: no usable segmentation"),
        ({"segmentation": None}, "result 0: no usable segmentation"),
    ],
)
def test_wrong_results_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_coco(truth(annotation(BIG)), [{**result(BIG, 0.5), **changes}])


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="annotation 0: no usable segmentation"):
        evaluate_coco(truth(annotation(BIG, segmentation=[])), [])
    with pytest.raises(ValueError, match="max_dets must be >= 1, got 0"):
        evaluate_coco(truth(), [], max_dets=0)
    with pytest.raises(ValueError, match="iou_types must be bbox, segm or boundary, got 'mask'"):
        evaluate_coco(truth(), [], iou_types=["mask"])  # type: ignore[list-item]


def test_files_go_round(tmp_path: Path) -> None:
    results = [result(BIG, 0.5), result(SMALL, 0.25, 7)]
    path = tmp_path / "results.json"
    write_results(path, results)
    assert read_results(path) == results
    as_bytes = [
        {**r, "segmentation": {**r["segmentation"], "counts": r["segmentation"]["counts"].encode()}} for r in results
    ]
    write_results(path, as_bytes)
    assert read_results(path) == results
    assert os.listdir(tmp_path) == ["results.json"]
    # What cannot be written leaves the old file as it was.
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(path, [{**results[0], "score": float("nan")}])
    assert read_results(path) == results
    assert os.listdir(tmp_path) == ["results.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "bad.json: not JSON"),
        ('[{"image_id": 1', "bad.json: not JSON"),
        ('{"images": []}', "bad.json: COCO results must be a list, got dict"),
        ("[3]", "bad.json: result 0: must be an object, got int"),
        ('[{"image_id": 1, "score": 1}]', "bad.json: result 0: lacks category_id"),
        ('[{"image_id": 1, "score": 1, "category_id": 2}]', "bad.json: result 0: lacks bbox and segmentation"),
        ('[{"image_id": 1, "score": 1, "category_id": 2, "bbox": [1]}]', "bad.json: result 0: bbox must be 4 numbers"),
        ('[{"image_id": 1, "score": "x", "category_id": 2, "bbox": [1, 2, 3, 4]}]', "result 0: score must be a number"),
    ],
)
def test_broken_result_files_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_results(path)
    with pytest.raises(FileNotFoundError):
        read_results(tmp_path / "missing.json")
