"""Reading one split of a data set: what is usable becomes records, what is not is reported and left out."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from centermask import _image_file, ops
from centermask.training.coco_masks import BadMask, Bitmap, extent, read_rings, read_rle, ring_area
from centermask.training.layouts import (
    DataError,
    Split,
    find_split,
    find_splits,
    held_out,
    part_of,
    read_document,
    split_name,
)
from centermask.training.yolo import scaled
from centermask.wording import counted

EXIF_ORIENTATION = 0x0112
TRANSPOSED = (5, 6, 7, 8)
"""The EXIF orientations that exchange width and height."""


__all__ = ["Annotation", "CocoFile", "DataError", "ImageRecord", "Problem", "has_split", "read_json", "read_records"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that was left out or mended while reading.

    Attributes:
        file: The JSON file, or the picture.
        cause: What is wrong with it.
        annotation_id: The id in the JSON file, if the trouble is with one annotation.
    """

    file: str
    cause: str
    annotation_id: object = None

    def __str__(self) -> str:
        where = self.file if self.annotation_id is None else f"{self.file}, annotation {self.annotation_id}"
        return f"{where}: {self.cause}"


@dataclass(frozen=True, slots=True)
class Annotation:
    """One labelled object in its image's frame (continuous coordinates, pixel centres at half-integers).

    Attributes:
        label: Index into the data set's class names.
        ignore: A region that teaches nothing: a crowd, or an object whose mask is missing.
        box: x, y, width, height in image pixels (COCO's order).
        area: Mask area in square image pixels.
        rings: float64 [n, 2] each; the mask is the union of their interiors. Empty where `bitmap` is given.
        bitmap: The mask of an RLE annotation.
        rle: `{"size": [H, W], "counts": bytes}` of an RLE annotation.
        source_id: The id in the JSON file.
    """

    label: int
    ignore: bool
    box: tuple[float, float, float, float]
    area: float
    rings: tuple[NDArray[np.float64], ...]
    bitmap: Bitmap | None
    rle: ops.Rle | None
    source_id: object


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One picture and what is known about it.

    Attributes:
        path: The picture's file.
        width: In pixels, in the frame of the annotations.
        height: Likewise.
        image_id: Unique over all joined sets.
        upright: True if the file's EXIF rotation is to be applied to reach the annotations' frame.
        source: Index of the data set that it came from.
        annotations: The usable ones, crowds among them.
        known_classes: bool [C]: the classes that its own set labels. The others may be there, unlabelled.
    """

    path: Path
    width: int
    height: int
    image_id: int
    upright: bool
    source: int
    annotations: tuple[Annotation, ...]
    known_classes: NDArray[np.bool_]


@dataclass
class CocoFile:
    """A checked split, whatever its layout: the three lists of COCO, and the names of its categories.

    Attributes:
        split: Where it lies.
        images: The rows.
        annotations: The rows.
        categories: Category id -> name, in the file's order.
        problems: What was found wrong so far.
        note: What was done about a val split that is not there.
    """

    split: Split
    images: list[Any]
    annotations: list[Any]
    categories: dict[int, str]
    problems: list[Problem] = field(default_factory=list)
    note: str | None = None

    @property
    def path(self) -> Path:
        """The JSON file, or `data.yaml`."""
        return self.split.path

    @property
    def folder(self) -> Path:
        """The data set's folder."""
        return self.split.folder


def has_split(folder: Path, split: str) -> bool:
    """Whether a data set comes with this split.

    Raises:
        DataError: There is no such folder.
    """
    splits = find_splits(folder)
    return split_name(splits, split) in splits


def read_json(folder: Path, split: str, *, make_val: bool = False) -> CocoFile:
    """Reads one split of a data set in any of the layouts that `layouts.find_splits` knows, and checks its form.

    Args:
        folder: The data set.
        split: `train`, `val`, ..., or the name of a JSON file.
        make_val: Where there is no `val`, a part of `train` stands in for it (see `layouts.held_out`), and `train` is
            the rest.

    Raises:
        DataError: No such folder or file, not JSON, or not of COCO's form; the message says which.
    """
    splits = find_splits(folder)
    split = split_name(splits, split)
    made = make_val and split in ("train", "val") and "val" not in splits and "train" in splits
    source = find_split(folder, "train" if made else split)
    content = read_document(source)
    path = source.path
    note = None
    if made:
        keys = held_out(content["images"], content["annotations"])
        if not keys:
            raise DataError(f"{path}: it has no val split, and too few pictures to hold some out")
        whole = counted(len(content["images"]), "picture")
        note = f"{path}: no val split: {len(keys)} of its {whole} held out as val"
        content = part_of(content, keys, inside=split == "val")
    file = CocoFile(source, content["images"], content["annotations"], {}, note=note)
    for row in content["categories"]:
        if not isinstance(row, dict) or not isinstance(row.get("id"), int):
            raise DataError(f"{path}: not COCO: a category needs an integer id, got {row!r:.80}")
        name = row.get("name")
        if not isinstance(name, str) or not name.strip():
            name = f"category {row['id']}"
            file.problems.append(Problem(str(path), f"category {row['id']} has no name; called {name!r}"))
        if row["id"] in file.categories:
            raise DataError(f"{path}: category id {row['id']} is given twice")
        if name.strip() in file.categories.values():
            file.problems.append(Problem(str(path), f"category {name!r} is given twice; taken as one"))
        file.categories[row["id"]] = name.strip()
    if not file.categories:
        raise DataError(f"{path}: not COCO: it has no categories")
    return file


def read_records(
    file: CocoFile, labels: Mapping[str, int], class_count: int, source: int, first_id: int | None
) -> list[ImageRecord]:
    """The usable pictures of a JSON file, each with its usable annotations of the wanted classes.

    Args:
        file: From `read_json`; its list of problems grows.
        labels: Class name -> label. Categories that are not in it are left out silently: they were not asked for.
        class_count: Number of classes C of the joined set.
        source: Index of the data set.
        first_id: The pictures are numbered from here; None keeps the file's ids, if they are integers.

    Returns:
        In the order of the file.
    """
    known = np.zeros(class_count, dtype=np.bool_)
    for name in file.categories.values():
        if name in labels:
            known[labels[name]] = True
    known.flags.writeable = False

    images = _check_images(file)
    by_image: dict[object, list[Annotation]] = {key: [] for key in images}
    all_images = {_key(row.get("id")) for row in file.images if isinstance(row, dict)}
    for row in file.annotations:
        if not isinstance(row, dict):
            file.problems.append(Problem(str(file.path), f"an annotation is no object: {row!r:.80}"))
            continue
        key = _key(row.get("image_id"))
        if key not in images:
            if key not in all_images:
                _annotation_problem(file, row, f"image_id {row.get('image_id')!r} is no image of the file")
            continue  # the image itself was reported
        category = row.get("category_id")
        if not isinstance(category, int) or category not in file.categories:
            _annotation_problem(file, row, f"category_id {category!r} is no category of the file")
            continue
        label = labels.get(file.categories[category])
        if label is None:
            continue
        _, width, height, _ = images[key]
        annotation = _read_annotation(file, scaled(row, width, height), label, width, height)
        if annotation is not None:
            by_image[key].append(annotation)

    own_ids = first_id is None and all(isinstance(key, int) for key in images)
    return [
        ImageRecord(
            path=path,
            width=width,
            height=height,
            image_id=int(str(key)) if own_ids else (first_id or 1) + position,
            upright=upright,
            source=source,
            annotations=tuple(by_image[key]),
            known_classes=known,
        )
        for position, (key, (path, width, height, upright)) in enumerate(images.items())
    ]


def _key(value: object) -> object:
    return value if isinstance(value, (int, str)) else repr(value)


def _annotation_problem(file: CocoFile, row: Mapping[str, Any], cause: str) -> None:
    file.problems.append(Problem(str(file.path), cause, row.get("id", "without id")))


def _check_images(file: CocoFile) -> dict[object, tuple[Path, int, int, bool]]:
    """Image id -> (path, width, height, upright) of the pictures that are there and have the promised size."""
    images: dict[object, tuple[Path, int, int, bool]] = {}
    for row in file.images:
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str) or "id" not in row:
            file.problems.append(Problem(str(file.path), f"an image row needs id and file_name: {row!r:.80}"))
            continue
        key = _key(row["id"])
        if key in images:
            file.problems.append(Problem(str(file.path), f"image id {row['id']!r} is given twice; the first is kept"))
            continue
        try:
            path = file.split.picture(row["file_name"])
            if not path.is_file():
                file.problems.append(Problem(str(path), "no such picture"))
                continue
        except OSError as error:  # a name that is too long, a folder that may not be entered
            path = file.split.places[-1] / row["file_name"]
            file.problems.append(Problem(str(path), f"cannot be opened: {error.strerror}"))
            continue
        try:
            raw_width, raw_height, orientation = _picture_size(path)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            cause = "the file is empty" if os.path.getsize(path) == 0 else f"not a readable picture: {error}"
            file.problems.append(Problem(str(path), cause))
            continue
        raw = (raw_width, raw_height)
        turned = (raw_height, raw_width) if orientation in TRANSPOSED else raw
        stated = (row.get("width", turned[0]), row.get("height", turned[1]))
        # Labelling tools show the upright picture, so that frame is tried first.
        if stated == turned:
            upright = True
        elif stated == raw:
            upright = False
        else:
            cause = f"the JSON says {stated[0]}x{stated[1]}, the picture is {raw_width}x{raw_height}"
            file.problems.append(Problem(str(path), cause))
            continue
        images[key] = (path, int(stated[0]), int(stated[1]), upright)
    return images


def _picture_size(path: Path) -> tuple[int, int, int]:
    """Width, height and EXIF orientation from the header alone."""
    with Image.open(path) as picture:
        width, height = picture.size
        if picture.format in ("PNG", "WEBP"):
            # PIL would decode the whole picture in search of it.
            return width, height, _image_file.orientation(path.read_bytes())
        return width, height, int(picture.getexif().get(EXIF_ORIENTATION, 1))


def _read_annotation(file: CocoFile, row: Mapping[str, Any], label: int, width: int, height: int) -> Annotation | None:
    box = _read_box(row.get("bbox"))
    crowd = bool(row.get("iscrowd", 0))
    rings: tuple[NDArray[np.float64], ...] = ()
    bitmap: Bitmap | None = None
    rle: ops.Rle | None = None
    area = 0.0
    segmentation = row.get("segmentation")
    try:
        if isinstance(segmentation, dict):
            rle, bitmap, area = read_rle(segmentation, width, height)
        else:
            rings = read_rings(segmentation)
            area = float(sum(ring_area(ring) for ring in rings))
        mask_box = extent(rings, bitmap)
    except BadMask as bad:
        if box is None or not _touches(box, width, height):
            _annotation_problem(file, row, f"{bad}; left out")
            return None
        # An object that is there must not be taught as background.
        _annotation_problem(file, row, f"{bad}; its box becomes an ignore region")
        x, y, w, h = box
        ring = np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]], dtype=np.float64)
        return Annotation(label, True, box, w * h, (ring,), None, None, row.get("id"))
    if not _touches(mask_box, width, height):
        _annotation_problem(file, row, f"its mask lies outside the {width}x{height} picture; left out")
        return None
    if box is None or not _touches(box, width, height):
        if "bbox" in row:
            _annotation_problem(file, row, f"its box {row['bbox']!r:.60} is not usable; taken from the mask")
        box = mask_box
    stated = row.get("area")
    if _is_number(stated) and stated > 0:
        area = float(stated)
    return Annotation(label, crowd, box, area, rings, bitmap, rle, row.get("id"))


def _read_box(value: object) -> tuple[float, float, float, float] | None:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 4:
        return None
    if not all(map(_is_number, value)):
        return None
    x, y, w, h = (float(v) for v in value)
    return (x, y, w, h) if w > 0 and h > 0 else None


def _is_number(value: object) -> TypeGuard[int | float]:
    # An integer of JSON may have any number of digits; isfinite() fails on those that no float holds.
    return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max


def _touches(box: tuple[float, float, float, float], width: int, height: int) -> bool:
    x, y, w, h = box
    return x < width and y < height and x + w > 0 and y + h > 0
