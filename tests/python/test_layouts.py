"""Four layouts, one data set: they are told apart, read into the same tensors, and a missing val split is made."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")

import layout_folders
from coco_folders import annotation, coco_folder

from centermask.training import layouts, yolo
from centermask.training.augment import TrainTransform
from centermask.training.coco_reader import DataError, read_json
from centermask.training.data import CocoDataset, load_datasets, require_objects
from centermask.training.val_split import load_val, must_be_made
from centermask.validate.run import validate


def tensors(data: CocoDataset) -> list[np.ndarray]:
    """Everything that training gets from each picture: a random crop of it, with boxes, labels and masks."""
    arrays = []
    for index, record in enumerate(data.records):
        sample = TrainTransform(96)(record, data.image(index), np.random.default_rng(index))
        arrays += [np.asarray(getattr(sample, field.name)) for field in dataclasses.fields(sample)]
    return arrays


def test_all_layouts_give_identical_tensors(tmp_path: Path) -> None:
    for split in ("train", "val"):
        reference: list[np.ndarray] = []
        for layout in layout_folders.LAYOUTS:
            folder = tmp_path / layout
            if not folder.exists():
                layout_folders.write(folder, layout)
            data = load_datasets([folder], split)
            assert not data.problems
            assert data.class_names == layout_folders.NAMES
            assert layouts.find_splits(folder)[split].layout == layout
            arrays = tensors(data)
            reference = reference or arrays
            assert any(array.size and array.max() > 0 for array in reference)
            assert len(arrays) == len(reference)
            for ours, theirs in zip(arrays, reference, strict=True):
                assert ours.dtype == theirs.dtype
                np.testing.assert_array_equal(ours, theirs, err_msg=layout)


def test_run_lengths_compressed_or_not_give_identical_tensors(tmp_path: Path) -> None:
    sets = [
        load_datasets([layout_folders.write(tmp_path / kind, "coco", ("train",), masks=kind)], "train")
        for kind in ("rle", "counts")
    ]
    assert sets[0].records[0].annotations[0].bitmap is not None
    for ours, theirs in zip(*map(tensors, sets), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_plain_layout_wins_where_both_are_there(tmp_path: Path) -> None:
    layout_folders.write(tmp_path, "yolo")
    layout_folders.write(tmp_path, "plain")
    assert layouts.find_split(tmp_path, "val").layout == "plain"
    assert layouts.find_split(tmp_path / "data.yaml", "val").layout == "yolo"


@pytest.mark.parametrize("folder", ["train2017", "images/train2017", "images"])
def test_pictures_of_the_coco_tree_are_found_in_each_usual_place(tmp_path: Path, folder: str) -> None:
    root = layout_folders.write(tmp_path / "a", "coco", ("train",))
    if folder != "train2017":
        (root / folder).parent.mkdir(exist_ok=True)
        (root / "train2017").rename(root / folder)
    assert len(load_datasets([root], "train")) == len(layout_folders.SIZES)


def test_an_unknown_split_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    root = layout_folders.write(tmp_path / "a", "roboflow")
    with pytest.raises(DataError, match=r"test\.json: no such file; splits in this folder: train, val"):
        load_datasets([root], "test")
    assert len(load_datasets([root], "valid")) == 3, "its own name is understood as well"


# ---- YOLO --------------------------------------------------------------------------------------------------------


def test_yaml_of_data_sets() -> None:
    text = """
# a comment
path: ../data sets/mine   # relative
train: images/train
val:
  - images/val
  - 'images/more # val'
names:
  0: person
  1: "traffic light"
  2: it's
flow: {0: cat, 1: 'dog, wild'}
roboflow:
  workspace: me
  nested:
    deep: 1
list: ['a, b', "c\\u00e9",
  d]
download: |
  import x
  y: [
"""
    content = yolo.read_yaml(text)
    assert content["path"] == "../data sets/mine"
    assert content["val"] == ["images/val", "images/more # val"]
    assert yolo.class_names(content) == {0: "person", 1: "traffic light", 2: "it's"}
    assert yolo.class_names({"names": content["flow"]}) == {0: "cat", 1: "dog, wild"}
    assert content["list"] == ["a, b", "cé", "d"]
    assert "import x" in content["download"]
    with pytest.raises(ValueError, match="line 1: expected `key: value`"):
        yolo.read_yaml("nothing")


def test_lists_of_pictures_and_labels_beside_them(tmp_path: Path) -> None:
    layout_folders.write(tmp_path, "yolo", ("train",))
    (tmp_path / "train.txt").write_text("./train/images/train_1.png\ntrain/images/train_0.png\n")
    (tmp_path / "data.yaml").write_text("train: train.txt\nnames: {0: cat, 1: dog}\n")
    data = load_datasets([tmp_path], "train")
    assert [record.path.name for record in data.records] == ["train_1.png", "train_0.png"]
    assert [len(record.annotations) for record in data.records] == [2, 1]
    assert yolo.label_path(Path("a/b.jpg")) == Path("a/b.txt")
    assert yolo.label_path(Path("images/x/images/y/b.jpg")) == Path("images/x/labels/y/b.txt")


def test_bad_lines_of_labels_are_named_by_file_and_line(tmp_path: Path) -> None:
    layout_folders.write(tmp_path, "yolo", ("train",))
    labels = tmp_path / "train" / "labels" / "train_0.txt"
    labels.write_text("0 0.1 0.1 0.5 x 0.2 0.4\n7 0.1 0.1 0.5 0.1 0.2 0.4\n1 0.5 0.5 0.2 0.2\n0 0.1 0.1 0.5 0.1 0.3\n")
    (tmp_path / "train" / "labels" / "train_1.txt").unlink()
    data = load_datasets([tmp_path], "train")
    found = {problem.annotation_id: problem.cause for problem in data.problems}
    name = "train/labels/train_0.txt"
    assert "no number" in found[f"{name}:1"]
    assert found[f"{name}:2"] == "category_id 7 is no category of the file"
    assert "its box becomes an ignore region" in found[f"{name}:3"]
    assert "flat list" in found[f"{name}:4"]
    assert [a.ignore for a in data.records[0].annotations] == [True]
    assert data.records[0].annotations[0].box == (48.0, 36.0, 24.0, 18.0)
    assert data.records[1].annotations == (), "a picture without a label file is a negative"


@pytest.mark.parametrize("text", ["names: []\ntrain: a\n", "train: a\n", "names: {a: cat}\n", "{"])
def test_a_data_yaml_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=r"data\.yaml: not a YOLO data set"):
        load_datasets([tmp_path], "train")


# ---- a missing val split -----------------------------------------------------------------------------------------


def hundred(root: Path) -> Path:
    rows = [annotation(n, n, 1 + (n % 50 == 0)) for n in range(1, 101)]
    return coco_folder(root, 100, rows)


def test_a_missing_val_split_is_held_out_reproducibly_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = hundred(tmp_path / "a")
    with caplog.at_level(logging.WARNING):
        train = load_datasets([folder], "train", make_val=True)
    assert "no val split: 16 of its 100 pictures held out as val" in caplog.text
    val = load_datasets([folder], "val", make_val=True)
    parts = [{record.path.name for record in data.records} for data in (train, val)]
    assert len(parts[0]) == 84, "15, and one of the rare class that was not among them"
    assert not parts[0] & parts[1]
    assert len(load_datasets([folder], "train")) == 100, "only on request"
    assert train.class_counts().min() >= 1, "a class keeps something to learn from"

    content = json.loads((folder / "train.json").read_text())
    content["images"].reverse()
    (folder / "train.json").write_text(json.dumps(content))
    again = load_datasets([folder], "val", make_val=True)
    assert {record.path.name for record in again.records} == parts[1], "whatever the order of the file"


def test_each_class_gets_into_the_held_out_part_and_copies_stay_together() -> None:
    images = [{"id": n, "file_name": f"p{n // 4}_jpg.rf.{n:032x}.jpg"} for n in range(80)]
    rows = [{"image_id": n, "category_id": n // 40} for n in range(80)]
    keys = layouts.held_out(images, rows)
    assert {n // 40 for n in keys} == {0, 1}
    assert all({4 * (n // 4) + k for k in range(4)} <= keys for n in keys)
    assert layouts.held_out(images[:1], rows[:1]) == set()


def test_a_single_picture_is_too_few_to_hold_some_out(tmp_path: Path) -> None:
    folder = coco_folder(tmp_path / "a", 1, [annotation(1)])
    with pytest.raises(DataError, match="too few pictures to hold some out"):
        read_json(folder, "val", make_val=True)


def test_val_is_made_only_where_no_set_has_one(tmp_path: Path) -> None:
    without = hundred(tmp_path / "a")
    assert must_be_made([without], "val")
    assert not must_be_made([without], "test")
    assert not must_be_made([without, coco_folder(tmp_path / "b", 2, [annotation(1)], split="val")], "val")


def test_splits_that_label_different_classes_stop_the_run(tmp_path: Path) -> None:
    folder = coco_folder(tmp_path / "a", 2, [annotation(1)], ["cat", "dog"])
    coco_folder(folder, 2, [annotation(1)], ["cat", "cow"], split="val")
    with pytest.raises(DataError, match=r"\['dog'\] only train, \['cow'\] only val.*--classes"):
        load_val([folder], "val", load_datasets([folder], "train"), all_classes=True, make_val=False)
    cats = load_datasets([folder], "train", classes=["cat"])
    chosen = load_val([folder], "val", cats, all_classes=False, make_val=False)
    assert chosen is not None
    assert chosen.class_names == ("cat",)


def test_valid_json_is_val_and_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = coco_folder(tmp_path / "a", 3, [annotation(1)])
    coco_folder(folder, 2, [annotation(1)], split="valid")
    train = load_datasets([folder], "train")
    for name in ("val", "valid", "validation"):
        assert not must_be_made([folder], name)
        val = load_val([folder], name, train, all_classes=True, make_val=False)
        assert val is not None
        assert len(val) == 2
    with pytest.raises(DataError, match="no data set has the split 'vall' to evaluate on; there are: train, val"):
        load_val([folder], "vall", train, all_classes=True, make_val=False)
    assert must_be_made([coco_folder(tmp_path / "b", 3, [annotation(1)])], "valid")


def test_pictures_of_one_name_in_several_folders_are_no_copies() -> None:
    names = [f"{folder}/{n}.jpg" for folder in "abcd" for n in range(10)]
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    keys = layouts.held_out(images, [])
    assert len(keys) == 6
    moved = [{"id": i, "file_name": f"/data/set/{name}"} for i, name in enumerate(names)]
    assert layouts.held_out(moved, []) == keys


def test_a_set_without_a_label_teaches_nothing(tmp_path: Path) -> None:
    data = load_datasets([coco_folder(tmp_path / "a", 2, [])], "train")
    with pytest.raises(DataError, match="not one object of cat, dog is labelled in 2 pictures"):
        require_objects(data)
    assert "split-unlabelled" in validate(tmp_path / "a").findings.counts
