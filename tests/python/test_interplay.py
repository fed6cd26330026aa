"""Results in other tools: supervision's trackers and tiles, and labelling tools by the format that COCO documents."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

import tiny_model

from centermask import Instances, Predictor, ops
from centermask.cli import main
from centermask.metadata import ModelInfo
from centermask.predict_files import CocoSink

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor(str(tiny_model.write(tmp_path_factory.mktemp("model") / "tiny.onnx")), threads=1)


def example(name: str) -> ModuleType:
    pytest.importorskip("supervision")
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_tiles_find_each_object_once(predictor: Predictor) -> None:
    tiling = example("tiling")
    blobs = [("red", 100.0, 100.0, 30.0), ("red", 300.0, 110.0, 30.0), ("green", 180.0, 260.0, 32.0)]
    image = tiny_model.picture(400, 500, blobs)
    found = tiling.find_in_tiles(predictor, image, 256, 128)
    best = found[found.confidence > 0.3]
    assert len(best) == len(blobs)
    for _, x, y, _ in blobs:
        centers = (best.xyxy[:, :2] + best.xyxy[:, 2:]) / 2
        assert (np.abs(centers - (x, y)).max(axis=1) < 8).sum() == 1
    assert best.mask is not None
    assert best.mask.shape[1:] == (400, 500)


def test_a_track_keeps_its_number(predictor: Predictor) -> None:
    tracking = example("tracking")
    import supervision

    if not hasattr(supervision, "ByteTrack"):
        pytest.importorskip("trackers")
    frames = [
        tiny_model.picture(200, 320, [("red", 62.0 + 4 * n, 62.0, 30.0), ("green", 238.0 - 4 * n, 130.0, 32.0)])
        for n in range(10)
    ]
    numbers: dict[str, set[int]] = {}
    count = 0
    for _, found in tracking.follow(predictor, frames, 10):
        count += 1
        for name, number in zip(found.data.get("class_name", []), found.tracker_id, strict=True):
            numbers.setdefault(str(name), set()).add(int(number))
    assert count == 10
    assert {name: len(values) for name, values in numbers.items()} == {"red": 1, "green": 1}
    assert numbers["red"] != numbers["green"]


# ---- labelling tools ---------------------------------------------------------------------------------------------


def check_documented_form(document: dict[str, Any]) -> None:
    """COCO's own format page: what CVAT, Label Studio and FiftyOne say that they import."""
    assert {"info", "licenses", "images", "annotations", "categories"} <= set(document)
    sizes = {}
    for row in document["images"]:
        assert isinstance(row["id"], int)
        assert isinstance(row["file_name"], str)
        sizes[row["id"]] = (row["height"], row["width"])
        assert all(isinstance(side, int) for side in sizes[row["id"]])
    ids = {row["id"] for row in document["categories"]}
    assert all(isinstance(row["name"], str) for row in document["categories"])
    seen = set()
    for row in document["annotations"]:
        assert row["id"] not in seen
        seen.add(row["id"])
        assert row["category_id"] in ids
        height, width = sizes[row["image_id"]]
        assert row["iscrowd"] == 0
        assert row["segmentation"], "CVAT would take the box instead"
        for ring in row["segmentation"]:  # polygons: Label Studio has no run lengths
            assert len(ring) >= 6
            assert len(ring) % 2 == 0
            assert all(isinstance(value, float) for value in ring)
            assert 0 <= min(ring[0::2]) <= max(ring[0::2]) <= width
            assert 0 <= min(ring[1::2]) <= max(ring[1::2]) <= height
        assert len(row["bbox"]) == 4
        assert row["area"] > 0


def test_labels_for_correction_have_the_documented_form(tmp_path: Path) -> None:
    model = str(tiny_model.write(tmp_path / "tiny.onnx"))
    folder = tmp_path / "in"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), tiny_model.picture(200, 320, [("red", 62.0, 62.0, 30.0)]))
    assert main(["predict", str(folder), "-m", model, "-o", str(tmp_path / "out"), "--save-labels", "coco"]) == 0
    document = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert document["annotations"]
    check_documented_form(document)


def test_polygons_are_the_masks_but_for_holes(tmp_path: Path) -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[5:30, 5:35] = 1
    mask[10:20, 10:20] = 0
    mask[32:38, 45:58] = 1
    result = Instances(
        [[5, 5, 58, 38]], [0.5], [0], image_size=(40, 60), class_names=["a"], masks=ops.rle_encode(mask[None])
    )
    info = ModelInfo.from_config(tiny_config())
    sink = CocoSink(tmp_path / "a.json", info, polygons=True)
    sink.add("x.png", result)
    sink.settle(True)
    sink.close()
    document = json.loads((tmp_path / "a.json").read_text())
    check_documented_form(document)
    (row,) = document["annotations"]
    filled = mask.copy()
    filled[10:20, 10:20] = 1
    np.testing.assert_array_equal(ops.rle_decode(ops.rle_from_polygons(row["segmentation"], 40, 60)), filled)
    assert row["area"] == mask.sum()


def tiny_config() -> Any:
    from centermask.config import ModelConfig

    return ModelConfig(class_names=("a",), category_ids=(1,))


def test_pycocotools_reads_the_labels_as_fiftyone_and_cvat_do(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    mask = np.zeros((40, 60), np.uint8)
    mask[5:30, 5:35] = 1
    result = Instances(
        [[5, 5, 35, 30]], [0.5], [0], image_size=(40, 60), class_names=["a"], masks=ops.rle_encode(mask[None])
    )
    for polygons in (True, False):
        sink = CocoSink(tmp_path / "a.json", ModelInfo.from_config(tiny_config()), polygons=polygons)
        sink.add("x.png", result)
        sink.settle(True)
        sink.close()
        index = coco.COCO(str(tmp_path / "a.json"))
        np.testing.assert_array_equal(index.annToMask(index.loadAnns([1])[0]), mask)
