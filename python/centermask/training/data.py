"""Data sets for training and evaluation: folders in any of the known layouts, joined by class name."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from centermask.preprocess import load_image
from centermask.training.coco_reader import (
    Annotation,
    CocoFile,
    DataError,
    ImageRecord,
    Problem,
    read_json,
    read_records,
)
from centermask.wording import counted

__all__ = [
    "Annotation",
    "CocoDataset",
    "DataError",
    "ImageRecord",
    "Problem",
    "free_memory",
    "load_datasets",
    "repeat_factors",
    "require_objects",
]

_log = logging.getLogger("centermask.training.data")
_PROBLEMS_SHOWN = 10
OPENCV_SIDE = 32766
"""Longest side that `cv2.warpAffine` takes."""


@dataclass
class CocoDataset:
    """Pictures with their annotations, from one folder or several.

    Attributes:
        records: One for each usable picture; those without annotations are negatives.
        class_names: In the order of the labels.
        category_ids: The id of each class in `ground_truth`: the data set's own, if these are distinct over all
            joined sets, else 1, 2, ...
        sources: Name of each joined data set (its folder's name).
        problems: Everything that was left out or mended.
        cache: Bytes of decoded pictures to keep in memory; 0 keeps none. Worker processes that are started after
            `fill_cache` share it.
        max_side: Pictures with a longer side are shrunk to it (area average) when decoded; None keeps them whole.
    """

    records: list[ImageRecord]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    sources: tuple[str, ...]
    problems: tuple[Problem, ...] = ()
    cache: int = 0
    max_side: int | None = None
    _images: dict[int, NDArray[np.uint8]] = field(default_factory=dict, repr=False)
    _cached: int = 0

    def __len__(self) -> int:
        return len(self.records)

    def image(self, index: int) -> NDArray[np.uint8]:
        """The decoded picture, uint8 [h, w, 3], RGB, in the frame of its annotations but for `max_side`.

        Raises:
            DataError: The file cannot be decoded, or its size is no longer that of the record.
        """
        if index in self._images:
            return self._images[index]
        image = read_image(self.records[index])
        limit = min(self.max_side or OPENCV_SIDE, OPENCV_SIDE)
        if max(image.shape[:2]) > limit:
            factor = limit / max(image.shape[:2])
            size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
            image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        if self._cached + image.nbytes <= self.cache:
            image.flags.writeable = False
            self._images[index] = image
            self._cached += image.nbytes
        return image

    def fill_cache(self) -> int:
        """Decodes pictures until the cache is full. Returns its bytes; pictures that fail are skipped here."""
        for index in range(len(self)):
            before = self._cached
            try:
                self.image(index)
            except DataError as error:
                _log.warning("%s", error)
                continue
            if self._cached == before and index not in self._images:
                break
        return self._cached

    def class_counts(self) -> NDArray[np.int64]:
        """Instances of each class, int64 [C]; ignore regions do not count."""
        labels = [a.label for record in self.records for a in record.annotations if not a.ignore]
        return np.bincount(np.array(labels, dtype=np.int64), minlength=len(self.class_names))

    def ground_truth(self) -> dict[str, Any]:
        """The data set as a COCO dictionary for pycocotools.

        Image ids are `ImageRecord.image_id`; annotations are numbered from 1 (pycocotools takes a match with
        annotation 0 for none); masks and boxes are in the frame of the annotations.
        """
        annotations: list[dict[str, Any]] = []
        for record in self.records:
            for item in record.annotations:
                segmentation: Any = [ring.ravel().tolist() for ring in item.rings]
                if item.rle is not None:
                    segmentation = {"size": list(item.rle["size"]), "counts": item.rle["counts"].decode()}
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": record.image_id,
                        "category_id": self.category_ids[item.label],
                        "bbox": list(item.box),
                        "area": item.area,
                        "iscrowd": int(item.ignore),
                        "segmentation": segmentation,
                    }
                )
        return {
            "info": {},
            "images": [
                {"id": r.image_id, "file_name": str(r.path), "width": r.width, "height": r.height} for r in self.records
            ],
            "annotations": annotations,
            "categories": [
                {"id": key, "name": name} for key, name in zip(self.category_ids, self.class_names, strict=True)
            ],
        }


def load_datasets(
    paths: Sequence[Path],
    split: str,
    *,
    classes: Sequence[str] | None = None,
    cache: bool | int = False,
    max_side: int | None = None,
    make_val: bool = False,
) -> CocoDataset:
    """Reads one split of each path and joins them by class name.

    A picture that occurs in several of the sets occurs as often in the result, each time with its own set's
    annotations and known classes. What cannot be used is left out, listed in `problems` and logged once.

    Args:
        paths: Data sets, each in any of the layouts of `layouts.find_splits`.
        split: `train`, `val`, ..., or the name of a JSON file.
        classes: The wanted classes, in the order of the labels; None takes all, in order of first appearance.
        cache: Bytes, see `CocoDataset`; True allows half of the memory that is free now.
        max_side: See `CocoDataset`.
        make_val: See `coco_reader.read_json`.

    Raises:
        DataError: A folder or file is missing or not COCO, a wanted class is in none of the sets, or no picture is
            usable.
    """
    if not paths:
        raise DataError("load_datasets: no folder given")
    files = [read_json(Path(path), split, make_val=make_val) for path in paths]
    for note in filter(None, (file.note for file in files)):
        _log.warning("%s", note)
    known = list(dict.fromkeys(name for file in files for name in file.categories.values()))
    names = known if classes is None else list(classes)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataError(f"unknown classes {unknown}; {', '.join(str(f.path) for f in files)} know {known}")
    if not names or len(set(names)) != len(names):
        raise DataError(f"classes must be named once each, got {names}")
    labels = {name: label for label, name in enumerate(names)}

    records: list[ImageRecord] = []
    for source, file in enumerate(files):
        # The first set keeps its image ids; the pictures of the others are numbered after them.
        last_id = max((record.image_id for record in records), default=0)
        records += read_records(file, labels, len(names), source, None if source == 0 else last_id + 1)
    problems = tuple(problem for file in files for problem in file.problems)
    _report(problems)
    if not records:
        first = f"; first trouble: {problems[0]}" if problems else ": it lists no images"
        raise DataError(f"{', '.join(str(f.path) for f in files)}: no usable picture{first}")
    return CocoDataset(
        records=records,
        class_names=tuple(names),
        category_ids=_category_ids(files, names),
        sources=tuple(file.folder.resolve().name for file in files),
        problems=problems,
        cache=free_memory() // 2 if cache is True else int(cache),
        max_side=max_side,
    )


def require_objects(dataset: CocoDataset) -> None:
    """Stops a training on pictures of which none has an object: it would learn that there is nothing to see.

    Raises:
        DataError: No record has an annotation.
    """
    if not any(record.annotations for record in dataset.records):
        names, sources = ", ".join(dataset.class_names), ", ".join(dataset.sources)
        raise DataError(
            f"{sources}: not one object of {names} is labelled in {counted(len(dataset), 'picture')} of train"
        )


def free_memory() -> int:
    """Bytes that Linux could give without swapping; 4 GiB where it does not say."""
    try:
        rows = Path("/proc/meminfo").read_text().splitlines()
        return next(int(row.split()[1]) * 1024 for row in rows if row.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 4 << 30


def _category_ids(files: Sequence[CocoFile], names: Sequence[str]) -> tuple[int, ...]:
    ids: dict[str, int] = {}
    for file in files:
        for key, name in file.categories.items():
            ids.setdefault(name, key)
    own = tuple(ids[name] for name in names)
    return own if len(set(own)) == len(own) else tuple(range(1, len(names) + 1))


def _report(problems: Sequence[Problem]) -> None:
    if not problems:
        return
    lines = [str(problem) for problem in problems[:_PROBLEMS_SHOWN]]
    if len(problems) > _PROBLEMS_SHOWN:
        files = Counter(problem.file for problem in problems[_PROBLEMS_SHOWN:])
        lines.append(f"... and {len(problems) - _PROBLEMS_SHOWN} more in {counted(len(files), 'file')}")
    _log.warning("not usable as it is: %s of the data:\n  %s", counted(len(problems), "item"), "\n  ".join(lines))


def read_image(record: ImageRecord) -> NDArray[np.uint8]:
    """Decodes a record's picture to uint8 [height, width, 3], RGB.

    Raises:
        DataError: It cannot be read or decoded, or has another size than the record says.
    """
    try:
        if record.upright:
            image = load_image(record.path)
        else:
            raw = cv2.imread(str(record.path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
            if raw is None:
                raise DataError(f"{record.path}: cannot be decoded")
            image = np.asarray(raw, dtype=np.uint8)
    except (OSError, ValueError) as error:
        raise error if isinstance(error, DataError) else DataError(str(error)) from error
    if image.shape[:2] != (record.height, record.width):
        raise DataError(
            f"{record.path}: expected {record.width}x{record.height} pixels, got {image.shape[1]}x{image.shape[0]}"
        )
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def repeat_factors(dataset: CocoDataset, threshold: float) -> NDArray[np.float64]:
    """How often each picture is to be shown in an epoch, so that rare classes are not drowned.

    Repeat factor sampling of LVIS (Gupta et al. 2019, section 4.1): for a class in a share f of the pictures
    r = max(1, sqrt(threshold / f)); a picture takes the largest r of its classes.

    Args:
        dataset: The training set.
        threshold: The share below which a class is repeated; 0 gives 1 everywhere.

    Returns:
        float64 [N], at least 1.
    """
    present = [{a.label for a in record.annotations if not a.ignore} for record in dataset.records]
    pictures = np.zeros(len(dataset.class_names))
    for labels in present:
        for label in labels:
            pictures[label] += 1
    share = np.maximum(pictures, 1) / max(len(dataset), 1)
    factor = np.maximum(1.0, np.sqrt(threshold / share))
    return np.array([max((factor[label] for label in labels), default=1.0) for labels in present], dtype=np.float64)
