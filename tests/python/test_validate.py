"""`centermask validate`: every defect, planted in a small data set, is found and named by file and annotation id."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import layout_folders
import numpy as np
import pytest

from centermask.cli import main
from centermask.training.layouts import DataError
from centermask.validate.findings import KINDS
from centermask.validate.run import validate
from centermask.validate.sizes import SizeTally

WIDTH, HEIGHT = 120, 90
SQUARE = [20.0, 20.0, 60.0, 20.0, 60.0, 50.0, 20.0, 50.0]
BOX = [20.0, 20.0, 40.0, 30.0]
TURNED_EXIF = bytes.fromhex("ffe10022 457869660000 4d4d002a00000008 0001 011200030000000100060000 00000000")


def clean(root: Path) -> tuple[Path, dict[str, Any]]:
    """A data set without a defect, and its train document."""
    layout_folders.write(root, "plain")
    document = json.loads((root / "train.json").read_text())
    for split in ("train", "val"):  # ten objects of each class, so that nothing is rare
        content = json.loads((root / f"{split}.json").read_text())
        first = max(row["id"] for row in content["annotations"]) + 1
        for n in range(24):
            row = {"id": first + n, "image_id": 1 + n % 3, "category_id": 1 + n % 2, "iscrowd": 0}
            x, y = 2.0 + 8 * (n // 3), 3.0 + 5 * (n // 6)
            content["annotations"].append(
                row | {"bbox": [x, y, 6.0, 4.0], "segmentation": [[x, y, x + 6, y, x + 6, y + 4, x, y + 4]]}
            )
        (root / f"{split}.json").write_text(json.dumps(content))
        document = content if split == "train" else document
    return root, document


def findings(report: Any, kind: str) -> list[tuple[str, Any]]:
    return [(Path(row.file).name, row.annotation_id) for row in report.findings.kept.get(kind, ())]


def test_a_clean_set_has_no_finding_and_exits_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, _ = clean(tmp_path / "a")
    report = validate(root)
    assert not report.findings.counts, [str(row) for rows in report.findings.kept.values() for row in rows]
    assert report.splits["train"].images == len(layout_folders.SIZES)
    assert main(["validate", str(root)]) == 0
    assert "nothing is wrong with it" in capsys.readouterr().out


def annotation(**changes: Any) -> dict[str, Any]:
    row = {"id": 900, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": BOX, "segmentation": [SQUARE]} | changes
    return {key: value for key, value in row.items() if value is not None}


EMPTY_RLE = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}

PLANTED: dict[str, list[dict[str, Any]]] = {
    "annotation-category": [annotation(category_id=77), annotation(category_id="cat")],
    "mask-missing": [annotation(segmentation=None), annotation(segmentation=[])],
    "mask-broken": [
        annotation(segmentation=[[1.0, 2.0, 3.0, 4.0]]),
        annotation(segmentation=[[1.0, 2.0, 3.0, 2.0, 9.0, 2.0]]),
        annotation(segmentation=[[1.0, 2.0, "x", 4.0, 5.0, 6.0]]),
        annotation(segmentation={"size": [HEIGHT, WIDTH + 1], "counts": "0"}),
        annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": [5, 5]}),
        annotation(segmentation=EMPTY_RLE),
    ],
    "mask-outside": [annotation(segmentation=[[200.0, 20, 240, 20, 240, 50, 200, 50]], bbox=[200.0, 20, 40, 30])],
    "mask-partly-outside": [
        annotation(segmentation=[[100.0, 20, 140, 20, 140, 50, 100, 50]], bbox=[100.0, 20, 40, 30])
    ],
    "polygon-degenerate": [annotation(segmentation=[SQUARE, [1.0, 1.0, 2.0, 2.0]])],
    "polygon-crossing": [
        annotation(segmentation=[[20.0, 20, 60, 50, 60, 20, 20, 50, 15, 35]], bbox=[15.0, 20, 45, 30])
    ],
    "box-broken": [annotation(bbox=[20, 20, 0, 30]), annotation(bbox=[20, 20, 40]), annotation(bbox="20 20 40 30")],
    "box-mask": [annotation(bbox=[20, 20, 60, 30])],
    "object-tiny": [annotation(segmentation=[[5.0, 5.0, 6.0, 5.0, 6.0, 6.0, 5.0, 6.0]], bbox=[5, 5, 1, 1])],
    "annotation-duplicate": [annotation(id=901)],
}


@pytest.mark.parametrize(("kind", "number"), [(kind, n) for kind, rows in PLANTED.items() for n in range(len(rows))])
def test_planted_annotations_are_found_by_file_and_id(tmp_path: Path, kind: str, number: int) -> None:
    root, document = clean(tmp_path / "a")
    row = PLANTED[kind][number]
    document["annotations"].append(row)
    if kind == "annotation-duplicate":
        document["annotations"].append(annotation())
    (root / "train.json").write_text(json.dumps(document))
    report = validate(root)
    expected = [("train_0.png", 901 if kind == "annotation-duplicate" else 900)]
    found = findings(report, kind)
    if kind == "annotation-duplicate":
        assert found in (expected, [("train_0.png", 900)])
    else:
        assert found == expected
    assert set(report.findings.counts) == {kind}
    severe = kind in ("annotation-category", "mask-missing", "mask-broken", "mask-outside", "box-broken")
    assert report.exit_code == severe


def test_planted_pictures_are_found_by_file(tmp_path: Path) -> None:
    root, document = clean(tmp_path / "a")
    images = root / "images"
    names = [f"train_{n}.png" for n in range(6)]
    picture = cv2.imread(str(images / names[5]))
    (images / names[0]).unlink()
    (images / names[1]).write_bytes(b"")
    (images / names[2]).write_bytes((images / names[2]).read_bytes()[:2000])
    document["images"][3]["width"] += 1
    (images / names[4]).write_bytes(b"no picture at all")
    jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
    (images / "turned.jpg").write_bytes(jpeg[:2] + TURNED_EXIF + jpeg[2:])
    size = {"width": picture.shape[0], "height": picture.shape[1]}
    document["images"] += [
        {"id": 70, "file_name": "turned.jpg", **size},
        {"id": 71, "file_name": names[5], "width": picture.shape[1], "height": picture.shape[0]},
        {"id": 70, "file_name": "again.png", **size},
        {"id": 72},
        "nothing",
    ]
    document["annotations"] += [annotation(image_id=555), annotation(id=1, image_id=6), 3]
    (root / "train.json").write_text(json.dumps(document))
    report = validate(root)
    assert findings(report, "image-missing") == [(names[0], None)]
    assert findings(report, "image-unreadable") == [(name, None) for name in (names[1], names[2], names[4])]
    assert "0 bytes" in report.findings.kept["image-unreadable"][0].detail
    assert "truncated PNG" in report.findings.kept["image-unreadable"][1].detail
    assert findings(report, "image-size") == [(names[3], None)]
    assert findings(report, "image-exif") == [("turned.jpg", None)]
    assert "orientation 6; labels are upright" in report.findings.kept["image-exif"][0].detail
    assert findings(report, "image-listed-twice") == [(names[5], None)]
    assert findings(report, "image-id") == [("train.json", None)]
    assert report.findings.counts["image-row"] == 2
    assert findings(report, "annotation-image") == [("train.json", 900)]
    assert findings(report, "annotation-id") == [("train.json", 1)]
    assert report.findings.counts["annotation-row"] == 1
    assert findings(report, "image-empty") == [("turned.jpg", None), (names[5], None)]
    assert report.exit_code == 1
    assert report.splits["train"].usable == 3


def test_categories(tmp_path: Path) -> None:
    root, document = clean(tmp_path / "a")
    document["categories"] += [{"id": 5, "name": " "}, {"id": 8, "name": "cat"}, {"id": 1, "name": "x"}, {"name": "y"}]
    (root / "train.json").write_text(json.dumps(document))
    report = validate(root)
    assert report.findings.counts["category-broken"] == 2
    details = {kind: report.findings.kept[kind][0].detail for kind in report.findings.counts}
    assert details["category-unnamed"] == "category 5 has no name; called 'category 5'"
    assert details["category-name"] == "category 'cat' is given twice; taken as one"
    assert details["category-gaps"] == "category ids skip 3, 4, 6, 7"
    assert report.findings.counts["category-unused"] == 2
    assert "['category 5'] only in train" in details["classes-differ"]


def test_duplicates_within_and_across_splits(tmp_path: Path) -> None:
    root, _ = clean(tmp_path / "a")
    images = root / "images"
    rng = np.random.default_rng(0)
    # As smooth as photographs are: noise alone has no low frequencies to tell pictures apart by.
    photo = cv2.resize(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC)
    near = cv2.resize(photo, (300, 225), interpolation=cv2.INTER_AREA)
    other = cv2.flip(photo, 1)
    for split, names in (("train", ("p.png", "p_copy.png", "q.jpg", "r.png")), ("val", ("p_val.png", "q_val.jpg"))):
        document = json.loads((root / f"{split}.json").read_text())
        for n, name in enumerate(names):
            image = near if name[0] == "q" else other if name[0] == "r" else photo
            cv2.imwrite(str(images / name), image, [cv2.IMWRITE_JPEG_QUALITY, 60 if "val" in name else 85])
            row = {"id": 50 + n, "file_name": name, "width": image.shape[1], "height": image.shape[0]}
            document["images"].append(row)
            document["annotations"].append(annotation(id=800 + n, image_id=50 + n))
        (root / f"{split}.json").write_text(json.dumps(document))
    report = validate(root)
    assert findings(report, "exact-duplicate") == [("p_copy.png", None)]
    assert findings(report, "exact-duplicate-across") == [("p_val.png", None)]
    assert findings(report, "near-duplicate") == [("q.jpg", None)]
    assert findings(report, "near-duplicate-across") == [("q_val.jpg", None)]
    assert "p.png of train" in report.findings.kept["exact-duplicate-across"][0].detail
    assert report.exit_code == 1


def test_small_and_colliding_objects(tmp_path: Path) -> None:
    root, document = clean(tmp_path / "a")
    for n in range(40):
        x = 10.0 + 1.5 * (n % 8)
        ring = [x, 10.0, x + 3, 10.0, x + 3, 13 + n / 99, x, 13 + n / 99]
        document["annotations"].append(annotation(id=1000 + n, segmentation=[ring], bbox=[x, 10.0, 3.0, 3 + n / 99]))
    (root / "train.json").write_text(json.dumps(document))
    report = validate(root, size=120)
    (finding,) = report.findings.kept["stride-collisions"]
    assert "at input size 256, " in finding.detail, "the nearest to the 120 that was asked for"
    tally = SizeTally()
    boxes = np.array([[0.0, 0, 8, 8], [1, 1, 7, 8], [100, 100, 20, 20], [0, 0, 8, 8]])
    tally.add(boxes, np.array([0, 0, 0, 1]), 512, 256)
    assert (tally.collisions[512], tally.below_cell[512], tally.below_cell[256]) == (1, 0, 1)
    assert tally.to_json()["by_area"] == {"small": 4, "medium": 0, "large": 0}
    crowded = SizeTally()
    crowded.add(np.tile([[5.0, 5, 1, 1]], (9, 1)), np.zeros(9, np.int64), 64, 64)
    assert crowded.collisions[1024] == 8


def test_rare_classes_and_objects_below_a_cell(tmp_path: Path) -> None:
    root, document = clean(tmp_path / "a")
    document["categories"].append({"id": 3, "name": "owl"})
    document["annotations"] += [
        annotation(
            id=1000 + n, category_id=3, bbox=[5.0 + 9 * n, 60, 2, 2], segmentation=[rectangle(5 + 9 * n, 60, 2, 2)]
        )
        for n in range(9)
    ]
    (root / "train.json").write_text(json.dumps(document))
    (root / "val.json").write_text(
        json.dumps(json.loads((root / "val.json").read_text()) | {"categories": document["categories"]})
    )
    report = validate(root, size=256)
    assert findings(report, "class-balance") == [("train.json", None)]
    assert report.findings.kept["class-balance"][0].detail == "class 'owl' has only 9 objects"
    # Two pixels of a picture of 120 are 4.3 of 256 pixels: more than a cell of 4. Of one of 512 it is one.
    assert "stride-small" not in report.findings.counts
    (root / "images" / "train_0.png").unlink()
    large = np.zeros((384, 512, 3), np.uint8)
    cv2.imwrite(str(root / "images" / "train_0.png"), large)
    document["images"][0] |= {"width": 512, "height": 384}
    (root / "train.json").write_text(json.dumps(document))
    (finding,) = validate(root, size=256).findings.kept["stride-small"]
    assert finding.file.endswith("train.json")
    assert "at input size 256, 17 of " in finding.detail, "and the eight of 6x4 pixels in that picture"
    assert "are smaller than one cell" in finding.detail


def rectangle(x: float, y: float, width: float, height: float) -> list[float]:
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def test_splits_without_pictures_or_objects(tmp_path: Path) -> None:
    root, document = clean(tmp_path / "a")
    (root / "train.json").write_text(json.dumps(document | {"annotations": []}))
    val = json.loads((root / "val.json").read_text())
    for row in val["images"]:
        (root / "images" / row["file_name"]).unlink()
    report = validate(root)
    assert findings(report, "split-unlabelled") == [("train.json", None)]
    assert findings(report, "split-empty") == [("val.json", None)]
    assert report.exit_code == 1


def test_every_kind_of_defect_is_planted_here_or_beside() -> None:
    here = Path(__file__)
    text = "".join(path.read_text() for path in here.parent.glob("test_validate*.py"))
    assert [kind for kind in KINDS if f'"{kind}"' not in text] == []


# ---- layouts, files, the command ---------------------------------------------------------------------------------


def test_every_layout_is_validated_with_the_same_outcome(tmp_path: Path) -> None:
    outcomes = []
    for layout in layout_folders.LAYOUTS:
        report = validate(layout_folders.write(tmp_path / layout, layout))
        assert report.layout == layout
        counts = {k: v for k, v in report.findings.counts.items() if k != "category-gaps"}
        outcomes.append((counts, [(s.images, s.usable, s.objects, s.sizes.to_json()) for s in report.splits.values()]))
    assert all(outcome == outcomes[0] for outcome in outcomes)


def test_bad_yolo_lines_are_named(tmp_path: Path) -> None:
    root = layout_folders.write(tmp_path, "yolo")
    (root / "train/labels/train_0.txt").write_text("0 0.1 0.1 0.5 x 0.2 0.4\n9 0.1 0.1 0.5 0.1 0.2 0.4\n")
    (root / "train/labels/train_1.txt").unlink()
    (root / "train/labels/nobody.txt").write_text("")
    report = validate(root)
    assert findings(report, "label-alone") == [("nobody.txt", None)]
    assert findings(report, "mask-broken") == [("train_0.png", "train/labels/train_0.txt:1")]
    assert findings(report, "annotation-category") == [("train_0.png", "train/labels/train_0.txt:2")]
    assert findings(report, "image-empty") == [("train_1.png", None)]


def test_the_command_writes_json_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, document = clean(tmp_path / "a")
    document["annotations"] += [row for rows in PLANTED.values() for row in rows]
    (root / "train.json").write_text(json.dumps(document))
    out = tmp_path / "new" / "report"
    assert main(["validate", str(root), "--json", f"{out}.json", "--html", f"{out}.html", "--threads", "1"]) == 1
    text = capsys.readouterr().out
    assert "train_0.png, annotation 900: its mask lies outside the 120x90 picture" in text
    values = json.loads(Path(f"{out}.json").read_text())
    assert values["splits"]["train"]["images"] == 6
    item = values["findings"]["mask-outside"]["items"][0]
    assert (Path(item["file"]).name, item["annotation_id"], item["split"]) == ("train_0.png", 900, "train")
    page = Path(f"{out}.html").read_text()
    assert page.count('<img src="data:image/jpeg;base64,') > 12
    assert "http:" not in page
    assert "https:" not in page
    assert len(page) < 3_000_000


def test_no_data_set_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(tmp_path)]) == 2
    assert "no data set" in capsys.readouterr().err
    assert main(["validate", str(tmp_path / "gone")]) == 2


def test_a_missing_val_split_is_a_warning(tmp_path: Path) -> None:
    root, _ = clean(tmp_path / "a")
    (root / "val.json").unlink()
    report = validate(root)
    assert set(report.findings.counts) == {"split-missing"}
    assert report.exit_code == 0


def test_training_reads_the_damaged_set_and_names_the_same_items(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    from centermask.training.data import load_datasets

    root, document = clean(tmp_path / "a")
    expected = set()
    for n, kind in enumerate(("annotation-category", "mask-missing", "mask-broken", "mask-outside", "box-broken")):
        document["annotations"].append(PLANTED[kind][0] | {"id": 900 + n})
        expected.add(900 + n)
    (root / "images" / "train_5.png").unlink()
    (root / "train.json").write_text(json.dumps(document))
    data = load_datasets([root], "train")
    assert {p.annotation_id for p in data.problems if p.annotation_id is not None} == expected
    assert [Path(p.file).name for p in data.problems if p.annotation_id is None] == ["train_5.png"]
    assert len(data) == 5
    report = validate(root)
    named = {f.annotation_id for rows in report.findings.kept.values() for f in rows if f.annotation_id is not None}
    assert named == expected
    shutil.rmtree(root / "images")
    with pytest.raises(DataError, match="no usable picture"):
        load_datasets([root], "val")
