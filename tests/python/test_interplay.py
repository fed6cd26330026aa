"""Results in other tools: supervision's trackers and tiles, and labelling tools by the format that COCO documents."""

from __future__ import annotations

import importlib.util
import json
import shutil
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
from centermask.label_files import CocoSink
from centermask.metadata import ModelInfo

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
    """What COCO's format page asks for, and what labelling tools do with it.

    CVAT (docs.cvat.ai, "MS COCO Object Detection"): one JSON file; polygons, and the rectangle only where
    `segmentation` is empty; pictures are found by `file_name` in the task. Label Studio (label_studio_sdk.converter):
    a task for each row of `images`, a region for each ring; no run lengths. FiftyOne (COCODetectionDataset): pictures
    by `file_name` below `data_path`; the mask is cut to `bbox`; `score` becomes the confidence.
    """
    assert {"info", "licenses", "images", "annotations", "categories"} <= set(document)
    sizes = {}
    for row in document["images"]:
        assert isinstance(row["id"], int)
        assert isinstance(row["file_name"], str)
        assert not Path(row["file_name"]).is_absolute()
        assert ".." not in Path(row["file_name"]).parts
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
        xs, ys = ([value for ring in row["segmentation"] for value in ring[axis::2]] for axis in (0, 1))
        assert row["bbox"] == [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
        assert row["area"] > 0
        assert 0 < row["score"] <= 1


def test_labels_for_correction_have_the_documented_form(tmp_path: Path) -> None:
    model = str(tiny_model.write(tmp_path / "tiny.onnx"))
    folder = tmp_path / "in"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), tiny_model.picture(200, 320, [("red", 62.0, 62.0, 30.0)]))
    assert main(["predict", str(folder), "-m", model, "-o", str(tmp_path / "out"), "--save-labels", "coco"]) == 0
    document = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert document["annotations"]
    assert [row["file_name"] for row in document["images"]] == ["a.png"]
    check_documented_form(document)


def test_polygons_are_the_masks_but_for_holes_and_crumbs(tmp_path: Path) -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[1:3, 1:4] = 1  # less than a hundredth of the 750 pixels below
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
    filled[:4, :5] = 0
    np.testing.assert_array_equal(ops.rle_decode(ops.rle_from_polygons(row["segmentation"], 40, 60)), filled)
    assert row["area"] == mask.sum()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two folders with a picture of the same name; one of them lies on its side and says so (EXIF)."""
    image = pytest.importorskip("PIL.Image")
    root = tmp_path / "shots"
    for part in ("a", "b"):
        (root / part).mkdir(parents=True)
    cv2.imwrite(str(root / "a" / "1.png"), tiny_model.picture(200, 320, [("red", 62.0, 70.0, 30.0)]))
    cv2.imwrite(str(root / "a" / "none.png"), tiny_model.picture(64, 96, []))
    upright = tiny_model.picture(200, 320, [("green", 238.0, 130.0, 32.0), ("red", 62.0, 62.0, 30.0)])
    exif = image.Exif()
    exif[0x0112] = 6  # to be turned clockwise when shown
    stored = np.ascontiguousarray(np.rot90(upright)[:, :, ::-1])
    image.fromarray(stored).save(root / "b" / "1.jpg", quality=100, subsampling=0, exif=exif)
    return root


def found_in(predictor: Predictor, dataset: Any) -> list[tuple[str, list[tuple[str, np.ndarray]]]]:
    """What a model finds in the pictures of a data set: file name, then names and masks."""
    rows = []
    for number, record in enumerate(dataset.records):
        result = predictor(dataset.image(number), color="rgb")
        assert result.masks is not None
        rows.append((record.path.name, list(zip(result.names, result.masks.bitmaps(), strict=True))))
    return rows


@pytest.mark.parametrize("kind", ["yolo", "coco"])
def test_labels_are_read_back_as_the_masks_that_were_found(
    predictor: Predictor, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    pytest.importorskip("PIL")
    from centermask.training.data import load_datasets
    from centermask.validate.run import validate

    out, inputs = tmp_path / "labels", [str(pictures / "a"), str(pictures / "b")]
    model = str(tiny_model.write(tmp_path / "tiny.onnx"))
    assert main(["predict", *inputs, "-m", model, "-o", str(out), "--save-labels", kind]) == 0
    split = "train"
    if kind == "coco":
        # Names are relative to the folder that holds all pictures, where labelling tools look for them.
        split = "annotations"
        (out / "annotations.json").rename(pictures / "annotations.json")
        out = pictures
    dataset = load_datasets([out], split)
    assert not dataset.problems
    assert len(dataset) == 3
    found = found_in(predictor, dataset)
    assert [[name for name, _ in objects] for _, objects in found] == [["red"], [], ["green", "red"]]
    for record, (_, objects) in zip(dataset.records, found, strict=True):
        assert [dataset.class_names[item.label] for item in record.annotations] == [name for name, _ in objects]
        for item, (_, mask) in zip(record.annotations, objects, strict=True):
            rings = [ring.ravel().tolist() for ring in item.rings]
            read = ops.rle_decode(ops.rle_from_polygons(rings, record.height, record.width)).astype(bool)
            # Outlines run through pixel corners: written as fractions with six digits they may lose a pixel there.
            assert (read != mask).sum() <= 2
    if kind == "yolo":
        assert sorted(str(path.relative_to(out)) for path in out.glob("images/*/*")) == [
            "images/a/1.png", "images/a/none.png", "images/b/1.jpg",
        ]  # fmt: skip
        assert validate(out).exit_code == 0


def test_labels_of_a_second_run_and_of_the_data_set_itself(pictures: Path, tmp_path: Path, capsys) -> None:
    model = str(tiny_model.write(tmp_path / "tiny.onnx"))
    arguments = ["predict", str(pictures / "a"), "-m", model, "--save-labels", "yolo", "-o"]
    out = tmp_path / "out"
    for _ in range(2):
        assert main([*arguments, str(out)]) == 0
    assert sorted(path.name for path in (out / "images").iterdir()) == ["1.png", "none.png"]
    # Pictures that lie where the labels' data set has them stay what they are.
    data = tmp_path / "data"
    shutil.copytree(pictures / "a", data / "images")
    before = (data / "images" / "1.png").read_bytes()
    assert main(["predict", str(data / "images"), "-m", model, "--save-labels", "yolo", "-o", str(data)]) == 0
    assert (data / "images" / "1.png").read_bytes() == before
    assert not (data / "images" / "1.png").is_symlink()
    # Another picture of that name is not written over.
    (out / "images" / "1.png").unlink()
    (out / "images" / "1.png").write_bytes(b"precious")
    assert main([*arguments, str(out)]) == 1
    assert "is there already and is not" in capsys.readouterr().err
    assert (out / "images" / "1.png").read_bytes() == b"precious"


def test_pictures_are_copied_where_there_are_no_links(pictures: Path, tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    model = str(tiny_model.write(tmp_path / "tiny.onnx"))
    arguments = ["predict", str(pictures / "a"), "-m", model, "--save-labels", "yolo", "-o", str(tmp_path / "out")]
    for _ in range(2):
        assert main(arguments) == 0
    copy = tmp_path / "out" / "images" / "1.png"
    assert copy.read_bytes() == (pictures / "a" / "1.png").read_bytes()


def test_pictures_that_are_links_of_ours_are_labelled_again(pictures: Path, tmp_path: Path) -> None:
    model, out = str(tiny_model.write(tmp_path / "tiny.onnx")), tmp_path / "out"
    for folder in (pictures / "a", out / "images"):
        assert main(["predict", str(folder), "-m", model, "--save-labels", "yolo", "-o", str(out)]) == 0
    assert (out / "images" / "1.png").read_bytes() == (pictures / "a" / "1.png").read_bytes()


def test_frames_of_a_video_become_pictures_with_labels(predictor: Predictor, tmp_path: Path) -> None:
    from centermask.training.data import load_datasets

    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (320, 200))
    for n in range(2):
        writer.write(tiny_model.picture(200, 320, [("red", 62.0 + 9 * n, 62.0, 30.0)]))
    writer.release()
    model, out = str(tiny_model.write(tmp_path / "tiny.onnx")), tmp_path / "out"
    assert main(["predict", str(tmp_path / "clip.avi"), "-m", model, "-o", str(out), "--save-labels", "yolo"]) == 0
    dataset = load_datasets([out], "train")
    assert [record.path.name for record in dataset.records] == ["clip_000000.jpg", "clip_000001.jpg"]
    assert [[item.label for item in record.annotations] for record in dataset.records] == [[0], [0]]
    assert dataset.image(1).shape == (200, 320, 3)
    assert sorted(path.name for path in (out / "images").iterdir()) == ["clip_000000.jpg", "clip_000001.jpg"]


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
