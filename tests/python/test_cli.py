"""The command line: inputs of every kind, outputs whole or absent, exit codes, and what is printed."""

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

from centermask import doctor, predict_files
from centermask.cli import build_parser, main, peak_memory, sample_picture
from centermask.config import ModelConfig
from centermask.metadata import ModelInfo
from centermask.predict_files import expand_inputs

BLOBS = [("red", 62.0, 70.0, 30.0), ("green", 238.0, 120.0, 35.0)]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model.write(tmp_path_factory.mktemp("model") / "tiny.onnx"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for n in range(3):
        cv2.imwrite(str(folder / f"{n}.png"), tiny_model.picture(200, 320, BLOBS[:n]))
    (folder / "notes.txt").write_text("not a picture")
    return folder


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def make_video(path: Path, frames: int = 6) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (320, 200))
    for _ in range(frames):
        writer.write(tiny_model.picture(200, 320, BLOBS))
    writer.release()
    return path


def test_a_folder_of_pictures(model: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["predict", str(folder), "--model", model, "--out", str(out)]) == 0
    assert names_in(out) == ["0.png", "1.png", "2.png"]
    np.testing.assert_array_equal(cv2.imread(str(out / "0.png")), cv2.imread(str(folder / "0.png")))  # nothing found
    assert (cv2.imread(str(out / "2.png")) != cv2.imread(str(folder / "2.png"))).any()
    printed = capsys.readouterr().out
    assert re.search(r"\[3/3\] .*2\.png: 1 green \(0\.\d\d\), 1 red \(0\.\d\d\) -> .*out/2\.png \(\d+ ms\)", printed)
    assert re.search(r"3 pictures, 3 instances; .* ms each .*peak memory \d+ MiB", printed)


def test_globs_files_and_repeats(folder: Path) -> None:
    files, errors = expand_inputs([str(folder / "*.png"), str(folder / "1.png"), str(folder)])
    assert [file.name for file in files] == ["0.png", "1.png", "2.png"]
    assert errors == []


def test_inputs_that_name_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    files, errors = expand_inputs([str(tmp_path / "empty"), str(tmp_path / "no.jpg"), str(folder / "*.gif")])
    assert files == []
    assert [error.partition(": ")[2] for error in errors] == [
        "no picture or video in this folder",
        "no such file or folder",
        "no file matches",
    ]


def test_a_bad_file_is_named_and_the_rest_goes_on(
    model: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:100])
    (folder / "1b.jpg").write_bytes(b"")
    out = tmp_path / "out"
    assert (
        main(
            [
                "predict",
                str(folder),
                str(tmp_path / "gone"),
                "-m",
                model,
                "-o",
                str(out),
                "--coco",
                str(tmp_path / "r.json"),
            ]
        )
        == 1
    )
    assert names_in(out) == ["0.png", "2.png"]
    errors = capsys.readouterr().err
    assert "1.png: truncated PNG" in errors
    assert "1b.jpg: the file is empty" in errors
    assert "gone: no such file or folder" in errors
    assert "3 inputs failed" in errors
    assert [image["file_name"] for image in json.loads((tmp_path / "r.json").read_text())["images"]] == [
        str(folder / "0.png"),
        str(folder / "2.png"),
    ]


def test_nothing_to_do_exits_with_2(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(tmp_path), "-m", model, "-o", str(tmp_path / "out")]) == 2
    assert "no picture or video in this folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_model_exits_with_2_before_anything_is_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(folder), "-m", "no.onnx", "-o", str(tmp_path / "out")]) == 2
    assert "error: no.onnx: no such model file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_wrong_usage_exits_with_2() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["predict", "--save-labels", "xml"])
    assert caught.value.code == 2


def test_outputs_never_replace_inputs_or_each_other(model: str, folder: Path) -> None:
    (folder / "sub").mkdir()
    cv2.imwrite(str(folder / "sub" / "1.png"), tiny_model.picture(64, 64, []))
    before = (folder / "1.png").read_bytes()
    assert main(["predict", str(folder / "1.png"), str(folder / "sub" / "1.png"), "-m", model, "-o", str(folder)]) == 0
    assert (folder / "1.png").read_bytes() == before
    assert {"1_2.png", "1_3.png"} <= {path.name for path in folder.iterdir()}


def test_score_and_max_instances(model: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["predict", str(folder / "2.png"), "-m", model, "-o", str(tmp_path / "out")]
    main([*arguments, "--score", "0.99"])
    assert "nothing found" in capsys.readouterr().out
    main([*arguments, "--max-instances", "1"])
    assert "1 instance;" in capsys.readouterr().out


def test_coco_file_is_a_document_that_tools_import(model: str, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "results.json"
    assert main(["predict", str(folder), "-m", model, "-o", str(tmp_path / "out"), "--coco", str(target)]) == 0
    document = json.loads(target.read_text())
    assert document["categories"] == [{"id": 3, "name": "red"}, {"id": 7, "name": "green"}]
    assert [(image["id"], image["width"], image["height"]) for image in document["images"]] == [
        (n, 320, 200) for n in (1, 2, 3)
    ]
    assert [row["image_id"] for row in document["annotations"]] == [2, 3, 3]
    assert [row["id"] for row in document["annotations"]] == [1, 2, 3]
    coco = pytest.importorskip("pycocotools.coco").COCO(str(target))
    for row in document["annotations"]:
        assert coco.annToMask(row).sum() == row["area"]


def test_what_the_model_knows_is_said_first(
    model: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(folder), "-m", model, "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"model {model}: finds red, green")
    assert "sample" not in said.err
    assert main(["predict", "-m", model, "-o", str(tmp_path / "sample")]) == 0
    assert "shows a person, which this model does not know" in capsys.readouterr().err
    info = ModelInfo.from_config(
        ModelConfig(class_names=tuple(f"c{n}" for n in range(23)), category_ids=tuple(range(23))), training_data="dust"
    )
    first, second = predict_files.introduction("m.onnx", info)
    assert first.endswith("c18, c19 and 3 more")
    assert second == "trained on: dust"


def test_yolo_labels(model: str, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["predict", str(folder), "-m", model, "-o", str(out), "--save-labels", "yolo"]) == 0
    labels = sorted((out / "labels").iterdir())
    assert [path.name for path in labels] == ["0.txt", "1.txt", "2.txt"]  # YOLO finds labels by the picture's stem
    assert labels[0].read_text() == ""
    (line,) = labels[1].read_text().splitlines()
    label, *numbers = line.split()
    assert label == "0"
    ring = np.array(numbers, float).reshape(-1, 2) * (320, 200)
    # The ring is that of the red disc, to the pixel or so that cells of 4 pixels allow.
    radius = np.hypot(*(ring - (62, 70)).T)
    assert abs(radius - 30).max() < 2.5
    assert '0: "red"' in (out / "data.yaml").read_text()


def test_yolo_labels_of_frames_and_of_equal_stems_do_not_replace_each_other(
    model: str, folder: Path, tmp_path: Path
) -> None:
    (folder / "sub").mkdir()
    for name in ("1.jpg", "sub/1.png"):
        cv2.imwrite(str(folder / name), tiny_model.picture(64, 64, []))
    inputs = [
        str(make_video(folder / "clip.avi", 3)),
        *(str(folder / name) for name in ("1.png", "1.jpg", "sub/1.png")),
    ]
    assert main(["predict", *inputs, "-m", model, "-o", str(tmp_path / "out"), "--save-labels", "yolo"]) == 0
    assert names_in(tmp_path / "out" / "labels") == [
        "1.txt", "1_2.txt", "clip_000000.txt", "clip_000001.txt", "clip_000002.txt", "sub/1.txt"
    ]  # fmt: skip
    assert names_in(tmp_path / "out" / "images") == [
        "1.png", "1_2.jpg", "clip_000000.jpg", "clip_000001.jpg", "clip_000002.jpg", "sub/1.png"
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["coco", "yolo"])
def test_a_video_that_breaks_off_leaves_no_labels(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    frames = predict_files.read_video

    def broken(file: Path):
        for frame in frames(file):
            yield frame
            if "bad" in file.name:
                raise predict_files.VideoError(f"{file}: damaged")

    monkeypatch.setattr(predict_files, "read_video", broken)
    inputs = [str(make_video(tmp_path / name, 2)) for name in ("a.avi", "bad.avi", "c.avi")]
    out = tmp_path / "out"
    assert main(["predict", *inputs, "-m", model, "-o", str(out), "--save-labels", kind]) == 1
    if kind == "yolo":
        assert {name[0] for name in names_in(out / "labels")} == {"a", "c"}
    else:
        document = json.loads((out / "annotations.json").read_text())
        assert [Path(image["file_name"]).name[0] for image in document["images"]] == list("aacc")
        assert [image["id"] for image in document["images"]] == [1, 2, 3, 4]
        assert {row["image_id"] for row in document["annotations"]} == {1, 2, 3, 4}


@pytest.mark.parametrize("error", [RuntimeError("allocation failed"), MemoryError("8 GiB"), cv2.error("bad matrix")])
def test_whatever_a_picture_brings_about_the_rest_goes_on(
    model: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, error: Exception
) -> None:
    load = predict_files.load_image

    def failing(source: Path):
        if source.name == "1.png":
            raise error
        return load(source)

    monkeypatch.setattr(predict_files, "load_image", failing)
    out, results = tmp_path / "out", tmp_path / "new" / "r.json"
    assert main(["predict", str(folder), "-m", model, "-o", str(out), "--coco", str(results)]) == 1
    assert names_in(out) == ["0.png", "2.png"]
    assert f"1.png: {'not enough memory: ' if isinstance(error, MemoryError) else ''}{error}" in capsys.readouterr().err
    assert len(json.loads(results.read_text())["images"]) == 2  # in a folder that was not there


def test_a_place_that_cannot_be_written_is_said_before_the_work(
    model: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["predict", str(folder), "-m", model, "-o", str(out), "--coco", str(tmp_path)]) == 2
    assert "is a folder, a file is wanted" in capsys.readouterr().err
    assert not out.exists()
    assert main(["eval", model, str(folder), "--json", str(tmp_path)]) == 2
    assert "is a folder, a file is wanted" in capsys.readouterr().err


def test_a_folder_that_cannot_be_read_is_one_failed_input(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "locked").mkdir()
    listing = Path.iterdir

    def refusing(path: Path):
        if path.name == "locked":
            raise PermissionError(13, "Permission denied")
        return listing(path)

    monkeypatch.setattr(Path, "iterdir", refusing)
    files, errors = expand_inputs([str(tmp_path / "locked"), str(folder)])
    assert len(files) == 3
    assert errors == [f"{tmp_path / 'locked'}: this folder cannot be read: Permission denied"]


def test_figures_for_export_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript")
    for content in ("[1]", "{"):
        (tmp_path / "ap.json").write_text(content)
        assert main(["export", "x.pt", str(tmp_path / "x.onnx"), "--ap", f"val={tmp_path / 'ap.json'}"]) == 2
        assert "ap.json" in capsys.readouterr().err


def test_save_labels_coco_goes_beside_the_pictures(model: str, folder: Path, tmp_path: Path) -> None:
    assert main(["predict", str(folder), "-m", model, "-o", str(tmp_path / "out"), "--save-labels", "coco"]) == 0
    assert "annotations.json" in names_in(tmp_path / "out")


def test_video(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = make_video(tmp_path / "clip.avi")
    out = tmp_path / "out"
    assert main(["predict", str(video), "-m", model, "-o", str(out), "--coco", str(tmp_path / "r.json")]) == 0
    assert names_in(out) == ["clip.mp4"]
    frames = [frame for frame, rate, _ in predict_files.read_video(out / "clip.mp4")]
    assert len(frames) == 6
    assert frames[0].shape == (200, 320, 3)
    assert "6 frames, 12 instances" in capsys.readouterr().out
    images = json.loads((tmp_path / "r.json").read_text())["images"]
    assert images[5]["file_name"].endswith("clip.avi#000005")


def test_a_damaged_video_leaves_nothing(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = make_video(tmp_path / "clip.mp4")
    video.write_bytes(video.read_bytes()[:500])
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert main(["predict", str(video), str(tmp_path / "empty.mp4"), "-m", model, "-o", str(tmp_path / "out")]) == 1
    errors = capsys.readouterr().err
    assert "clip.mp4: not a video that OpenCV can open" in errors
    assert "empty.mp4: the file is empty" in errors
    assert names_in(tmp_path / "out") == []


def test_a_video_that_ends_early_is_an_error_and_leaves_nothing(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    video = make_video(tmp_path / "clip.avi", frames=20)
    data = video.read_bytes()
    video.write_bytes(data[: len(data) * 6 // 10])  # the header of an avi stands first and promises 20 frames
    assert main(["predict", str(video), "-m", model, "-o", str(tmp_path / "out")]) == 1
    assert re.search(r"damaged or truncated: \d+ of 20 frames", capsys.readouterr().err)
    assert names_in(tmp_path / "out") == []


def test_without_input_the_sample_photograph_is_used(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "-m", model, "-o", str(tmp_path / "out")]) == 0
    assert names_in(tmp_path / "out") == ["sample.jpg"]
    assert "sample.jpg: " in capsys.readouterr().out
    assert sample_picture().is_file()


def test_an_unwritable_output_is_an_error_without_debris(
    model: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")
    assert main(["predict", str(folder), "-m", model, "-o", str(tmp_path / "out")]) == 2
    assert "out" in capsys.readouterr().err


def test_benchmark(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", model, "--runs", "2"]) == 0
    printed = capsys.readouterr().out
    assert "tiny-conv-dynamic" in printed
    assert re.search(r"network +\d+\.\d", printed)
    assert main(["benchmark", model, "--runs", "0"]) == 2


def test_doctor_reports_versions_and_both_runtimes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "onnxruntime" in printed
    assert "CPUExecutionProvider" in printed
    installed = {
        "onnxruntime": "1.32.0",
        "onnxruntime-gpu": "1.31.1",
        "opencv-python": "5",
        "opencv-python-headless": "5",
    }
    monkeypatch.setattr(doctor, "_version", installed.get)
    _, warnings = doctor.report()
    assert any("onnxruntime and onnxruntime-gpu are both installed" in warning for warning in warnings)
    assert any("opencv-python and opencv-python-headless" in warning for warning in warnings)


def test_doctor_tells_what_cuda_can_do_here() -> None:
    card = {"ordinal": 0, "name": "Some Card", "compute_capability": 86, "memory_bytes": 8 * 2**30}
    build = {"compiler": "GCC 12", "cuda": "12.6.85", "cuda_architectures": ("80-real", "90")}
    warnings: list[str] = []
    lines = doctor._build(build, {"devices": [card], "problem": "", "driver": 12060}, warnings)
    assert "12.6.85 for 80-real, 90; driver for CUDA 12.6" in lines[1]
    assert lines[2] == "device cuda:0 Some Card, sm_86, 8 GiB"
    assert warnings == []
    lines = doctor._build(build, {"devices": [], "problem": "no NVIDIA driver", "driver": 0}, warnings)
    assert lines[2].endswith("none: no NVIDIA driver")
    assert warnings == []
    doctor._build(build, {"devices": [card | {"compute_capability": 75}], "problem": "", "driver": 12060}, warnings)
    assert len(warnings) == 1
    assert "CMAKE_CUDA_ARCHITECTURES=75" in warnings[0]
    lines = doctor._build(build | {"cuda": ""}, {"devices": [], "problem": "", "driver": 0}, warnings)
    assert "CENTERMASK_CUDA=ON" in lines[1]


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        (86, ("80-real",), True),  # machine code runs on newer cards of its generation
        (80, ("86-real",), False),
        (87, ("75-real", "80-real"), True),
        (90, ("80-real",), False),
        (90, ("80",), True),  # from its PTX
        (120, ("90-virtual",), True),
        (75, ("80", "90"), False),
        (90, ("native",), True),
    ],
)
def test_which_cards_a_build_runs_on(capability: int, architectures: tuple[str, ...], runs: bool) -> None:
    assert doctor._has_code_for(capability, architectures) == runs


def test_help_of_every_command_and_the_entry_point() -> None:
    for command in ("predict", "eval", "export", "benchmark", "doctor"):
        with pytest.raises(SystemExit) as caught:
            build_parser().parse_args([command, "--help"])
        assert caught.value.code == 0
    done = subprocess.run(
        [sys.executable, "-m", "centermask.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("centermask ")


def test_peak_memory_is_that_of_a_python_process() -> None:
    assert 2**24 < peak_memory() < 2**36
