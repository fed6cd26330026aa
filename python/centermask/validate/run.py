"""Validating a data set: pictures stream through a pool of threads, annotations are read picture by picture."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from centermask.training import yolo
from centermask.training.layouts import DataError, Split, find_splits
from centermask.validate.categories import check_categories
from centermask.validate.duplicates import exact_groups, near_groups
from centermask.validate.findings import Findings
from centermask.validate.masks import Checked, check
from centermask.validate.pictures import THUMBNAIL, TRANSPOSED, Picture, read_picture
from centermask.validate.report import Gallery, Report, SplitReport
from centermask.validate.sizes import SizeTally
from centermask.validate.stream import ImageRow, Index
from centermask.wording import counted

Progress = Callable[[str, int, int], None]
"""Called with (split, pictures done, pictures)."""

_IN_FLIGHT = 32
_SAME_BOX = 0.5
"""Pixels: boxes of one class that agree to this are one object annotated twice."""
_STRIDE_SHARE = 0.05
_FEW = 10


def validate(data: Path, *, size: int = 512, threads: int | None = None, progress: Progress | None = None) -> Report:
    """Looks at every picture and annotation of all splits.

    Args:
        data: A data set in any layout of `training.layouts`.
        size: Longest side of the network's input, for what is said about small objects.
        threads: That decode pictures; None for one each core.
        progress: See `Progress`.

    Raises:
        DataError: There is no such folder, or no split in it.
    """
    start = time.perf_counter()
    splits = find_splits(data)
    if not splits:
        raise DataError(
            f"{data}: no data set: neither train.json, annotations/instances_*.json, */_annotations.coco.json nor "
            "data.yaml is there"
        )
    report = Report(data=str(data), layout=next(iter(splits.values())).layout, size=size)
    seen = Fingerprints()
    with ThreadPoolExecutor(threads) as pool:
        for split in sorted(splits.values(), key=lambda split: ("train", "val").index(split.name)
                            if split.name in ("train", "val") else 2):  # fmt: skip
            try:
                with Index(split) as index:
                    report.splits[split.name] = _SplitRun(split, index, report, seen, pool, progress).run()
            except (DataError, ValueError) as error:
                report.findings.add("split-unreadable", split.name, split.path, str(error))
    _check_splits(report, data)
    seen.report(report)
    report.seconds = time.perf_counter() - start
    return report


class Fingerprints:
    """What is kept of every picture to find it again: 300 bytes each."""

    def __init__(self) -> None:
        self.places: list[tuple[str, Path]] = []
        self.digests: list[bytes] = []
        self.hashes: list[int] = []
        self.thumbnails: list[NDArray[np.uint8]] = []

    def add(self, split: str, path: Path, picture: Picture) -> None:
        """Remembers a readable picture."""
        assert picture.thumbnail is not None
        self.places.append((split, path))
        self.digests.append(picture.digest)
        self.hashes.append(picture.hash)
        self.thumbnails.append(picture.thumbnail)

    def report(self, report: Report) -> None:
        """Finds exact copies, and then what looks the same among one of each."""
        copies = exact_groups(self.digests)
        for group in copies:
            self._name(report, group, "exact-duplicate", "the same file as")
        repeated = {position for group in copies for position in group[1:]}
        single = np.array([i for i in range(len(self.places)) if i not in repeated], np.int64)
        if not len(single):
            return
        hashes = np.array(self.hashes, np.uint64)[single]
        thumbnails = np.stack([self.thumbnails[i] for i in single.tolist()]).reshape(-1, THUMBNAIL, THUMBNAIL)
        for group in near_groups(hashes, thumbnails):
            self._name(report, single[group].tolist(), "near-duplicate", "looks like")

    def _name(self, report: Report, group: list[int], kind: str, words: str) -> None:
        first_split, first = self.places[group[0]]
        for position in group[1:]:
            split, path = self.places[position]
            across = split != first_split
            where = f"{first} of {first_split}" if across else str(first)
            report.findings.add(kind + ("-across" if across else ""), split, path, f"{words} {where}")
            report.gallery.add_pair(kind, first, path)


class _SplitRun:
    def __init__(
        self,
        split: Split,
        index: Index,
        report: Report,
        seen: Fingerprints,
        pool: ThreadPoolExecutor,
        progress: Progress | None,
    ) -> None:
        self.split, self.index, self.report, self.seen = split, index, report, seen
        self.pool, self.progress = pool, progress
        self.findings: Findings = report.findings
        self.gallery: Gallery = report.gallery
        self.names = check_categories(index.categories, split, self.findings)
        self.labels = {name: label for label, name in enumerate(dict.fromkeys(self.names.values()))}
        self.objects = dict.fromkeys(self.labels, 0)
        self.pictures = dict.fromkeys(self.labels, 0)
        self.used: set[int] = set()
        self.tally = SizeTally()
        self.usable = self.annotations = 0

    def run(self) -> SplitReport:
        name, path = self.split.name, self.split.path
        for kind, detail in self.index.bad_images:
            self.findings.add(kind, name, path, detail)
        for detail in self.index.bad_annotations:
            self.findings.add("annotation-row", name, path, f"an annotation is no object: {detail}")
        for key in self.index.repeated_ids:
            self.findings.add("annotation-id", name, path, "its id is given twice", key)
        for key, image in self.index.orphans:
            self.findings.add("annotation-image", name, path, f"image_id {image!r} is no image of the file", key)
        for label in self.index.lone_labels:
            self.findings.add("label-alone", name, label, "no picture belongs to it")
        listed: set[str] = set()
        total = len(self.index.images)
        for position, (row, file, picture) in enumerate(self._read_all()):
            if row.file_name in listed:
                self.findings.add("image-listed-twice", name, file, f"listed again as image {row.id!r}")
            listed.add(row.file_name)
            self._check_picture(position, row, file, picture)
            if self.progress is not None:
                self.progress(name, position + 1, total)
        for category, title in self.names.items():
            if category not in self.used:
                self.findings.add("category-unused", name, path, f"category {category} ({title}) has no annotation")
        for title, count in self.objects.items():
            if 0 < count < _FEW and name == "train":
                self.findings.add("class-balance", name, path, f"class {title!r} has only {counted(count, 'object')}")
        if not self.usable:
            self.findings.add("split-empty", name, path, "no picture of this split can be used")
        elif not self.annotations and name in ("train", "val"):
            self.findings.add(
                "split-unlabelled", name, path, f"{counted(self.usable, 'usable picture')}, not one object"
            )
        self._check_stride()
        return SplitReport(
            name, str(path), total, self.usable, self.annotations, self.objects, self.pictures, self.tally
        )

    def _read_all(self) -> Iterator[tuple[ImageRow, Path, Picture]]:
        """Pictures in order, a few of them being decoded ahead."""
        waiting: deque[tuple[ImageRow, Path, Future[Picture]]] = deque()
        for row in self.index.images:
            waiting.append((row, *self._submit(row)))
            if len(waiting) >= _IN_FLIGHT:
                first, file, result = waiting.popleft()
                yield first, file, result.result()
        for first, file, result in waiting:
            yield first, file, result.result()

    def _submit(self, row: ImageRow) -> tuple[Path, Future[Picture]]:
        try:
            file = self.split.picture(row.file_name)
            if not file.is_file():
                return file, _done(Picture("missing"))
        except (OSError, ValueError) as error:  # a name that is too long, or holds a zero byte
            return self.split.places[0] / row.file_name, _done(Picture(f"cannot be opened: {error}"))
        return file, self.pool.submit(read_picture, file)

    def _check_picture(self, position: int, row: ImageRow, file: Path, picture: Picture) -> None:
        name = self.split.name
        if picture.cause is not None:
            if picture.cause == "missing":
                self.findings.add("image-missing", name, file, "no such picture")
            else:
                self.findings.add("image-unreadable", name, file, picture.cause)
            return
        self.seen.add(name, file, picture)
        raw = (picture.width, picture.height)
        turned = raw[::-1] if picture.orientation in TRANSPOSED else raw
        stated = (turned[0] if row.width is None else row.width, turned[1] if row.height is None else row.height)
        if picture.orientation != 1:
            frame = "upright" if stated == turned else "as stored"
            self.findings.add("image-exif", name, file, f"EXIF orientation {picture.orientation}; labels are {frame}")
        if stated not in (turned, raw):
            detail = f"the labels say {stated[0]}x{stated[1]}, the picture is {raw[0]}x{raw[1]}"
            self.findings.add("image-size", name, file, detail)
            return
        self.usable += 1
        width, height = int(stated[0]), int(stated[1])
        rows = self.index.annotations(position)
        self.annotations += len(rows)
        if not rows:
            self.findings.add("image-empty", name, file, "it has no annotations")
        objects: list[tuple[int, Checked, Any]] = []
        for entry in rows:
            self._check_annotation(yolo.scaled(entry, width, height), file, width, height, objects)
        self._check_repeats(file, objects)
        real = [(label, checked) for label, checked, entry in objects if not entry.get("iscrowd", 0)]
        for label in {label for label, _ in real}:
            self.pictures[list(self.labels)[label]] += 1
        boxes = np.array([checked.box for _, checked in real], np.float64).reshape(-1, 4)
        self.tally.add(boxes, np.array([label for label, _ in real], np.int64), width, height)
        upright = stated == turned
        self.gallery.offer(name, file, (width, height), upright, [(label, checked) for label, checked, _ in objects])

    def _check_annotation(
        self, row: dict[str, Any], file: Path, width: int, height: int, objects: list[tuple[int, Checked, Any]]
    ) -> None:
        name, key = self.split.name, row.get("id", "without id")
        category = row.get("category_id")
        known = isinstance(category, int) and category in self.names
        if not known:
            detail = f"category_id {category!r} is no category of the file"
            self.findings.add("annotation-category", name, file, detail, key)
        checked = check(row, width, height)
        for kind, detail in checked.defects:
            self.findings.add(kind, name, file, detail, key)
            self.gallery.add_defect(kind, file, (width, height), key, row, checked)
        if known and isinstance(category, int):
            self.used.add(category)
            title = self.names[category]
            if not row.get("iscrowd", 0):
                self.objects[title] += 1
            usable = checked.box is not None and not any(kind == "mask-outside" for kind, _ in checked.defects)
            if usable:
                objects.append((self.labels[title], checked, row))

    def _check_repeats(self, file: Path, objects: list[tuple[int, Checked, Any]]) -> None:
        """Two objects of a class whose boxes and areas agree. Neighbours in x are compared alone."""
        order = sorted(objects, key=lambda item: (item[0], item[1].box or ()))
        for i, (label, checked, row) in enumerate(order):
            for other_label, other, other_row in order[i + 1 : i + 9]:
                if other_label != label or checked.box is None or other.box is None:
                    break
                apart = max(abs(a - b) for a, b in zip(checked.box, other.box, strict=True))
                if apart <= _SAME_BOX and abs(checked.area - other.area) <= 0.02 * max(checked.area, 1):
                    detail = f"the same object as annotation {row.get('id')}"
                    self.findings.add(
                        "annotation-duplicate", self.split.name, file, detail, other_row.get("id", "without id")
                    )
                    break

    def _check_stride(self) -> None:
        size, tally = self.report.size, self.tally
        nearest = min(tally.below_cell, key=lambda known: abs(known - size))
        if not tally.objects:
            return
        for kind, count, words in (
            ("stride-small", tally.below_cell[nearest], "are smaller than one cell"),
            ("stride-collisions", tally.collisions[nearest], "share a cell with another of their class"),
        ):
            if count > _STRIDE_SHARE * tally.objects:
                share = 100 * count / tally.objects
                detail = f"at input size {nearest}, {count} of {tally.objects} objects ({share:.0f} %) {words}"
                self.findings.add(kind, self.split.name, self.split.path, detail)


def _done(picture: Picture) -> Future[Picture]:
    future: Future[Picture] = Future()
    future.set_result(picture)
    return future


def _check_splits(report: Report, data: Path) -> None:
    """What shows only when the splits are put side by side."""
    for name in ("train", "val"):
        if name not in report.splits and not any(
            finding.split == name for finding in report.findings.kept.get("split-unreadable", ())
        ):
            does = (
                "training holds some of train out in its place" if name == "val" else "there is nothing to learn from"
            )
            report.findings.add("split-missing", "", data, f"no {name} split; {does}")
    train = report.splits.get("train")
    for split in report.splits.values():
        if train is None or split is train or set(split.objects) == set(train.objects):
            continue
        only_train = sorted(set(train.objects) - set(split.objects))
        only_here = sorted(set(split.objects) - set(train.objects))
        detail = (
            f"{only_train} only in train, {only_here} only in {split.name}; training stops unless --classes chooses"
        )
        report.findings.add("classes-differ", split.name, split.path, detail)
