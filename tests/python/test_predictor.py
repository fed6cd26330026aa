"""The Predictor on a tiny model of known behaviour: inputs of every kind, image pixels, bad files and models."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

import tiny_model

from centermask import Predictor
from centermask.metadata import ModelFileError, ModelInfo
from centermask.predictor import to_instances, without_duplicates
from centermask.session import NetworkOutput, OnnxNetwork

BLOBS = [("red", 62.0, 70.0, 30.0), ("green", 238.0, 120.0, 35.0)]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(scope="session")
def predictor(model: Path) -> Predictor:
    return Predictor(model, threads=1)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("size", [(200, 320), (400, 640), (320, 200), (1000, 1600), (150, 240)])
def test_finds_the_blobs_at_their_place_in_any_size(predictor: Predictor, size: tuple[int, int]) -> None:
    height, width = size
    scale = max(size) / 320  # the input's longest side is 320
    blobs = [("green", width * 0.72, height / 2, 32 * scale), ("red", width * 0.28, height / 2, 28 * scale)]
    result = predictor(tiny_model.picture(height, width, blobs))
    assert sorted(result.names) == ["green", "red"]
    for i, name in enumerate(result.names):
        _, x, y, radius = next(blob for blob in blobs if blob[0] == name)
        middle = (result.boxes[i, :2] + result.boxes[i, 2:]) / 2
        # The box is centred on a cell of 4 input pixels; the peak may be the neighbouring cell of a tie.
        np.testing.assert_allclose(middle, (x, y), atol=4.01 * scale)
        np.testing.assert_allclose(result.boxes[i, 2:] - result.boxes[i, :2], 64 * scale, rtol=1e-4)
        # Cells of 4 pixels, averaged: the edge is good to about a pixel of the input.
        assert iou(result.masks.bitmaps()[i], tiny_model.disc(height, width, x, y, radius)) > 0.9


def test_result_carries_the_models_classes_and_ids(predictor: Predictor) -> None:
    result = predictor(tiny_model.picture(200, 320, BLOBS))
    assert result.names == ["green", "red"]
    assert [row["category_id"] for row in result.to_coco(1)] == [7, 3]
    assert result.scores[0] >= result.scores[1] > 0.3


def test_colour_order_matters_and_is_respected(predictor: Predictor) -> None:
    image = tiny_model.picture(200, 320, BLOBS[:1])
    assert predictor(image).names == ["red"]
    assert predictor(image[:, :, ::-1], color="rgb").names == ["red"]
    assert predictor(image[:, :, ::-1]).names == []  # blue, of which the model knows nothing
    with pytest.raises(ValueError, match="color must be 'bgr' or 'rgb', got 'hsv'"):
        predictor(image, color="hsv")  # type: ignore[call-overload]


def test_every_form_of_a_picture_gives_the_same(predictor: Predictor, tmp_path: Path) -> None:
    pil = pytest.importorskip("PIL.Image")
    image = tiny_model.picture(200, 320, BLOBS)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    expected = predictor(image)
    assert len(expected) == 2
    alpha = np.dstack([image, np.full((200, 320), 255, np.uint8)])
    forms = {
        "path": tmp_path / "a.png",
        "str": str(tmp_path / "a.png"),
        "alpha": alpha,
        "uint16": image.astype(np.uint16) * 257,
        "PIL": pil.fromarray(image[:, :, ::-1].copy()),
        "PIL RGBA": pil.fromarray(np.ascontiguousarray(alpha[:, :, [2, 1, 0, 3]])),
        "not contiguous": np.repeat(image, 2, axis=1)[:, ::2],
    }
    for name, form in forms.items():
        assert predictor(form) == expected, name
    assert predictor(list(forms.values())) == [expected] * len(forms)


def test_list_and_stream(predictor: Predictor) -> None:
    images = [tiny_model.picture(200, 320, BLOBS[:n]) for n in range(3)]
    assert [len(result) for result in predictor(images)] == [0, 1, 2]
    assert predictor([]) == []
    asked = []
    stream = predictor.stream(asked.append(len(asked)) or image for image in images)
    assert not asked  # nothing is read before it is wanted
    next(stream)
    assert asked == [0]


def test_score_threshold_and_max_instances(model: Path) -> None:
    image = tiny_model.picture(200, 320, BLOBS)
    everything = Predictor(model, score_threshold=0.0)(image)
    assert len(everything) == 2
    between = float(everything.scores.mean())
    assert Predictor(model, score_threshold=between)(image).names == ["green"]
    assert Predictor(model, max_instances=1)(image).names == ["green"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score_threshold": 1.5}, "score_threshold must be in 0..1, got 1.5"),
        ({"max_overlap": -0.1}, "max_overlap must be in 0..1, got -0.1"),
        ({"max_instances": 0}, "max_instances must be at least 1, got 0"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"device": "tpu"}, "device must be one of auto, cpu, cuda; got 'tpu'"),
    ],
)
def test_wrong_settings(model: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Predictor(model, **arguments)


def test_result_of_a_file_draws_and_saves_itself(predictor: Predictor, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), tiny_model.picture(200, 320, BLOBS))
    result = predictor(tmp_path / "a.png")
    assert result.source == tmp_path / "a.png"  # the path, not the pixels
    result.save(tmp_path / "b.png")
    assert cv2.imread(str(tmp_path / "b.png")).shape == (200, 320, 3)


def test_timing_is_that_of_the_last_picture(predictor: Predictor) -> None:
    predictor(tiny_model.picture(200, 320, BLOBS))
    timing = predictor.timing
    assert timing.total == timing.preprocess + timing.network + timing.masks
    assert min(timing.preprocess, timing.network, timing.masks) > 0


# ---- from network outputs to instances ----


def outputs(boxes: list[list[float]], scores: list[float]) -> NetworkOutput:
    n = len(boxes)
    return NetworkOutput(
        np.array([[*boxes, [0.0] * 4]], np.float32),
        np.array([[*scores, 0.0]], np.float32),
        np.array([[0] * n + [-1]]),
        np.array([n]),
        np.tile(tiny_model.mask_parameters(), (1, n + 1, 1)),
        np.ones((1, 8, 16, 16), np.float32),
    )


def test_boxes_go_back_to_the_image_and_are_clipped() -> None:
    matrix = np.array([[0.5, 0, 4.0], [0, 0.25, 8.0]])
    result = to_instances(
        outputs([[4, 8, 14, 18], [-10, -10, 34, 33], [50, 50, 60, 60]], [0.9, 0.8, 0.7]),
        0,
        tiny_model.INFO,
        image_size=(100, 60),
        image_to_input=matrix,
    )
    # x = (4 - 4) / 0.5 ...; the third lies beyond the image's right edge at (60 - 0) * 0.5 + 4 = 34
    np.testing.assert_allclose(result.boxes, [[0, 0, 20, 40], [0, 0, 60, 100]])
    assert len(result.masks) == 2
    # Mask features are 1 everywhere: the mask fills the box grown by a tenth on each side.
    grown = np.zeros((100, 60), bool)
    grown[: (40 + 4), : (20 + 2)] = True
    np.testing.assert_array_equal(result.masks.bitmaps()[0], grown)


def test_rows_after_count_are_never_looked_at() -> None:
    output = outputs([[0, 0, 8, 8]], [0.9])
    output.boxes[0, 1] = np.nan
    result = to_instances(output, 0, tiny_model.INFO, image_size=(64, 64), image_to_input=np.eye(2, 3))
    assert len(result) == 1


def test_box_only_models_give_no_masks() -> None:
    output = NetworkOutput(*outputs([[0, 0, 8, 8]], [0.9])[:4])
    info = ModelInfo(**{**vars(tiny_model.INFO), "mask_head": "none"})
    assert to_instances(output, 0, info, image_size=(64, 64), image_to_input=np.eye(2, 3)).masks is None


RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
BOXES = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [2, 0, 12, 10], [50, 0, 60, 10], [0, 0, 10, 10]], np.float32)
LABELS = np.array([0, 0, 0, 0, 1])


@pytest.mark.parametrize(
    ("max_overlap", "expected"),
    [
        (1.0, [0, 1, 2, 3, 4]),
        # Neighbours overlap by 9/11, the first and the third by 8/12: a dropped one drops no other.
        (0.7, [0, 2, 3, 4]),
        (0.6, [0, 3, 4]),
        (0.0, [0, 3, 4]),
    ],
)
def test_of_overlapping_instances_of_a_class_the_best_remains(max_overlap: float, expected: list[int]) -> None:
    np.testing.assert_array_equal(without_duplicates(BOXES, LABELS, max_overlap), expected)
    assert without_duplicates(BOXES[:0], LABELS[:0], max_overlap).tolist() == []


def test_duplicates_go_before_the_number_is_limited(model: Path) -> None:
    output = outputs([[4, 4, 30, 30], [5, 4, 31, 30], [40, 40, 60, 60]], [0.9, 0.8, 0.7])
    settings = {"image_size": (64, 64), "image_to_input": np.eye(2, 3)}
    result = to_instances(output, 0, tiny_model.INFO, max_overlap=0.5, max_instances=2, **settings)
    np.testing.assert_allclose(result.scores, [0.9, 0.7])
    assert Predictor(model).max_overlap == tiny_model.INFO.max_overlap
    assert Predictor(model, max_overlap=1.0).max_overlap == 1.0


def test_one_label_for_an_object_on_request(model: Path) -> None:
    output = outputs([[4, 4, 30, 30], [5, 4, 31, 30], [40, 40, 60, 60]], [0.9, 0.8, 0.7])
    output = output._replace(labels=np.array([[0, 1, 1, -1]]))
    settings = {"image_size": (64, 64), "image_to_input": np.eye(2, 3), "max_overlap": 0.5}
    assert to_instances(output, 0, tiny_model.INFO, **settings).labels.tolist() == [0, 1, 1]
    assert to_instances(output, 0, tiny_model.INFO, class_agnostic=True, **settings).labels.tolist() == [0, 1]
    assert not Predictor(model).class_agnostic
    assert Predictor(model, class_agnostic=True).class_agnostic


# ---- bad pictures ----


def truncated(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image)[1].tobytes()


NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "the file is empty (0 bytes)"),
        (b"hello", "damaged, or not an image in a format that OpenCV reads (5 bytes)"),
        (truncated(jpeg(NOISE)), "truncated JPEG"),
        (truncated(png(NOISE)), "truncated PNG"),
        (jpeg(NOISE)[:2], "truncated JPEG"),
        (png(NOISE)[:20], "truncated PNG"),
    ],
)
def test_bad_files_are_named_with_the_cause(predictor: Predictor, tmp_path: Path, data: bytes, cause: str) -> None:
    path = tmp_path / "bad.jpg"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {cause}")):
        predictor(path)


def test_a_missing_file_and_a_folder(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape("no.jpg: no such file")):
        predictor(tmp_path / "no.jpg")
    with pytest.raises(IsADirectoryError):
        predictor(tmp_path)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), TypeError, "image must be uint8 or uint16, got float32"),
        (np.zeros((4, 4, 2), np.uint8), ValueError, "got [4, 4, 2]"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, "H and W >= 1, got [0, 4, 3]"),
        (np.zeros((1, 3, 4, 4), np.uint8), ValueError, "got [1, 3, 4, 4]"),
        (17, TypeError, "image must be a path, bytes, a NumPy array or a PIL image, got int"),
        (None, TypeError, "got NoneType"),
    ],
)
def test_wrong_arrays(predictor: Predictor, image: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        predictor(image)  # type: ignore[call-overload]


@pytest.mark.parametrize("size", [(1, 1), (10, 20000), (20000, 10), (1, 500)])
def test_extreme_sizes_give_a_result(predictor: Predictor, size: tuple[int, int]) -> None:
    result = predictor(np.full((*size, 3), 255, np.uint8))
    assert result.image_size == size
    assert result.masks is not None
    assert len(result.masks) == len(result)


# ---- bad models ----


@pytest.mark.parametrize(("name", "data"), [("default", "animals"), ("nuclei", "nuclei")])
def test_embedded_models_say_what_was_measured_of_them(name: str, data: str) -> None:
    info = Predictor(name).info
    assert info.training_data
    measured = json.loads((RESULTS / name / f"eval_{data}.json").read_text())
    assert info.ap
    for key, value in info.ap:
        assert value == measured[key.removeprefix(f"{data} val ")]


def test_missing_models_are_named() -> None:
    with pytest.raises(FileNotFoundError, match=re.escape("no.onnx: no such model file")):
        Predictor("no.onnx")
    with pytest.raises(
        FileNotFoundError, match=re.escape("defualt: no such model file; embedded models are default, nuclei")
    ):
        Predictor("defualt")


def test_a_missing_embedded_model_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("centermask.predictor.resources.files", lambda package: tmp_path)
    with pytest.raises(FileNotFoundError, match="the embedded model 'nuclei' is not in this installation"):
        Predictor("nuclei")


def test_files_that_are_no_models(tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"")
    with pytest.raises(ModelFileError, match=re.escape("bad.onnx: the file is empty (0 bytes)")):
        Predictor(path)
    path.write_bytes(b"this is not protobuf at all" * 10)
    with pytest.raises(ModelFileError, match=re.escape("bad.onnx: not an ONNX model (cannot be parsed)")):
        Predictor(path)
    with pytest.raises(ModelFileError, match=r"best\.pt: a checkpoint .* `centermask export`"):
        Predictor(path.rename(tmp_path / "best.pt"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": None}, "not a centermask model: metadata key 'centermask.version' is missing"),
        ({"version": "99"}, "written for contract version 99, this centermask reads up to 1"),
        ({"classes": None}, "metadata key 'centermask.classes' is missing"),
        ({"classes": '["a"]'}, "1 classes but 2 category ids"),
        ({"classes": "{}"}, "must be a JSON list"),
        ({"mean": "[1, 2]"}, "must have 3 numbers"),
        ({"top_k": "many"}, "metadata 'centermask.top_k' cannot be read: 'many'"),
        ({"color": "hsv"}, "must be one of rgb, bgr; got 'hsv'"),
        ({"mask_head": "magic"}, "must be one of dynamic, shape, none; got 'magic'"),
        ({"category_ids": '["a", 2]'}, "the metadata cannot be read"),
        ({"category_ids": "[null, 2]"}, "the metadata cannot be read"),
        ({"mean": '["a", 1, 2]'}, "the metadata cannot be read"),
        ({"ap": "[1]"}, "the metadata cannot be read"),
    ],
)
def test_metadata_that_is_not_ours(tmp_path: Path, changes: dict, message: str) -> None:
    path = tiny_model.write(tmp_path / "odd.onnx", **changes)
    with pytest.raises(ModelFileError, match=re.escape(message)) as caught:
        Predictor(path)
    assert "odd.onnx" in str(caught.value)


def test_metadata_round_trip() -> None:
    assert ModelInfo.from_metadata(tiny_model.INFO.to_metadata()) == tiny_model.INFO
    named = ModelInfo(**{**vars(tiny_model.INFO), "class_names": ("Bär", '"quoted", name'), "score_threshold": 0.1})
    assert ModelInfo.from_metadata(named.to_metadata()) == named


def test_wrong_network_inputs_are_refused(model: Path) -> None:
    with pytest.raises(ValueError, match=re.escape("images must be float32 [N, 3, H, W], got float64 [1, 3, 32, 32]")):
        OnnxNetwork(model)(np.zeros((1, 3, 32, 32)))  # type: ignore[arg-type]


def test_a_failure_of_the_runtime_names_the_model(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def run(self, *_: object) -> None:
            raise Exception("Failed to allocate memory for requested buffer\nmore")

    network = OnnxNetwork(model)
    monkeypatch.setattr(network, "_session", Failing())
    with pytest.raises(RuntimeError, match=r"tiny.onnx failed on an input of \[1, 3, 32, 32\]: Failed to .* buffer$"):
        network(np.zeros((1, 3, 32, 32), np.float32))


def test_batches_are_independent(model: Path) -> None:
    network = OnnxNetwork(model, threads=1)
    images = np.stack(
        [tiny_model.picture(64, 96, blobs)[:, :, ::-1].transpose(2, 0, 1) / 255 for blobs in ([], BLOBS[:1])]
    )
    images = images.astype(np.float32)
    both = network(images)
    for i in range(2):
        for whole, one in zip(both, network(images[i : i + 1]), strict=True):
            np.testing.assert_array_equal(whole[i], one[0])


def test_prediction_does_not_import_torch(model: Path) -> None:
    code = f"""
import sys
from centermask import Predictor
import numpy as np
Predictor({str(model)!r})(np.zeros((32, 32, 3), np.uint8))
print(sorted(name for name in ("torch", "onnx", "PIL", "pycocotools", "centermask.training") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
