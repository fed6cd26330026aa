"""What a validation found: counts, findings, and which pictures to show."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from centermask.validate.findings import KINDS, Findings
from centermask.validate.masks import Checked
from centermask.validate.sizes import SizeTally
from centermask.wording import counted

SAMPLES = 12
DEFECTS_OF_A_KIND = 3
PAIRS_OF_A_KIND = 4
_LINES_OF_A_KIND = 5


class Sample(NamedTuple):
    """A picture to show with its objects."""

    split: str
    path: Path
    size: tuple[int, int]
    upright: bool
    objects: Sequence[tuple[int, Checked]]


class Defect(NamedTuple):
    """An annotation to show."""

    kind: str
    path: Path
    size: tuple[int, int]
    annotation_id: Any
    row: Mapping[str, Any]
    checked: Checked


@dataclass
class Gallery:
    """The few pictures that the page shows; bounded, whatever is offered."""

    samples: list[tuple[int, str, Sample]] = field(default_factory=list)
    defects: dict[str, list[Defect]] = field(default_factory=dict)
    pairs: dict[str, list[tuple[Path, Path]]] = field(default_factory=dict)

    def offer(
        self, split: str, path: Path, size: tuple[int, int], upright: bool, objects: Sequence[tuple[int, Checked]]
    ) -> None:
        """Keeps the pictures with objects whose names' digests are the least: a sample that is always the same."""
        if not objects:
            return
        rank = int.from_bytes(hashlib.sha1(path.name.encode()).digest()[:8], "big")
        entry = (-rank, str(path), Sample(split, path, size, upright, objects))
        if len(self.samples) < SAMPLES:
            heapq.heappush(self.samples, entry)
        elif -rank > self.samples[0][0]:
            heapq.heapreplace(self.samples, entry)

    def add_defect(
        self, kind: str, path: Path, size: tuple[int, int], key: Any, row: Mapping[str, Any], checked: Checked
    ) -> None:
        """Keeps the first few of a kind."""
        kept = self.defects.setdefault(kind, [])
        if len(kept) < DEFECTS_OF_A_KIND:
            kept.append(Defect(kind, path, size, key, row, checked))

    def add_pair(self, kind: str, first: Path, second: Path) -> None:
        """Likewise for duplicates."""
        kept = self.pairs.setdefault(kind, [])
        if len(kept) < PAIRS_OF_A_KIND:
            kept.append((first, second))


@dataclass
class SplitReport:
    """Counts of one split.

    Attributes:
        name: Of the split.
        path: Of its file.
        images: Listed.
        usable: Of these, readable and of the right size.
        annotations: Of usable pictures.
        objects: Class name -> objects, crowd regions left out.
        pictures: Class name -> pictures that show one.
        sizes: Against the heatmap's stride.
    """

    name: str
    path: str
    images: int
    usable: int
    annotations: int
    objects: dict[str, int]
    pictures: dict[str, int]
    sizes: SizeTally


@dataclass
class Report:
    """The outcome of `run.validate`."""

    data: str
    layout: str
    size: int
    splits: dict[str, SplitReport] = field(default_factory=dict)
    findings: Findings = field(default_factory=Findings)
    gallery: Gallery = field(default_factory=Gallery)
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """1 where something is an error."""
        return 1 if self.findings.of("error") else 0

    @property
    def class_names(self) -> list[str]:
        """Of all splits, in order of appearance."""
        return list(dict.fromkeys(name for split in self.splits.values() for name in split.objects))

    def verdict(self) -> str:
        """One line."""
        errors, warnings = self.findings.of("error"), self.findings.of("warning")
        if not errors and not warnings:
            return "nothing is wrong with it"
        return f"{counted(errors, 'error')}, {counted(warnings, 'warning')}"

    def to_json(self) -> dict[str, Any]:
        """Plain values: counts, sizes, and every finding that was kept."""
        return {
            "data": self.data,
            "layout": self.layout,
            "errors": self.findings.of("error"),
            "warnings": self.findings.of("warning"),
            "notes": self.findings.of("note"),
            "splits": {
                split.name: {
                    "file": split.path,
                    "images": split.images,
                    "usable_images": split.usable,
                    "annotations": split.annotations,
                    "classes": {
                        name: {"objects": split.objects[name], "images": split.pictures[name]} for name in split.objects
                    },
                    "sizes": split.sizes.to_json(),
                }
                for split in self.splits.values()
            },
            "findings": {
                kind: {
                    "severity": KINDS[kind].severity,
                    "text": KINDS[kind].text,
                    "count": self.findings.counts[kind],
                    "items": [
                        {"split": f.split, "file": f.file, "annotation_id": f.annotation_id, "detail": f.detail}
                        for f in self.findings.kept[kind]
                    ],
                }
                for kind in self.findings.kinds()
            },
            "seconds": round(self.seconds, 3),
        }

    def text(self) -> str:
        """For people at a terminal."""
        lines = [f"{self.data} ({self.layout} layout)"]
        width = max([len(name) for name in self.class_names] + [5])
        for split in self.splits.values():
            usable = "" if split.usable == split.images else f" ({split.usable} usable)"
            pictures, annotations = counted(split.images, "picture"), counted(split.annotations, "annotation")
            lines.append(f"  {split.name}: {pictures}{usable}, {annotations}")
        lines += ["", f"  {'class':<{width}}" + "".join(f"{name:>12}" for name in self.splits)]
        for name in self.class_names:
            cells = "".join(f"{split.objects.get(name, '-'):>12}" for split in self.splits.values())
            lines.append(f"  {name:<{width}}{cells}")
        for split in self.splits.values():
            sizes = split.sizes
            if sizes.objects:
                areas = ", ".join(f"{sizes.by_area[part]} {part}" for part in ("small", "medium", "large"))
                lines += ["", f"  {split.name}: {areas} objects; at most {sizes.most_in_picture} in a picture"]
                limits = "; ".join(
                    f"{size}: {sizes.below_cell[size]} / {sizes.collisions[size]}" for size in (320, 512, 768)
                )
                lines.append(f"    smaller than a heatmap cell / sharing one, by input size: {limits}")
        for kind in self.findings.kinds():
            severity, text = KINDS[kind]
            count = self.findings.counts[kind]
            lines += ["", f"{severity}: {text} [{kind}]: {count}"]
            lines += [f"    {finding}" for finding in self.findings.kept[kind][:_LINES_OF_A_KIND]]
            if count > _LINES_OF_A_KIND:
                lines.append(f"    ... and {count - _LINES_OF_A_KIND} more (--json lists them)")
        total = sum(split.images for split in self.splits.values())
        lines += ["", f"{self.verdict()}; {counted(total, 'picture')} in {self.seconds:.1f} s"]
        return "\n".join(lines)
