"""`centermask eval`: models, checkpoints and result files on the same data; classes by name; what cannot be read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import pytest

pytest.importorskip("pycocotools")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("PIL")

import tiny_model

from centermask import Predictor, ops
from centermask.cli import main
from centermask.training.data import load_datasets
from centermask.training.evaluate import evaluate, evaluate_file

JSON_KEYS = {
    *(
        f"{kind}_ap{part}"
        for kind in ("box", "mask", "boundary")
        for part in ("", "50", "75", "_small", "_medium", "_large")
    ),
    "per_class",
    "latency_ms",
    "images",
    "max_dets",
}


def write_data(folder: Path, *, split: str = "val", names: tuple[str, ...] = ("green", "blue", "red")) -> Path:
    """Six pictures with a disc or two; category ids 10, 20, ... in the order of `names`, which is not the model's."""
    (folder / "images").mkdir(parents=True)
    ids = {name: 10 * (i + 1) for i, name in enumerate(names)}
    images, annotations = [], []
    for n in range(6):
        blobs = [("red", 62.0, 62.0 + 8 * n, 30.0), ("green", 238.0, 130.0 - 4 * n, 32.0)][: 1 + n % 2]
        cv2.imwrite(str(folder / "images" / f"{n}.png"), tiny_model.picture(200, 320, blobs))
        images.append({"id": 100 + n, "file_name": f"{n}.png", "width": 320, "height": 200})
        for color, x, y, radius in blobs:
            if color not in ids:
                continue
            mask = tiny_model.disc(200, 320, x, y, radius)
            rle = ops.rle_encode(mask)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 100 + n,
                    "category_id": ids[color],
                    "bbox": [x - radius, y - radius, 2 * radius, 2 * radius],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": {"size": [200, 320], "counts": rle["counts"].decode()},
                }
            )
    categories = [{"id": id_, "name": name} for name, id_ in ids.items()]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{split}.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model.write(tmp_path_factory.mktemp("model") / "tiny.onnx"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "blobs")


def test_a_model_that_finds_everything_has_full_ap50(model: str, data: Path) -> None:
    figures, failures = evaluate_file(model, data, "val", threads=1)
    assert failures == []
    values = figures.to_json()
    assert set(values) == JSON_KEYS
    assert values["images"] == 6
    assert values["mask_ap50"] == values["box_ap50"] == 1.0
    assert 0.8 < values["mask_ap"] <= 1.0
    assert values["latency_ms"] > 0
    assert set(values["per_class"]) == {"green", "red"}
    assert values["per_class"]["red"]["instances"] == 6
    assert figures.notes == ("classes that only the data knows are left out: blue",)
    assert values["mask_ap_small"] is None  # no disc is that small


def test_table_and_json_of_the_command(
    model: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", model, str(data), "--json", str(tmp_path / "r.json")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"mask +[01]\.\d{4} +1\.0000", printed)
    assert "note: classes that only the data knows are left out: blue" in printed
    assert set(json.loads((tmp_path / "r.json").read_text())) == JSON_KEYS | {"report"}


def test_another_split_and_a_missing_one(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_data(tmp_path / "blobs", split="holdout")
    assert main(["eval", model, str(folder), "--split", "holdout"]) == 0
    assert main(["eval", model, str(folder)]) == 2
    assert "val.json" in capsys.readouterr().err


def test_classes_that_only_the_model_knows_do_no_harm(model: str, tmp_path: Path) -> None:
    folder = write_data(tmp_path / "reds", names=("red",))
    figures, _ = evaluate_file(model, folder, "val", threads=1)
    assert figures.values["mask_ap50"] == 1.0  # green discs are found, and are no false alarms
    assert figures.notes == ("classes that only the model knows are left out: green",)


def test_no_class_in_common(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_data(tmp_path / "blues", names=("blue",))
    assert main(["eval", model, str(folder)]) == 2
    assert "no class in common" in capsys.readouterr().err


def test_pictures_that_cannot_be_read_are_named_and_left_out(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_data(tmp_path / "blobs")
    picture = folder / "images" / "3.png"
    picture.write_bytes(picture.read_bytes()[: picture.stat().st_size // 2])
    code = main(["eval", model, str(folder)])
    output = capsys.readouterr()
    assert "5 pictures" in output.out
    assert code == 1
    assert "3.png" in output.err + output.out


def test_result_files_of_both_kinds_give_the_figures_of_the_model(model: str, data: Path, tmp_path: Path) -> None:
    figures, _ = evaluate_file(model, data, "val", threads=1)
    outputs = ["--out", str(tmp_path / "out"), "--coco", str(tmp_path / "document.json")]
    assert main(["predict", str(data / "images"), "--model", model, "--score", "0", *outputs]) == 0
    by_document, _ = evaluate_file(str(tmp_path / "document.json"), data, "val")
    predictor = Predictor(model, score_threshold=0.0)
    dataset = load_datasets([data], "val")
    rows = []
    for record in dataset.records:
        result = predictor(record.path)
        for row, name in zip(result.to_coco(record.image_id), result.names, strict=True):
            rows.append({**row, "category_id": {"green": 10, "red": 30}[name]})
    (tmp_path / "list.json").write_text(json.dumps(rows))
    by_list, _ = evaluate_file(str(tmp_path / "list.json"), data, "val")
    for other in (by_document, by_list):
        assert other.latency_ms is None
        for key in ("mask_ap", "box_ap", "mask_ap75"):
            assert other.values[key] == pytest.approx(figures.values[key])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("3", "must be a list"),
        ('{"images": []}', "needs images, annotations and categories"),
        ('[{"image_id": 100}]', "result 0: lacks category_id, score"),
        (
            '[{"image_id": 9, "category_id": 10, "score": 1, "bbox": [0, 0, 1, 1]}]',
            "no result is of a picture and a class",
        ),
    ],
)
def test_result_files_that_are_none(data: Path, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        evaluate_file(str(tmp_path / "r.json"), data, "val")
    assert "r.json" in str(caught.value)


def test_in_joined_sets_a_class_counts_only_where_it_is_labelled(model: str, tmp_path: Path) -> None:
    reds, greens = write_data(tmp_path / "a", names=("red",)), write_data(tmp_path / "b", names=("green",))
    dataset = load_datasets([reds, greens], "val")
    figures, _ = evaluate(Predictor(model, score_threshold=0.0, threads=1), dataset)
    assert figures.values["mask_ap50"] == 1.0  # without the rule, each set's other colour would be a false alarm
    assert figures.values["images"] == 12


def test_a_class_that_the_model_lacks_is_refused(model: str, data: Path) -> None:
    with pytest.raises(ValueError, match=re.escape("the model does not know the classes ['blue']")):
        evaluate(Predictor(model), load_datasets([data], "val"))


def test_a_checkpoint_is_evaluated_by_the_same_way(data: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("timm")
    from dataclasses import replace

    from centermask.config import ModelConfig, PreprocessConfig
    from centermask.nn.model import CenterMask
    from centermask.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from centermask.training.evaluate import evaluate_model

    torch.manual_seed(0)
    config = ModelConfig.from_name("test_efficientnet-conv-shape", class_names=("green", "red"), category_ids=(1, 2))
    config = replace(config, neck_channels=(16, 16, 16), preprocess=PreprocessConfig(size=96))
    save_checkpoint(tmp_path / "a.pt", Checkpoint(config, CenterMask(config).state_dict()))
    figures, _ = evaluate_file(str(tmp_path / "a.pt"), data, "val", threads=1)
    assert set(figures.to_json()) == JSON_KEYS
    assert 0 <= figures.values["mask_ap"] < 0.5  # untrained
    model = load_checkpoint(tmp_path / "a.pt").build().train()
    values = evaluate_model(model, load_datasets([data], "val", classes=["green", "red"]))
    assert model.training  # its mode is given back
    assert values["mask_ap"] == pytest.approx(figures.values["mask_ap"])


def test_a_file_that_is_no_model(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.pt").write_bytes(b"nothing")
    assert main(["eval", str(tmp_path / "a.pt"), str(data)]) == 2
    assert "a.pt" in capsys.readouterr().err
    assert main(["eval", "missing.onnx", str(data)]) == 2
    assert "missing.onnx" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"score": None}, "lacks score"),
        ({"segmentation": 3}, "segmentation must be polygons"),
        ({"image_id": [1]}, "image_id and category_id must be ids"),
    ],
)
def test_entries_that_are_no_results_are_named(data: Path, tmp_path: Path, capsys, change: dict, cause: str) -> None:
    # Ground truth given in place of results is the likeliest mistake: it has no scores.
    document = json.loads((data / "val.json").read_text())
    row = document["annotations"][0] | {"score": 0.5} | change
    document["annotations"] = [{key: value for key, value in row.items() if value is not None}]
    path = tmp_path / "results.json"
    for content in (document, document["annotations"]):
        path.write_text(json.dumps(content))
        assert main(["eval", str(path), str(data)]) == 2
        assert f"{path}: result 0: {cause}" in capsys.readouterr().err


def test_figures_go_into_a_folder_that_was_not_there(model: str, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "figures.json"
    assert main(["eval", model, str(data), "--json", str(path)]) == 0
    assert json.loads(path.read_text())["images"] == 6
