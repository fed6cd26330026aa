"""What can be wrong with a data set: every kind has a severity and a sentence, every finding a file and an id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Severity = Literal["error", "warning", "note"]

KEPT_OF_A_KIND = 10_000
"""Findings of one kind that are kept; all are counted."""


class Kind(NamedTuple):
    """A defect."""

    severity: Severity
    text: str


KINDS: dict[str, Kind] = {
    # The set.
    "split-unreadable": Kind("error", "a split cannot be read"),
    "split-empty": Kind("error", "a split without a usable picture"),
    "split-unlabelled": Kind("error", "a split without a single object"),
    "split-missing": Kind("warning", "a split is not there"),
    "classes-differ": Kind("error", "splits label different classes"),
    "category-broken": Kind("error", "a category without an integer id, or an id given twice"),
    "category-unnamed": Kind("warning", "a category without a name"),
    "category-name": Kind("warning", "a category name given twice; taken as one class"),
    "category-unused": Kind("warning", "a category that no annotation uses"),
    "category-gaps": Kind("note", "category ids with gaps; harmless here, some tools need 1, 2, ..."),
    "class-balance": Kind("warning", "a class with few objects"),
    # Pictures.
    "image-row": Kind("error", "an image row without id or file name"),
    "image-id": Kind("error", "an image id given twice; the first is kept"),
    "image-listed-twice": Kind("warning", "a picture listed under two ids"),
    "image-missing": Kind("error", "the picture is not there"),
    "image-unreadable": Kind("error", "the picture cannot be read"),
    "image-size": Kind("error", "the picture has another size than the labels say"),
    "image-exif": Kind("warning", "the picture is stored turned (EXIF); not every tool turns it back"),
    "label-alone": Kind("warning", "a label file without its picture"),
    "image-empty": Kind("note", "a picture without annotations; it teaches what is no object"),
    "exact-duplicate": Kind("warning", "the same file twice in one split"),
    "exact-duplicate-across": Kind("error", "the same file in two splits: figures on it mean nothing"),
    "near-duplicate": Kind("warning", "nearly the same picture twice in one split"),
    "near-duplicate-across": Kind("warning", "nearly the same picture in two splits: figures on it are too good"),
    # Annotations.
    "annotation-row": Kind("error", "an annotation that is no object"),
    "annotation-id": Kind("warning", "an annotation id given twice"),
    "annotation-image": Kind("error", "an annotation of a picture that is not listed"),
    "annotation-category": Kind("error", "an annotation of a category that is not listed"),
    "annotation-duplicate": Kind("warning", "the same object annotated twice"),
    "mask-missing": Kind("error", "an annotation without a mask; training ignores its region"),
    "mask-broken": Kind("error", "a mask that cannot be read; training ignores its region"),
    "mask-outside": Kind("error", "a mask outside the picture; training leaves it out"),
    "mask-partly-outside": Kind("warning", "a mask that reaches out of the picture; training cuts it"),
    "polygon-degenerate": Kind("warning", "one of several polygons has fewer than 3 points or no area; it is dropped"),
    "polygon-crossing": Kind("warning", "a polygon that crosses itself"),
    "box-broken": Kind("error", "a box that is none: not 4 finite numbers, or without area"),
    "box-mask": Kind("warning", "a box that does not fit its mask"),
    "object-tiny": Kind("warning", "an object of less than 4 square pixels"),
    # CenterNet's own limits.
    "stride-small": Kind("warning", "many objects are smaller than one cell of the heatmap"),
    "stride-collisions": Kind("warning", "many objects share a heatmap cell with another of their class"),
}


class Finding(NamedTuple):
    """One defect in one place.

    Attributes:
        kind: A key of `KINDS`.
        split: Name of the split; empty if it is about the whole set.
        file: The picture, the label file or the JSON file.
        annotation_id: The id in the file, where it is about one annotation.
        detail: What exactly.
    """

    kind: str
    split: str
    file: str
    annotation_id: Any
    detail: str

    def __str__(self) -> str:
        where = self.file if self.annotation_id is None else f"{self.file}, annotation {self.annotation_id}"
        return f"{where}: {self.detail}"


@dataclass
class Findings:
    """All findings, counted, and the first `KEPT_OF_A_KIND` of each kind."""

    counts: Counter[str] = field(default_factory=Counter)
    kept: dict[str, list[Finding]] = field(default_factory=dict)

    def add(self, kind: str, split: str, file: Any, detail: str, annotation_id: Any = None) -> None:
        """Notes one."""
        self.counts[kind] += 1
        rows = self.kept.setdefault(kind, [])
        if len(rows) < KEPT_OF_A_KIND:
            if not isinstance(annotation_id, (int, str, type(None))):
                annotation_id = repr(annotation_id)
            rows.append(Finding(kind, split, str(file), annotation_id, detail))

    def of(self, severity: Severity) -> int:
        """How many there are of a severity."""
        return sum(count for kind, count in self.counts.items() if KINDS[kind].severity == severity)

    def kinds(self) -> Iterator[str]:
        """The kinds that occur, errors first, in the order of `KINDS`."""
        for severity in ("error", "warning", "note"):
            yield from (kind for kind in KINDS if self.counts[kind] and KINDS[kind].severity == severity)
