"""A COCO file of any size, read row by row: memory follows the number of pictures, not the size of the file."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from centermask.training import layouts, yolo
from centermask.training.layouts import DataError, Split

_CHUNK = 1 << 20
_LARGEST_VALUE = 64 << 20
"""A single row is never this long; a file that seems to hold one is damaged."""

_SPACE = " \t\n\r"


class Row(NamedTuple):
    """An element of one of the file's lists: its value, and where its bytes lie."""

    key: str
    start: int
    end: int
    value: Any


class ImageRow(NamedTuple):
    """One picture as the file lists it; width and height are None where the file does not say."""

    id: Any
    file_name: str
    width: Any
    height: Any


def scan(path: Path) -> Iterator[Row]:
    """The elements of all lists at the top of a JSON object, in the order of the file.

    Raises:
        DataError: It is not JSON, or no object.
    """
    with open(path, "rb") as file:
        yield from _Scanner(path, file).rows()


class _Scanner:
    """Holds a window of the file. As latin-1 each byte is one character, so that positions are those of the file."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self.file = path, file
        self.text, self.base, self.at = "", 0, 0
        self.decode = json.JSONDecoder().raw_decode

    def rows(self) -> Iterator[Row]:
        self._more(_CHUNK)
        if self.text.startswith("\xef\xbb\xbf"):
            self.at = 3
        self._expect("{", "expected an object")
        while self._peek() != "}":
            key, _, _ = self._value()
            self._expect(":", "expected `:`")
            if self._peek() == "[":
                self.at += 1
                while self._peek() != "]":
                    value, start, end = self._value()
                    yield Row(str(key), start, end, value)
                    if self._peek() == ",":
                        self.at += 1
                    elif self._peek() != "]":
                        self._fail("expected `,` or `]`")
                self.at += 1
            else:
                value, start, end = self._value()
                if key in ("images", "annotations", "categories"):
                    raise DataError(f"{self.path}: not COCO: expected a list named {key!r}, got {type(value).__name__}")
            if self._peek() == ",":
                self.at += 1
            elif self._peek() != "}":
                self._fail("expected `,` or `}`")

    def _more(self, size: int) -> bool:
        data = self.file.read(size)
        self.text = self.text[self.at :] + data.decode("latin-1")
        self.base += self.at
        self.at = 0
        return bool(data)

    def _peek(self) -> str:
        while True:
            while self.at < len(self.text) and self.text[self.at] in _SPACE:
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more(_CHUNK):
                self._fail("the file ends too early")

    def _expect(self, sign: str, cause: str) -> None:
        if self._peek() != sign:
            self._fail(cause)
        self.at += 1

    def _value(self) -> tuple[Any, int, int]:
        self._peek()
        size = _CHUNK
        while True:
            try:
                value, end = self.decode(self.text, self.at)
                if end < len(self.text):  # a number at the very end may go on
                    break
            except (ValueError, RecursionError) as error:
                cause = str(error)
            else:
                cause = "the file ends too early"
            size *= 2
            if len(self.text) - self.at > _LARGEST_VALUE or not self._more(size):
                self._fail(cause)
        start, self.at = self.at, end
        piece = self.text[start:end]
        if not piece.isascii():
            try:
                value = json.loads(piece.encode("latin-1").decode("utf-8"))
            except UnicodeDecodeError as error:
                self._fail(str(error))
        return value, self.base + start, self.base + end

    def _fail(self, cause: str) -> Any:
        raise DataError(f"{self.path}: cannot be read as JSON: near byte {self.base + self.at}: {cause}")


class Index:
    """What a split lists, without what is in it: pictures by position, and where the annotations of each lie.

    Attributes:
        split: Where it was read from.
        images: The usable rows. The first of two with one id is kept.
        bad_images: Rows that are none (cut short), and ids that occur again: (what, detail).
        categories: The rows, whatever they are.
        orphans: (annotation id, image id) of annotations whose picture is not listed.
        bad_annotations: Annotation rows that are no objects, cut short.
        repeated_ids: Annotation ids that occur more than once.
        lone_labels: YOLO's text files that belong to no picture of the split.
    """

    def __init__(self, split: Split) -> None:
        self.split = split
        self.images: list[ImageRow] = []
        self.bad_images: list[tuple[str, str]] = []
        self.categories: list[Any] = []
        self.orphans: list[tuple[Any, Any]] = []
        self.bad_annotations: list[str] = []
        self.repeated_ids: list[Any] = []
        self.lone_labels: list[Path] = []
        self._places: NDArray[np.int64] = np.zeros((0, 2), np.int64)
        self._first: NDArray[np.int64] = np.zeros(1, np.int64)
        self._file = -1
        if split.layout == "yolo":
            self._index_yolo()
        else:
            self._index_coco()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def annotations(self, position: int) -> list[dict[str, Any]]:
        """The annotation rows of a picture, in the file's order."""
        image = self.images[position]
        if self.split.layout == "yolo":
            return yolo.read_labels(yolo.label_path(Path(image.file_name)), image.id, self.split.folder)
        if self._file < 0:
            self._file = os.open(self.split.path, os.O_RDONLY)
        rows = []
        for start, length in self._places[self._first[position] : self._first[position + 1]].tolist():
            rows.append(json.loads(os.pread(self._file, length, start)))
        return rows

    def _index_yolo(self) -> None:
        self.categories = layouts.yolo_categories(self.split)
        expected: set[Path] = set()
        for number, picture in enumerate(yolo.pictures(self.split.places), start=1):
            self.images.append(ImageRow(number, str(picture.absolute()), None, None))
            expected.add(yolo.label_path(picture))
        for folder in sorted({path.parent for path in expected}):
            # Lists of pictures share a folder, and beside pictures there are other texts: only `labels` is told.
            if "labels" in folder.parts and all(place.is_dir() for place in self.split.places):
                self.lone_labels += [path for path in sorted(folder.glob("*.txt")) if path not in expected]

    def _index_coco(self) -> None:
        try:
            rows = scan(self.split.path)
            positions: dict[Any, int] = {}
            # Annotations may stand before the images that they belong to: their image ids wait for them.
            owners: list[Any] = []
            places, ids = array("q"), array("q")
            used: set[Any] = set()
            seen = {key: False for key in ("images", "annotations", "categories")}
            for key, start, end, value in rows:
                seen[key] = True
                if key == "images":
                    self._add_image(value, positions)
                elif key == "categories":
                    self.categories.append(value)
                elif key == "annotations":
                    if not isinstance(value, dict):
                        self.bad_annotations.append(f"{value!r:.80}")
                        continue
                    owner, category, own = value.get("image_id"), value.get("category_id"), value.get("id")
                    owners.append(owner if isinstance(owner, (int, str)) else repr(owner))
                    places.extend((start, end - start))
                    ids.append(own if isinstance(own, int) and abs(own) < 1 << 62 else hash(repr(own)))
                    used.add(category if isinstance(category, int) else None)
        except OSError as error:
            raise DataError(f"{self.split.path}: cannot be read: {error}") from error
        if not seen["images"] and not self.bad_images:
            raise DataError(f"{self.split.path}: not COCO: it lists no images")
        if self.split.layout == "roboflow":
            self.categories = layouts.without_placeholder(self.categories, used)
        self._sort(owners, np.array(places, np.int64).reshape(-1, 2), np.array(ids, np.int64), positions)

    def _add_image(self, value: Any, positions: dict[Any, int]) -> None:
        if not isinstance(value, dict) or not isinstance(value.get("file_name"), str) or "id" not in value:
            self.bad_images.append(("image-row", f"an image row needs id and file_name: {value!r:.80}"))
            return
        key = value["id"] if isinstance(value["id"], (int, str)) else repr(value["id"])
        if key in positions:
            self.bad_images.append(("image-id", f"image id {key!r} is given twice; the second is {value['file_name']}"))
            return
        positions[key] = len(self.images)
        self.images.append(ImageRow(key, value["file_name"], value.get("width"), value.get("height")))

    def _sort(
        self, owners: list[Any], places: NDArray[np.int64], ids: NDArray[np.int64], positions: dict[Any, int]
    ) -> None:
        where = np.fromiter((positions.get(owner, -1) for owner in owners), np.int64, len(owners))
        order = np.argsort(where, kind="stable")
        lost = int((where < 0).sum())
        for i in order[:lost].tolist():
            self.orphans.append((self._id_at(places[i]), owners[i]))
        self._places = places[order[lost:]]
        self._first = np.searchsorted(where[order[lost:]], np.arange(len(self.images) + 1))
        values, first, counts = np.unique(ids, return_index=True, return_counts=True)
        self.repeated_ids = [self._id_at(places[i]) for i in first[counts > 1].tolist()]
        del values

    def _id_at(self, place: NDArray[np.int64]) -> Any:
        with open(self.split.path, "rb") as file:
            file.seek(int(place[0]))
            return json.loads(file.read(int(place[1]))).get("id", "without id")
