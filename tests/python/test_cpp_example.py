"""cpp/examples: built as a user would, it finds what the Python package finds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

runtime = pytest.importorskip("onnxruntime")

import compare_results  # noqa: E402  (of this folder)

from centermask import Predictor  # noqa: E402
from centermask.cli import sample_picture  # noqa: E402
from centermask.predictor import model_path  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SCORE = 0.1  # less than what is worth showing: more instances to compare
Image = NDArray[np.uint8]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """centermask_segment, with the runtime of Python's package."""
    libraries = sorted(Path(runtime.__file__).parent.glob("capi/libonnxruntime.so*"))
    if int(runtime.__version__.split(".")[1]) < 25:
        pytest.skip("some of the models here need onnxruntime 1.25")
    if not libraries:
        pytest.skip(f"onnxruntime {runtime.__version__} brings no libonnxruntime.so")
    cmake = shutil.which("cmake")
    if cmake is None or shutil.which("c++") is None:
        pytest.skip("cmake and a C++ compiler are needed")
    build = tmp_path_factory.mktemp("example")
    settings = ["-DCMAKE_BUILD_TYPE=Release", f"-DONNXRUNTIME_LIBRARY={libraries[0]}"]
    if "CENTERMASK_PREFIX" in os.environ:  # an installed library
        settings += ["-S", str(ROOT / "cpp" / "examples"), f"-DCMAKE_PREFIX_PATH={os.environ['CENTERMASK_PREFIX']}"]
    else:
        settings += ["-S", str(ROOT), "-DCENTERMASK_PYTHON=OFF", "-DCENTERMASK_EXAMPLES=ON", "-DCENTERMASK_WERROR=ON"]
    for command in (
        [cmake, "-B", str(build), *settings],
        [cmake, "--build", str(build), "--target", "centermask_segment", "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return next(path for path in build.rglob("centermask_segment") if path.is_file())


def run(program: Path, *arguments: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    command = [str(program), *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def assert_finds_the_same(program: Path, model: str, pictures: list[Path], folder: Path) -> int:
    """Compares with the Predictor, picture by picture; returns how many instances there were."""
    found = folder / "found.json"
    run(program, model_path(model), *pictures, "--score", str(SCORE), "--coco", found, "--threads", "2")
    predictor = Predictor(model, device="cpu", threads=2, score_threshold=SCORE)
    expected = [
        result
        for i, instances in enumerate(predictor.stream(list(pictures)), start=1)
        for result in instances.to_coco(i)
    ]
    ours = compare_results.read(found)
    assert compare_results.differences(expected, ours, score=SCORE) == []
    return len(expected)


def photographs() -> list[tuple[str, Image]]:
    """Ten: of a labelled set where there is one, else views of the sample photograph."""
    folder = Path(os.environ.get("CENTERMASK_DATA", "")) / "animals"
    if "CENTERMASK_DATA" in os.environ and (folder / "val.json").is_file():
        names = sorted(image["file_name"] for image in json.loads((folder / "val.json").read_text())["images"])
        return [(f"{i}", cv2.imread(str(folder / "images" / names[i * len(names) // 10]))) for i in range(10)]
    sample = cv2.imread(str(sample_picture()))
    views = [sample, sample[:, ::-1], sample[80:], sample[:, 60:], sample[:400], sample[:, :400]]
    views += [
        np.roll(sample, 1, axis=2),
        255 - sample[:, ::-1],
        sample.transpose(1, 0, 2),
        cv2.resize(sample, (150, 170)),
    ]
    return [(f"view{i}", np.ascontiguousarray(view)) for i, view in enumerate(views)]


def test_same_instances_as_python_on_ten_photographs(program: Path, tmp_path: Path) -> None:
    pictures = []
    for name, pixels in photographs():
        pictures.append(tmp_path / f"{name}.ppm")
        assert cv2.imwrite(str(pictures[-1]), pixels)
    assert len(pictures) == 10
    assert assert_finds_the_same(program, "default", pictures, tmp_path) >= 10


@pytest.mark.parametrize(("width", "height"), [(1300, 1524), (1536, 1800), (37, 43)])
def test_pictures_much_larger_or_smaller_than_the_input(program: Path, tmp_path: Path, width: int, height: int) -> None:
    # Large ones are averaged down first, by OpenCV there and by a loop here.
    resized = cv2.resize(cv2.imread(str(sample_picture())), (width, height), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(tmp_path / "large.bmp"), resized)
    assert assert_finds_the_same(program, "default", [tmp_path / "large.bmp"], tmp_path) >= 1


def test_many_instances_of_the_other_embedded_model(program: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 40, (300, 420), dtype=np.uint8)
    for x, y in np.random.default_rng(1).integers(20, 280, (60, 2)):
        cv2.circle(noise, (int(x) * 3 // 2, int(y)), 9, 200, -1)
    cv2.imwrite(str(tmp_path / "cells.pgm"), noise)
    assert assert_finds_the_same(program, "nuclei", [tmp_path / "cells.pgm"], tmp_path) >= 20


def test_jpeg_with_its_orientation(program: Path, tmp_path: Path) -> None:
    if "JPEG" not in run(program, "--help").stdout:
        pytest.skip("built without libjpeg")
    pil = pytest.importorskip("PIL.Image")
    exif = pil.Exif()
    exif[0x0112] = 6
    pil.open(sample_picture()).save(tmp_path / "turned.jpg", exif=exif)
    assert assert_finds_the_same(program, "default", [sample_picture(), tmp_path / "turned.jpg"], tmp_path) >= 2
    data = sample_picture().read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    assert "truncated JPEG" in run(program, model_path("default"), tmp_path / "cut.jpg", expect=1).stderr


def test_draws(program: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "photo.ppm"), cv2.imread(str(sample_picture())))
    (tmp_path / "drawn").mkdir()
    done = run(program, model_path("default"), tmp_path / "photo.ppm", "--draw", tmp_path / "drawn")
    assert "1 instances" in done.stdout
    assert "person" in done.stdout
    before, drawn = (cv2.imread(str(tmp_path / name)) for name in ("photo.ppm", "drawn/photo.ppm"))
    changed = (before != drawn).any(axis=2)
    mask = Predictor(device="cpu")(tmp_path / "photo.ppm").masks.bitmaps()[0]  # type: ignore[union-attr]
    assert changed[mask].mean() > 0.95
    assert changed[~mask].mean() < 0.05  # the outline of the box


def test_deeper_greys_than_eight_bits(program: Path, tmp_path: Path) -> None:
    grey = cv2.imread(str(sample_picture()), cv2.IMREAD_GRAYSCALE).astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "deep.pgm"), grey)
    assert assert_finds_the_same(program, "default", [tmp_path / "deep.pgm"], tmp_path) >= 1


def test_says_what_is_wrong(program: Path, tmp_path: Path) -> None:
    model = model_path("default")
    files = {
        "empty.ppm": (b"", "is empty (0 bytes)"),
        "cut.ppm": (b"P6 10 10 255\n" + bytes(299), "is truncated: 312 bytes of 313"),
        "header.ppm": (b"P6 ten", "has a damaged header"),
        "huge.ppm": (b"P6 99999999 99999999 255\n", "has a size of 99999999 x 99999999"),
        "cut.bmp": (b"BM" + bytes(20), "is truncated: 22 bytes of 54"),
        "text.txt": (b"no picture", "is none of PPM"),
    }
    for name, (content, _) in files.items():
        (tmp_path / name).write_bytes(content)
    paths = [tmp_path / name for name in files]
    done = run(program, model, *paths, tmp_path / "absent.ppm", expect=1)  # each is named, none stops the others
    for path, (_, cause) in zip(paths, files.values(), strict=True):
        assert f"error: {path}: {cause}" in done.stderr
    assert f"{tmp_path / 'absent.ppm'}: cannot be opened" in done.stderr

    assert "at least one picture" in run(program, model, expect=2).stderr
    assert "unknown option --what" in run(program, model, "--what", expect=2).stderr
    assert "--score must be in 0..1" in run(program, model, "x.ppm", "--score", "2", expect=2).stderr
    assert "--threads needs a number" in run(program, model, "x.ppm", "--threads", "a", expect=2).stderr
    assert str(tmp_path / "absent.onnx") in run(program, tmp_path / "absent.onnx", "x.ppm", expect=2).stderr
    assert "ONNX Runtime" in run(program, tmp_path / "text.txt", "x.ppm", expect=2).stderr
    assert "absent.so" in run(program, model, "x.ppm", "--op-library", "absent.so", expect=2).stderr
    assert "cannot be loaded" in run(program, model, "x.ppm", "--onnxruntime", "absent.so", expect=2).stderr
    assert "is not ONNX Runtime" in run(program, model, "x.ppm", "--onnxruntime", "libm.so.6", expect=2).stderr


@pytest.mark.parametrize("kind", ["no library", "operators of ONNX alone", "masks in the graph"])
def test_every_kind_of_file(program: Path, tmp_path: Path, kind: str) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(model_path("default")))
    options: list[str] = []
    if kind == "no library":  # the definitions that the file has with it
        options = ["--op-library", ""]
    elif kind == "operators of ONNX alone":
        model = pytest.importorskip("onnx.inliner").inline_local_functions(model)
        assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
        options = ["--op-library", ""]
    else:  # as `centermask export --masks rle` writes
        value, types = onnx.helper.make_tensor_value_info, onnx.TensorProto
        inputs = ["mask_features", "mask_params", "boxes", "labels", "count", "image_to_input", "image_size"]
        outputs = ["rle_counts", "rle_offsets"]
        node = onnx.helper.make_node(
            "AssembleMasks", inputs, outputs, domain="centermask", head="dynamic", stride=4, box_margin=0.1
        )
        model.graph.node.append(node)
        model.graph.input.append(value("image_to_input", types.DOUBLE, ["N", 2, 3]))
        model.graph.input.append(value("image_size", types.INT64, ["N", 2]))
        model.graph.output.append(value("rle_counts", types.UINT32, ["R"]))
        model.graph.output.append(value("rle_offsets", types.INT64, ["T"]))
    onnx.save(model, str(tmp_path / "model.onnx"))
    cv2.imwrite(str(tmp_path / "photo.ppm"), cv2.imread(str(sample_picture())))
    found = {}
    for name, path, more in (("first", model_path("default"), []), ("second", tmp_path / "model.onnx", options)):
        run(program, path, tmp_path / "photo.ppm", "--score", str(SCORE), "--coco", tmp_path / name, *more)
        found[name] = compare_results.read(tmp_path / name)
    assert len(found["first"]) > 3
    assert compare_results.differences(found["first"], found["second"], score=SCORE) == []


def test_a_model_of_somebody_else_is_refused(program: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["image"], ["boxes"])],
        "other",
        [value("image", onnx.TensorProto.FLOAT, [1])],
        [value("boxes", onnx.TensorProto.FLOAT, [1])],
    )
    other = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "other.onnx").write_bytes(other.SerializeToString())
    done = run(program, tmp_path / "other.onnx", "x.ppm", expect=2)
    assert "not a centermask model: metadata 'centermask.version' is missing" in done.stderr
