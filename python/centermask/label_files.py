"""What `centermask predict` finds, as labels: COCO JSON, or a YOLO-seg data set."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from centermask import __version__
from centermask.files import make_room, write_atomically, write_image
from centermask.instances import Instances
from centermask.metadata import ModelInfo

CRUMB = 0.01
"""A part of a mask smaller than this share of its largest part is no work for the one who corrects labels."""


@dataclass(frozen=True)
class Frame:
    """One frame of a video.

    Attributes:
        number: Counted from 0.
        image: uint8 BGR [h, w, 3].
    """

    number: int
    image: NDArray[np.uint8]


def common_folder(files: Sequence[Path]) -> Path:
    """The innermost folder that holds all of the files, absolute."""
    return Path(os.path.commonpath([os.path.abspath(file.parent) for file in files]))


class CocoSink:
    """Collects results and writes one COCO file: images, categories, and annotations with `score`.

    Args:
        path: The file.
        info: Of the model.
        polygons: Masks as polygons, the form that COCO documents for single objects and the only one that every
            labelling tool can edit. Holes are filled, crumbs dropped, boxes those of the masks; without it masks are
            exact run lengths, and boxes the model's own.
        base: Folder that `file_name` is relative to, which is how labelling tools find the pictures; None writes the
            names as they are given.
    """

    def __init__(self, path: Path, info: ModelInfo, *, polygons: bool = False, base: Path | None = None) -> None:
        self.path = path
        self._polygons = polygons
        self._base = base
        make_room(path)
        self._kept = 0, 0
        self._document: dict[str, Any] = {
            "info": {"description": f"predicted by centermask {__version__} with {info.name}"},
            "licenses": [],
            "images": [],
            "categories": [
                {"id": id_, "name": name} for id_, name in zip(info.category_ids, info.class_names, strict=True)
            ],
            "annotations": [],
        }

    def add(self, name: str, result: Instances, source: Path | Frame | None = None) -> None:
        """Adds the instances of one picture, or of one frame of a video (then named `name#000012`)."""
        name = _below(self._base, name).as_posix() if self._base else name
        name = f"{name}#{source.number:06d}" if isinstance(source, Frame) else name
        images, annotations = self._document["images"], self._document["annotations"]
        height, width = result.image_size
        images.append({"id": len(images) + 1, "file_name": name, "width": width, "height": height})
        if result.masks is None:
            areas = (result.boxes[:, 2:] - result.boxes[:, :2]).prod(axis=1).tolist()
        else:
            areas = result.masks.areas.tolist()
        for i, (annotation, area) in enumerate(zip(result.to_coco(len(images)), areas, strict=True)):
            if self._polygons:
                annotation["segmentation"] = rings = _outer_rings(result, i)
                if rings:  # around the mask, as in labels by hand; FiftyOne cuts off what lies outside
                    annotation["bbox"] = _extent(rings)
            annotations.append({"id": len(annotations) + 1, **annotation, "area": area, "iscrowd": 0})

    def settle(self, done: bool) -> None:
        """Ends a picture or video: keeps what was added for it, or takes it back if it failed."""
        images, annotations = self._document["images"], self._document["annotations"]
        if not done:
            del images[self._kept[0] :], annotations[self._kept[1] :]
        self._kept = len(images), len(annotations)

    def close(self) -> list[Path]:
        """Writes the file; returns what was written."""
        write_atomically(self.path, json.dumps(self._document).encode())
        return [self.path]


class YoloSink:
    """Writes a YOLO-seg data set: `labels/<stem>.txt`, a line for each instance (`class x y x y ...`, fractions 0..1).

    The stem is that of the picture, since YOLO finds labels by it; a frame of a video is `<stem>_000012`, and a second
    picture of the same stem in one run `<stem>_2`. The picture itself is linked to from `images/` (copied where the
    file system has no links), a frame is written there, so that `data.yaml` describes a whole data set.
    The format has one ring for each line: of a mask in several parts the largest is written, holes are not.

    Args:
        folder: The data set's.
        info: Of the model.
        base: Folder whose inner folders are kept below `labels/` and `images/`; None keeps none.
    """

    def __init__(self, folder: Path, info: ModelInfo, *, base: Path | None = None) -> None:
        self.folder = folder
        self._info = info
        self._base = base
        self._taken: set[Path] = set()
        self._pending: list[tuple[Path, str, Path, bool]] = []  # labels, their text, picture, whether it is a frame's
        for part in ("labels", "images"):
            (folder / part).mkdir(parents=True, exist_ok=True)

    def add(self, name: str, result: Instances, source: Path | Frame) -> None:
        """Adds the labels of one picture (its file), or of one frame of a video."""
        height, width = result.image_size
        lines = []
        for i, label in enumerate(result.labels.tolist()):
            ring = _largest_ring(result, i)
            if ring is not None:
                numbers = " ".join(f"{value:.6f}" for value in (ring / (width, height)).clip(0, 1).ravel())
                lines.append(f"{label} {numbers}\n")
        path = _below(self._base, name) if self._base else Path(Path(name).name)
        if isinstance(source, Frame):
            path = path.with_name(f"{path.stem}_{source.number:06d}{path.suffix}")
        labels = free_path(self.folder / "labels" / path.with_suffix(".txt"), self._taken)
        picture, is_frame = source, isinstance(source, Frame)
        if isinstance(source, Frame):  # at once: the frames of a video do not fit into memory
            picture = self.folder / "images" / f".{len(self._pending)}.part.jpg"
            write_image(picture, source.image)
        assert isinstance(picture, Path)
        self._pending.append((labels, "".join(lines), picture, is_frame))

    def settle(self, done: bool) -> None:
        """Ends a picture or video: writes what was added for it, or drops it if it failed."""
        pending, self._pending = self._pending, []
        for labels, text, picture, is_frame in pending:
            if not done:
                if is_frame:
                    picture.unlink()
                continue
            beside = self.folder / "images" / labels.relative_to(self.folder / "labels")
            for path in (labels, beside):
                path.parent.mkdir(parents=True, exist_ok=True)
            if is_frame:
                picture.replace(beside.with_suffix(".jpg"))
            else:
                _link(beside.with_suffix(picture.suffix), picture)
            write_atomically(labels, text.encode())

    def close(self) -> list[Path]:
        """Writes `data.yaml` with the class names; returns what was written."""
        names = "".join(f"  {i}: {json.dumps(name)}\n" for i, name in enumerate(self._info.class_names))
        write_atomically(self.folder / "data.yaml", f"path: .\ntrain: images\nnames:\n{names}".encode())
        return [self.folder / "labels", self.folder / "data.yaml"]


def _outer_rings(result: Instances, i: int) -> list[list[float]]:
    """The outlines of a mask without its holes and crumbs, flat; of an instance without mask, its box."""
    if result.masks is None:
        x0, y0, x1, y1 = result.boxes[i].tolist()
        return [[x0, y0, x1, y0, x1, y1, x0, y1]]
    # Outer rings run clockwise as seen: their signed area is positive.
    rings = result.masks[i].polygons()[0]
    areas = [cv2.contourArea(np.asarray(ring, np.float32), oriented=True) for ring in rings]
    least = CRUMB * max(areas, default=0.0)
    outer = [ring for ring, area in zip(rings, areas, strict=True) if area > 0 and area >= least]
    return [np.asarray(ring, np.float64).ravel().tolist() for ring in outer]


def _extent(rings: list[list[float]]) -> list[float]:
    """COCO's box (x, y, width, height) around flat rings."""
    xs, ys = ([value for ring in rings for value in ring[axis::2]] for axis in (0, 1))
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _largest_ring(result: Instances, i: int) -> NDArray[Any] | None:
    if result.masks is None:
        x0, y0, x1, y1 = result.boxes[i].tolist()
        return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    rings = result.masks[i].polygons()[0]
    return max(rings, key=lambda ring: abs(cv2.contourArea(np.asarray(ring, np.float32))), default=None)


def free_path(path: Path, taken: set[Path]) -> Path:
    """`path`, or a numbered one beside it if an input or an earlier output of this run has that name."""
    candidate, number = path, 1
    while candidate.resolve() in taken:
        number += 1
        candidate = path.with_stem(f"{path.stem}_{number}")
    taken.add(candidate.resolve())
    return candidate


def _below(base: Path, name: str) -> Path:
    """A file's name as seen from a folder that holds it; of one elsewhere the last part."""
    path = Path(os.path.abspath(name))
    return path.relative_to(base) if path.is_relative_to(base) else Path(path.name)


def _link(place: Path, picture: Path) -> None:
    """Makes `place` a link to a picture, or a copy of it.

    Raises:
        FileExistsError: Another file, which is no link, is there.
    """
    target = picture.resolve()
    if place.exists() and place.samefile(target):
        return  # the pictures of a YOLO data set itself, or links that an earlier run made
    if place.is_symlink():
        place.unlink()
    elif place.exists():
        if filecmp.cmp(place, target):
            return  # a copy that an earlier run made
        raise FileExistsError(f"{place}: is there already and is not {picture}: choose another folder with --out")
    try:
        place.symlink_to(target)
    except OSError:  # some file systems have no links
        shutil.copy2(target, place)
