"""The report of `centermask eval`: the same AP as pycocotools, boundary AP, thresholds, confusion, the worst cases."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("pycocotools")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("PIL")

import tiny_model
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_evaluate import write_data

from centermask import ops
from centermask.cli import main
from centermask.coco import evaluate_coco
from centermask.coco_boundary import boundary_of
from centermask.report.analysis import Analysis, analyse, best_threshold, calibration
from centermask.report.eval_page import write_page
from centermask.report.evidence import Evidence

HEIGHT, WIDTH = 90, 110


def ellipse(x: float, y: float, a: float, b: float) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.ellipse(mask, (round(x), round(y)), (round(a), round(b)), 20, 0, 360, 1, cv2.FILLED)
    return mask


def entry(mask: np.ndarray, image: int, category: int, **more: Any) -> dict[str, Any]:
    rle = ops.rle_encode(mask)
    box = [float(v) for v in ops.rle_bbox(rle)]
    segmentation = {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}
    row = {"image_id": image, "category_id": category, "bbox": box, "segmentation": segmentation}
    return row | {"area": float(mask.sum()), "iscrowd": 0} | more


def random_set(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ellipses of three classes, some crowds, found with noise, in the wrong class, twice, or not at all."""
    rng = np.random.default_rng(seed)
    truth: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, 9):
        for _ in range(rng.integers(0, 6)):
            shape = rng.uniform([10, 10, 4, 4], [100, 80, 30, 25])
            category = int(rng.integers(1, 4))
            crowd = int(rng.random() < 0.15)
            truth.append(entry(ellipse(*shape), image, category, id=len(truth) + 1, iscrowd=crowd))
            for _ in range(rng.integers(0, 3)):
                noisy = shape + rng.normal(0, 2, 4)
                found = category if rng.random() < 0.8 else int(rng.integers(1, 4))
                mask = ellipse(*np.maximum(noisy, 2))
                results.append(entry(mask, image, found, score=round(float(rng.uniform(0.05, 1)), 2)))
    for row in results:
        del row["area"], row["iscrowd"]
    images = [{"id": n, "width": WIDTH, "height": HEIGHT, "file_name": f"{n}.png"} for n in range(1, 9)]
    categories = [{"id": n, "name": f"c{n}"} for n in range(1, 4)]
    return {"images": images, "annotations": truth, "categories": categories}, results


def peer(truth: dict[str, Any], results: list[dict[str, Any]], kind: str) -> np.ndarray:
    """pycocotools by itself: the 12 numbers of its summary."""
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO()
        index.dataset = {"info": {}, **truth}
        index.createIndex()
        evaluation = COCOeval(index, index.loadRes([dict(row) for row in results]), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.asarray(evaluation.stats[:6])


# ---- average precision -------------------------------------------------------------------------------------------


def test_the_faster_library_gives_the_same_figures() -> None:
    pytest.importorskip("faster_coco_eval")
    for seed in range(3):
        truth, results = random_set(seed)
        ours, theirs = (
            evaluate_coco(truth, results, curves=True, engine=engine) for engine in ("faster-coco-eval", "pycocotools")
        )
        for prefix in ("box", "mask"):
            for part in ("", "50", "75", "_small", "_medium", "_large"):
                key = f"{prefix}_ap{part}"
                assert ours[key] == pytest.approx(theirs[key], abs=1e-6), key
            for name, curve in theirs["curves"][prefix].items():
                for level in ("50", "75"):
                    np.testing.assert_allclose(ours["curves"][prefix][name][level], curve[level], atol=1e-6)
        assert 0.05 < ours["mask_ap"] < 0.95


def test_boundaries_equal_a_plain_erosion_of_the_whole_picture() -> None:
    width = round(0.02 * np.hypot(HEIGHT, WIDTH))
    for mask in (ellipse(40, 40, 25, 20), ellipse(2, 88, 30, 30), np.ones((HEIGHT, WIDTH), np.uint8)):
        expected = np.zeros_like(mask)
        padded = np.pad(mask, width)
        for y, x in np.argwhere(mask):
            expected[y, x] = padded[y : y + 2 * width + 1, x : x + 2 * width + 1].min() == 0
        np.testing.assert_array_equal(ops.rle_decode(boundary_of(ops.rle_encode(mask))), expected)
    empty = ops.rle_encode(np.zeros((HEIGHT, WIDTH), np.uint8))
    assert ops.rle_area(boundary_of(empty)) == 0


def test_boundary_ap_equals_another_implementation() -> None:
    faster = pytest.importorskip("faster_coco_eval")
    truth, results = random_set(5)
    ours = evaluate_coco(truth, results, iou_types=["boundary", "segm"])
    index, found = faster.COCO(), faster.COCO()
    images = {"images": truth["images"], "categories": truth["categories"]}
    index.dataset = {**images, "annotations": [dict(row) for row in truth["annotations"]]}
    rows = [
        {**row, "id": i + 1, "area": float(mask_api.area(row["segmentation"])), "iscrowd": 0}
        for i, row in enumerate(results)
    ]
    found.dataset = {**images, "annotations": rows}
    index.createIndex()
    found.createIndex()
    evaluation = faster.COCOeval_faster(index, found, "boundary")
    evaluation.params.maxDets = [100]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"])[..., 0, 0]
    assert ours["boundary_ap"] == pytest.approx(float(precision[precision > -1].mean()), abs=1e-6)
    assert ours["boundary_ap"] < ours["mask_ap"]


# ---- the analysis ------------------------------------------------------------------------------------------------


def test_the_best_threshold_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = rng.integers(1, 12, 30) / 12  # with ties
        right = rng.random(30) < scores
        present = int(right.sum() + rng.integers(0, 9))
        if not right.any():
            continue
        found = best_threshold(scores, right, present)
        best = 0.0
        for threshold in np.unique(scores):
            kept = scores >= threshold
            best = max(best, 2 * right[kept].sum() / (kept.sum() + present))
        kept = scores >= found.threshold
        assert found.f1 == pytest.approx(best)
        assert found.f1 == pytest.approx(2 * right[kept].sum() / (kept.sum() + present))
        assert found.precision == pytest.approx(right[kept].mean())
        assert found.recall == pytest.approx(right[kept].sum() / present)
    assert best_threshold(np.array([0.5]), np.array([False]), 3).threshold is None


def test_calibration() -> None:
    scores = np.array([0.95, 0.95, 1.0, 0.25, 0.25])
    precision, counts, error = calibration(scores, np.array([True, True, False, False, True]))
    assert counts.tolist() == [0, 0, 2, 0, 0, 0, 0, 0, 0, 3]
    assert precision[9] == pytest.approx(2 / 3)
    assert precision[2] == 0.5
    assert np.isnan(precision[0])
    assert error == pytest.approx((2 * 0.25 + 3 * (2.9 / 3 - 2 / 3)) / 5)


def planted() -> tuple[Evidence, dict[str, Any], list[dict[str, Any]]]:
    """Picture 1: one right, one in the wrong class, one missed; picture 2: a false alarm, and a crowd with a result."""
    masks = [ellipse(20, 20, 14, 12), ellipse(70, 20, 14, 12), ellipse(50, 65, 30, 18)]
    truth = [
        entry(mask, 1, category, id=n + 1) for n, (mask, category) in enumerate(zip(masks, (1, 1, 2), strict=True))
    ]
    truth.append(entry(ellipse(80, 60, 20, 20), 2, 1, id=4, iscrowd=1))
    results = [
        entry(ellipse(20, 20, 14, 11), 1, 1, score=0.9),
        entry(masks[1], 1, 2, score=0.8),
        entry(ellipse(30, 40, 10, 10), 2, 1, score=0.95),
        entry(ellipse(80, 60, 10, 10), 2, 1, score=0.99),
        entry(ellipse(30, 30, 5, 5), 1, 2, score=0.3),
    ]
    images = [{"id": n, "width": WIDTH, "height": HEIGHT, "file_name": f"{n}.png"} for n in (1, 2)]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    document = {"images": images, "annotations": truth, "categories": categories}
    picture = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    return Evidence(document, results, {1: {1, 2}, 2: {1, 2}}, True, lambda _: picture, "planted"), document, results


def test_matches_confusion_and_the_worst_cases() -> None:
    evidence, document, results = planted()
    analysis = analyse(evidence)
    assert analysis.classes["cat"].threshold == 0.9
    assert analysis.classes["cat"].precision == 0.5, "the result on the crowd counts neither way"
    assert analysis.classes["cat"].recall == 0.5
    assert analysis.classes["dog"].threshold is None
    # Rows labelled, columns found: cat, dog, nothing.
    assert analysis.confusion.tolist() == [[1, 0, 1], [0, 0, 1], [1, 0, 0]]
    assert [(case.truth or {})["id"] for case in analysis.misses] == [3, 2], "the largest first"
    assert [case.result for case in analysis.false_alarms] == [results[2]]
    assert [case.truth["id"] for case in analysis.loose if case.truth] == [1]
    assert 0.5 < analysis.loose[0].measure < 1
    assert json.loads(json.dumps(analysis.to_json()))["misses"][0]["annotation_id"] == 3

    document["annotations"][1]["category_id"] = 2  # now the dog at 0.8 is right
    again = analyse(evidence)
    assert again.classes["dog"].threshold == 0.8
    assert again.confusion.tolist() == [[1, 0, 0], [0, 1, 1], [1, 0, 0]]


def test_a_class_taken_for_another_is_confusion_and_said() -> None:
    evidence, document, results = planted()
    results.append(entry(ellipse(50, 65, 30, 18), 1, 2, score=0.7))
    analysis = analyse(evidence)
    assert analysis.confusion.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    (miss,) = analysis.misses
    assert miss.text.endswith("taken for dog")
    page = write_page(evaluate_coco(document, results, curves=True), analysis, evidence, ["a note <b>"])
    assert "taken for dog" in page
    assert "a note &lt;b&gt;" in page
    # The miss, two false alarms (the dog on a cat is one), two loose masks.
    assert page.count("<img ") == 5


def test_as_many_results_count_as_the_average_precision_counts() -> None:
    """A crowd of 150, each found."""
    masks = [entry(ellipse(3 + 6 * (n % 15), 3 + 6 * (n // 15), 2, 2), 1, 1) for n in range(150)]
    truth = [{**row, "id": n + 1, "iscrowd": 0} for n, row in enumerate(masks)]
    results = [{**row, "score": 0.9 - n / 1000} for n, row in enumerate(masks)]
    _, document, _ = planted()
    document = {**document, "annotations": truth, "images": document["images"][:1]}
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    evidence = Evidence(document, results, {1: {1, 2}}, True, lambda _: picture, "crowd", max_dets=400)
    assert analyse(evidence).classes["cat"].recall == 1.0
    assert not analyse(evidence).misses
    assert analyse(replace(evidence, max_dets=100)).classes["cat"].recall == pytest.approx(100 / 150)


def test_boxes_alone_and_no_result_at_all() -> None:
    evidence, document, _ = planted()
    boxes = Evidence(document, evidence.results, evidence.known, False, evidence.picture, "boxes")
    assert analyse(boxes).confusion.sum() == 4
    nothing = Evidence(document, [], evidence.known, True, evidence.picture, "nothing")
    analysis = analyse(nothing)
    assert isinstance(analysis, Analysis)
    assert analysis.calibration_error is None
    assert len(analysis.misses) == 3
    assert "<svg" in write_page(evaluate_coco(document, [], curves=True), analysis, nothing)


def test_many_classes_list_what_is_confused_most() -> None:
    evidence, document, results = planted()
    results.append(entry(ellipse(50, 65, 30, 18), 1, 2, score=0.7))
    document["categories"] += [{"id": n, "name": f"class {n}"} for n in range(3, 40)]
    page = write_page(evaluate_coco(document, results, curves=True), analyse(evidence), evidence)
    assert "<td>cat</td><td>dog</td><td>1</td>" in page


# ---- the command -------------------------------------------------------------------------------------------------


def test_report_of_a_model_and_of_its_results_agree_with_pycocotools(tmp_path: Path) -> None:
    model = str(tiny_model.write(tmp_path / "tiny.onnx"))
    data = write_data(tmp_path / "blobs", names=("green", "red"))
    out = tmp_path / "out"
    assert main(["eval", model, str(data), "--json", f"{out}.json", "--html", f"{out}.html", "--threads", "1"]) == 0
    values = json.loads(Path(f"{out}.json").read_text())
    page = Path(f"{out}.html").read_text()
    for text in ("tiny.onnx on blobs, val", "Average precision", "outlines", "Confusion", "Loosest masks", "network"):
        assert text in page, text
    assert "http:" not in page
    assert "https:" not in page
    assert 'src="data:image/jpeg;base64,' in page

    images = [str(path) for path in sorted((data / "images").iterdir())]
    found = tmp_path / "found.json"
    command = ["predict", *images, "-m", model, "--score", "0", "--coco", str(found), "-o", str(tmp_path / "p")]
    assert main(command) == 0
    assert main(["eval", str(found), str(data), "--json", f"{out}2.json", "--html", f"{out}2.html"]) == 0
    again = json.loads(Path(f"{out}2.json").read_text())
    for key in ("mask_ap", "box_ap75", "boundary_ap"):
        assert again[key] == pytest.approx(values[key], abs=1e-9)
    assert again["report"]["best_thresholds"] == values["report"]["best_thresholds"]
    assert "Time for a picture" not in Path(f"{out}2.html").read_text()

    truth = json.loads((data / "val.json").read_text())
    document = json.loads(found.read_text())
    files = {row["id"]: row["file_name"] for row in document["images"]}
    ids = {row["file_name"]: row["id"] for row in truth["images"]}
    names = {row["id"]: row["name"] for row in document["categories"]}
    categories = {row["name"]: row["id"] for row in truth["categories"]}
    rows = [
        {
            **row,
            "image_id": ids[Path(files[row["image_id"]]).name],
            "category_id": categories[names[row["category_id"]]],
        }
        for row in document["annotations"]
        if names[row["category_id"]] in categories
    ]
    for kind, prefix in (("bbox", "box"), ("segm", "mask")):
        parts = ("", "50", "75", "_small", "_medium", "_large")
        ours = [-1 if values[f"{prefix}_ap{part}"] is None else values[f"{prefix}_ap{part}"] for part in parts]
        np.testing.assert_allclose(ours, peer(truth, rows, kind), atol=1e-9)
