"""Reading COCO folders: what is usable is used, what is not is named."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("pycocotools")

from coco_folders import TRIANGLE, annotation, coco_folder
from pycocotools import mask as coco_mask

from centermask.training.data import CocoDataset, DataError, load_datasets, read_image, repeat_factors
from centermask.training.raster import fill_rings


def triangle_mask():
    return fill_rings([np.array(TRIANGLE).reshape(-1, 2)], (0, 0, 40, 32))


# ---- joining -----------------------------------------------------------------------------------------------------


def test_sets_are_joined_by_class_name(tmp_path):
    first = coco_folder(tmp_path / "a", 2, [annotation(1, category=1), annotation(2, 2, 2)], ["cat", "dog"])
    second = coco_folder(tmp_path / "b", 2, [annotation(1, category=1), annotation(2, 1, 2)], ["dog", "person"])
    data = load_datasets([first, second], "train")
    assert data.class_names == ("cat", "dog", "person")
    assert data.sources == ("a", "b")
    assert [[a.label for a in r.annotations] for r in data.records] == [[0], [1], [1, 2], []]
    assert [r.known_classes.tolist() for r in data.records] == [[True, True, False]] * 2 + [[False, True, True]] * 2
    assert [r.image_id for r in data.records] == [1, 2, 3, 4], "the ids of the second set are moved out of the way"
    assert data.category_ids == (1, 2, 3), "cat 1, dog 2, person 2 are not distinct: numbered anew"
    np.testing.assert_array_equal(data.class_counts(), [1, 2, 1])
    assert not data.problems


def test_ids_of_the_data_are_kept_where_they_are_distinct(tmp_path):
    images = [{"id": 90, "file_name": "p.png", "width": 40, "height": 32}]
    categories = [{"id": 44, "name": "bottle"}, {"id": 3, "name": "car"}, {"id": 91, "name": "never used"}]
    folder = coco_folder(tmp_path / "a", images, [annotation(7, 90, 44), annotation(9, 90, 3)], categories)
    data = load_datasets([folder], "train")
    assert data.class_names == ("bottle", "car", "never used")
    assert data.category_ids == (44, 3, 91)
    assert data.records[0].image_id == 90
    truth = data.ground_truth()
    assert [a["category_id"] for a in truth["annotations"]] == [44, 3]
    assert [a["id"] for a in truth["annotations"]] == [1, 2]
    assert truth["images"][0] == {"id": 90, "file_name": str(folder / "images/p.png"), "width": 40, "height": 32}


def test_classes_choose_and_order(tmp_path):
    folder = coco_folder(tmp_path / "a", 2, [annotation(1), annotation(2, 1, 2), annotation(3, 2, 3)], ["x", "y", "z"])
    data = load_datasets([folder], "train", classes=["z", "x"])
    assert data.class_names == ("z", "x")
    assert data.category_ids == (3, 1)
    assert [[a.label for a in r.annotations] for r in data.records] == [[1], [0]]
    with pytest.raises(DataError, match=r"unknown classes \['q'\].*train.json know \['x', 'y', 'z'\]"):
        load_datasets([folder], "train", classes=["x", "q"])
    with pytest.raises(DataError, match="named once each"):
        load_datasets([folder], "train", classes=["x", "x"])


def test_image_ids_may_be_text(tmp_path):
    images = [{"id": name, "file_name": f"{name}.png", "width": 40, "height": 32} for name in ("one", "two")]
    data = load_datasets([coco_folder(tmp_path / "a", images, [annotation(1, "two")])], "train")
    assert [r.image_id for r in data.records] == [1, 2]
    assert [len(r.annotations) for r in data.records] == [0, 1]


# ---- masks -------------------------------------------------------------------------------------------------------


def test_every_form_of_a_mask_is_the_same_mask(tmp_path):
    mask = triangle_mask()
    compressed = coco_mask.encode(np.asfortranarray(mask))
    runs = np.flatnonzero(np.diff(np.concatenate([[0], mask.T.ravel(), [2]])))
    counts = np.diff(np.concatenate([[0], runs])).tolist()
    left, right = [*TRIANGLE[:4], 8.0, 20.0], [8.0, 20.0, 30.0, 6.0, 12.0, 28.0]
    forms = [
        [TRIANGLE],
        TRIANGLE,  # flat, as some tools write it
        [left, right],  # two parts that meet
        {"size": [32, 40], "counts": compressed["counts"].decode()},
        {"size": [32, 40], "counts": counts},
    ]
    rows = [annotation(i, segmentation=form) for i, form in enumerate(forms, start=1)]
    rows.append(annotation(9, segmentation=forms[-1], iscrowd=1))
    data = load_datasets([coco_folder(tmp_path / "a", 1, rows)], "train")
    assert not data.problems
    items = data.records[0].annotations
    assert [a.ignore for a in items] == [False] * 5 + [True]
    for item in items:
        full = np.zeros((32, 40), np.uint8)
        if item.bitmap is None:
            full = fill_rings(item.rings, (0, 0, 40, 32))
        else:
            cut = item.bitmap.unpack()
            full[item.bitmap.y : item.bitmap.y + len(cut), item.bitmap.x : item.bitmap.x + cut.shape[1]] = cut
        # (8, 20) is not exactly on the triangle's side: the two parts make a slightly larger shape.
        expected = fill_rings([np.reshape(p, (-1, 2)) for p in (left, right)], (0, 0, 40, 32))
        np.testing.assert_array_equal(full, expected if item.source_id == 3 else mask)
    for row, item in zip(data.ground_truth()["annotations"], items, strict=True):
        if isinstance(row["segmentation"], dict):
            np.testing.assert_array_equal(coco_mask.decode(row["segmentation"]), mask)
        assert row["iscrowd"] == int(item.ignore)


def test_ground_truth_against_itself_is_perfect_for_pycocotools(tmp_path):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rle = {"size": [32, 40], "counts": coco_mask.encode(np.asfortranarray(triangle_mask()))["counts"].decode()}
    rows = [annotation(0), annotation(1, 2, 2, segmentation=rle), annotation(2, 2, 1, segmentation=rle, iscrowd=1)]
    data = load_datasets([coco_folder(tmp_path / "a", 3, rows)], "train")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = data.ground_truth()
        coco.createIndex()
        found = [{**row, "score": 0.9} for row in coco.dataset["annotations"] if not row["iscrowd"]]
        detections = coco.loadRes([{k: v for k, v in row.items() if k != "id"} for row in found])
        for kind in ("bbox", "segm"):
            evaluation = COCOeval(coco, detections, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            assert evaluation.stats[0] == pytest.approx(1.0)


# ---- what is wrong with the data ---------------------------------------------------------------------------------

BAD_ANNOTATIONS = {
    "no image": (annotation(5, 77), "image_id 77 is no image", None),
    "no category": (annotation(5, category=9), "category_id 9 is no category", None),
    "two points": (annotation(5, segmentation=[[1, 1, 5, 5]]), "degenerate", "ignore"),
    "no area": (annotation(5, segmentation=[[1, 1, 5, 5, 9, 9]]), "degenerate", "ignore"),
    "empty list": (annotation(5, segmentation=[]), "no segmentation", "ignore"),
    "no segmentation": (annotation(5, segmentation=None), "no segmentation", "ignore"),
    "empty and no box": (annotation(5, segmentation=[], bbox=[0, 0, 0, 0]), "no segmentation; left out", None),
    "odd length": (annotation(5, segmentation=[[1, 1, 5, 5, 9]]), "flat list x, y", "ignore"),
    "words": (annotation(5, segmentation=[["a", "b", "c", "d", "e", "f"]]), "no number", "ignore"),
    "infinite": (annotation(5, segmentation=[[1, 1, 5, 1e999, 9, 2]]), "infinite", "ignore"),
    "outside": (annotation(5, segmentation=[[50, 1, 60, 1, 60, 9]], bbox=[50, 1, 10, 8]), "outside the 40x32", None),
    "box outside": (annotation(5, bbox=[50, 1, 10, 8]), "taken from the mask", "kept"),
    "box empty": (annotation(5, bbox=[5, 5, 0, 8]), "taken from the mask", "kept"),
    "box no numbers": (annotation(5, bbox=["a", 5, 0, 8]), "taken from the mask", "kept"),
    "rle size": (annotation(5, segmentation={"size": [40, 32], "counts": [1280]}), "RLE is of size", "ignore"),
    "rle sum": (annotation(5, segmentation={"size": [32, 40], "counts": [3, 4]}), "must add up to", "ignore"),
    "rle negative": (annotation(5, segmentation={"size": [32, 40], "counts": [1281, -1]}), "RLE", "ignore"),
    "rle short": (annotation(5, segmentation={"size": [32, 40], "counts": "11"}), "RLE", "ignore"),
    "rle long": (annotation(5, segmentation={"size": [32, 40], "counts": "ooooo2ooooo2"}), "RLE", "ignore"),
    "rle garbage": (annotation(5, segmentation={"size": [32, 40], "counts": "\u00e9\u4e2d"}), "RLE", "ignore"),
    "rle empty": (annotation(5, segmentation={"size": [32, 40], "counts": [1280]}), "empty", "ignore"),
    "rle nothing": (annotation(5, segmentation={"size": [32, 40]}), "no counts", "ignore"),
}


@pytest.mark.parametrize("name", BAD_ANNOTATIONS)
def test_a_bad_annotation_is_named_and_the_rest_goes_on(tmp_path, caplog, name):
    row, cause, fate = BAD_ANNOTATIONS[name]
    folder = coco_folder(tmp_path / "a", 2, [annotation(3), row, annotation(4, 2, 2)])
    with caplog.at_level(logging.WARNING):
        data = load_datasets([folder], "train")
    assert len(data.problems) == 1
    (problem,) = data.problems
    assert problem.file == str(folder / "train.json")
    assert problem.annotation_id == 5
    assert cause in problem.cause
    assert str(problem) in caplog.text
    items = data.records[0].annotations
    assert len(data.records[1].annotations) == 1
    assert [a.source_id for a in items] == ([3] if fate is None else [3, 5])
    if fate is not None:
        assert items[1].ignore == (fate == "ignore")
    if fate == "kept":
        assert items[1].box == (4.0, 4.0, 26.0, 24.0)


def test_a_degenerate_part_does_not_spoil_the_good_ones(tmp_path):
    rows = [annotation(1, segmentation=[[1, 1, 2, 2], TRIANGLE])]
    data = load_datasets([coco_folder(tmp_path / "a", 1, rows)], "train")
    assert len(data.records[0].annotations[0].rings) == 1
    assert not data.problems


def test_bad_pictures_are_named_and_the_rest_goes_on(tmp_path, caplog):
    names = ["good", "missing", "empty", "text", "wrong_size", "cut_header"]
    images = [{"id": i, "file_name": f"{n}.png", "width": 40, "height": 32} for i, n in enumerate(names, start=1)]
    images += [{"id": 1, "file_name": "again.png", "width": 40, "height": 32}, {"file_name": "no_id.png"}, 3]
    folder = coco_folder(tmp_path / "a", [r for r in images if isinstance(r, dict)], [])
    (folder / "train.json").write_text(
        json.dumps(
            {
                "images": images,
                "annotations": [annotation(i, i) for i in range(1, 7)],
                "categories": [{"id": 1, "name": "cat"}],
            }
        )
    )
    pictures = folder / "images"
    (pictures / "missing.png").unlink()
    (pictures / "empty.png").write_bytes(b"")
    (pictures / "text.png").write_text("this is no picture")
    cv2.imwrite(str(pictures / "wrong_size.png"), np.zeros((33, 40, 3), np.uint8))
    (pictures / "cut_header.png").write_bytes((pictures / "good.png").read_bytes()[:12])
    with caplog.at_level(logging.WARNING):
        data = load_datasets([folder], "train")
    assert [r.path.name for r in data.records] == ["good.png"]
    assert len(data.records[0].annotations) == 1
    causes = {Path(p.file).name: p.cause for p in data.problems}
    assert causes["missing.png"] == "no such picture"
    assert causes["empty.png"] == "the file is empty"
    assert "not a readable picture" in causes["text.png"]
    assert causes["wrong_size.png"] == "the JSON says 40x32, the picture is 40x33"
    assert "not a readable picture" in causes["cut_header.png"]
    text = " ".join(str(p) for p in data.problems)
    assert "image id 1 is given twice" in text
    assert text.count("an image row needs id and file_name") == 2
    assert len(data.problems) == 8
    assert caplog.text.count("not usable as it is") == 1, "one summary, not a line for each"


def test_a_picture_too_large_for_pil_is_named_and_the_rest_goes_on(tmp_path, monkeypatch):
    folder = coco_folder(tmp_path / "a", 2, [])
    cv2.imwrite(str(folder / "images" / "1.png"), np.zeros((300, 400, 3), np.uint8))
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 40_000)
    data = load_datasets([folder], "train")
    assert [r.path.name for r in data.records] == ["2.png"]
    assert "exceeds limit" in data.problems[0].cause


def test_numbers_and_names_beyond_all_bounds_are_one_problem_each(tmp_path):
    images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 32} for i in (1, 2)]
    folder = coco_folder(
        tmp_path / "a", images, [annotation(1, area=10**400), annotation(2, 2, bbox=[0, 0, 10**400, 9])]
    )
    content = json.loads((folder / "train.json").read_text())
    content["images"].append({"id": 3, "file_name": "n" * 400 + ".png"})
    (folder / "train.json").write_text(json.dumps(content))
    data = load_datasets([folder], "train")
    assert [len(r.annotations) for r in data.records] == [1, 1]
    assert 200 < data.records[0].annotations[0].area < 400
    assert data.problems[0].cause.startswith("cannot be opened")
    assert data.problems[1].cause.endswith("is not usable; taken from the mask")
    assert len(data.problems) == 2


def test_many_problems_are_summed_up(tmp_path, caplog):
    rows = [annotation(i, 77) for i in range(50)]
    with caplog.at_level(logging.WARNING):
        load_datasets([coco_folder(tmp_path / "a", 1, rows)], "train")
    assert "50 items" in caplog.text
    assert "and 40 more in 1 file" in caplog.text


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("{", "cannot be read as JSON"),
        ("", "cannot be read as JSON"),
        ("\x00\x01", "cannot be read as JSON"),
        ("[1]", "not COCO: expected an object, got list"),
        ("{}", "expected a list named 'images', got NoneType"),
        ('{"images": [], "annotations": {}, "categories": []}', "a list named 'annotations', got dict"),
        ('{"images": [], "annotations": [], "categories": []}', "it has no categories"),
        ('{"images": [], "annotations": [], "categories": [{"name": "a"}]}', "category needs an integer id"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}, {"id": 1}]}', "id 1 is given twice"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "no usable picture"),
    ],
)
def test_a_file_that_is_not_coco_is_an_error_with_file_and_cause(tmp_path, content, cause):
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(DataError, match=f"train.json.*{cause}"):
        load_datasets([tmp_path], "train")


def test_missing_folders_and_splits_are_errors(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        load_datasets([tmp_path / "nowhere"], "train")
    folder = coco_folder(tmp_path / "a", 1, [])
    with pytest.raises(DataError, match=r"test\.json: no such file; splits in this folder: train"):
        load_datasets([folder], "test")
    with pytest.raises(DataError, match="no folder given"):
        load_datasets([], "train")


def test_no_usable_picture_names_the_first_trouble(tmp_path):
    folder = coco_folder(tmp_path / "a", 1, [])
    (folder / "images" / "1.png").unlink()
    with pytest.raises(DataError, match=r"no usable picture; first trouble: .*1.png: no such picture"):
        load_datasets([folder], "train")


def test_categories_without_name_or_named_twice(tmp_path):
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}, {"id": 5}]
    rows = [annotation(1), annotation(2, 1, 2), annotation(3, 1, 5)]
    data = load_datasets([coco_folder(tmp_path / "a", 1, rows, categories)], "train")
    assert data.class_names == ("cat", "category 5")
    assert [a.label for a in data.records[0].annotations] == [0, 0, 1]
    assert data.category_ids == (1, 5)
    assert len(data.problems) == 2


# ---- pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_exif_rotation_follows_the_frame_that_the_json_states(tmp_path, kind):
    from PIL import Image

    (tmp_path / "images").mkdir()
    raw = np.zeros((24, 48, 3), np.uint8)
    raw[:, :12] = (250, 0, 0)  # red at the left of the raw picture
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: 24 wide, 48 high, red at the top
    for name in ("upright", "raw", "wrong"):
        Image.fromarray(raw).save(tmp_path / "images" / f"{name}.{kind}", quality=95, exif=exif)
    sizes = {"upright": (24, 48), "raw": (48, 24), "wrong": (48, 25)}
    images = [
        {"id": i, "file_name": f"{n}.{kind}", "width": w, "height": h} for i, (n, (w, h)) in enumerate(sizes.items())
    ]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "train.json").write_text(json.dumps(content))
    data = load_datasets([tmp_path], "train")
    assert [(r.path.stem, r.upright) for r in data.records] == [("upright", True), ("raw", False)]
    upright, kept = data.image(0), data.image(1)
    assert upright.shape == (48, 24, 3)
    assert kept.shape == (24, 48, 3)
    assert upright[:8, :, 0].min() > 200
    assert upright[20:, :, 0].max() < 50
    assert kept[:, :8, 0].min() > 200


def test_pictures_are_rgb_and_grey_and_alpha_are_understood(tmp_path):
    folder = coco_folder(tmp_path / "a", 4, [])
    blue = np.zeros((32, 40, 4), np.uint8)
    blue[..., 0], blue[..., 3] = 200, 255  # BGRA
    cv2.imwrite(str(folder / "images/1.png"), blue[..., :3])
    cv2.imwrite(str(folder / "images/2.png"), blue)
    cv2.imwrite(str(folder / "images/3.png"), np.full((32, 40), 77, np.uint8))
    cv2.imwrite(str(folder / "images/4.png"), np.full((32, 40), 77 * 257, np.uint16))
    data = load_datasets([folder], "train")
    for index, colour in enumerate([(0, 0, 200), (0, 0, 200), (77, 77, 77), (77, 77, 77)]):
        image = data.image(index)
        assert image.dtype == np.uint8
        assert image.shape == (32, 40, 3)
        assert (image == colour).all()


def test_cache_and_max_side(tmp_path):
    folder = coco_folder(tmp_path / "a", 3, [])
    size = 16 * 20 * 3
    data = load_datasets([folder], "train", cache=2 * size + 5, max_side=20)
    assert data.fill_cache() == 2 * size
    for path in (folder / "images").iterdir():
        path.unlink()
    assert data.image(0).shape == data.image(1).shape == (16, 20, 3)
    with pytest.raises(DataError, match=r"3\.png: no such file"):
        data.image(2)


@pytest.mark.parametrize("upright", [True, False])
def test_pictures_that_break_later_are_named(tmp_path, upright):
    data = load_datasets([coco_folder(tmp_path / "a", 1, [])], "train", cache=True)
    record = dataclasses.replace(data.records[0], upright=upright)
    whole = record.path.read_bytes()
    cases = [b"", b"broken", whole[:-20] if upright else whole[:20]]
    for content in cases:
        record.path.write_bytes(content)
        with pytest.raises(DataError, match=r"1\.png: "):
            read_image(record)
    cv2.imwrite(str(record.path), np.zeros((5, 6, 3), np.uint8))
    with pytest.raises(DataError, match=r"1\.png: expected 40x32 pixels, got 6x5"):
        read_image(record)
    record.path.unlink()
    with pytest.raises(DataError, match=r"1\.png"):
        read_image(record)


# ---- sampling ----------------------------------------------------------------------------------------------------


def test_repeat_factors_follow_the_formula(tmp_path):
    # cat in 1 of 8 pictures, dog in 4 of 8, one picture with both, crowds do not count.
    rows = [annotation(1, 1, 1), annotation(2, 1, 2)] + [annotation(10 + i, i, 2) for i in (2, 3, 4)]
    rows.append(annotation(20, 5, 1, iscrowd=1))
    data = load_datasets([coco_folder(tmp_path / "a", 8, rows)], "train")
    np.testing.assert_allclose(repeat_factors(data, 0.5), [2] + [1] * 7)
    np.testing.assert_allclose(repeat_factors(data, 1.0), [8**0.5] + [2**0.5] * 3 + [1] * 4)
    np.testing.assert_array_equal(repeat_factors(data, 0.0), np.ones(8))


# ---- real data ---------------------------------------------------------------------------------------------------

real = pytest.mark.skipif("CENTERMASK_DATA" not in os.environ, reason="CENTERMASK_DATA names no data")


@real
def test_real_sets_read_without_trouble_and_masks_agree_with_pycocotools():
    root = Path(os.environ["CENTERMASK_DATA"])
    data = load_datasets([root / "street", root / "animals"], "val")
    assert isinstance(data, CocoDataset)
    assert not data.problems
    assert len(data.class_names) == 11
    assert len({r.image_id for r in data.records}) == len(data)
    surplus = pixels = outline = 0
    for record in data.records[::4]:
        for item in record.annotations:
            if item.bitmap is not None:
                continue
            size = (record.height, record.width)
            ours = fill_rings(item.rings, (0, 0, record.width, record.height))
            theirs = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([r.ravel() for r in item.rings], *size)))
            # pycocotools rounds the outline to fifths of a pixel: only pixels on it may differ.
            edge = cv2.morphologyEx(theirs, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
            assert not ((ours != theirs) & ~edge).any()
            surplus += int(ours.sum()) - int(theirs.sum())
            pixels += int(theirs.sum())
            outline += int(edge.sum())
    assert abs(surplus) <= 0.002 * pixels
    assert outline > 0
