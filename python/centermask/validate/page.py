"""The validation as one HTML page, with pictures."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from centermask import ops, webpage
from centermask.config import STRIDE
from centermask.draw import class_color
from centermask.validate.findings import KINDS
from centermask.validate.masks import Checked
from centermask.validate.report import Defect, Report, Sample
from centermask.validate.sizes import INPUT_SIZES, center_heatmap
from centermask.wording import counted

_SHOWN_SIDE = 400
_DEFECT_SIDE = 260
_ROWS_SHOWN = 50
_RED = (40, 40, 230)
_YELLOW = (0, 210, 255)


def write_page(report: Report) -> str:
    """The document."""
    return webpage.page(f"Data: {Path(report.data).name}", _body(report))


def _body(report: Report) -> Iterator[str]:
    errors, warnings = report.findings.of("error"), report.findings.of("warning")
    yield webpage.heading(1, f"Data set {Path(report.data).name}")
    yield webpage.paragraph(f"{report.data} ({report.layout} layout), looked through in {report.seconds:.1f} s", "lead")
    yield webpage.paragraph(report.verdict(), "error" if errors else "warning" if warnings else "")
    yield from _counts(report)
    yield webpage.heading(2, "Findings")
    if not report.findings.counts:
        yield webpage.paragraph("None.")
    for kind in report.findings.kinds():
        yield _finding(report, kind)
    yield from _sizes(report)
    samples = [
        figure for _, _, sample in sorted(report.gallery.samples, reverse=True) for figure in _sample(sample, report)
    ]
    if samples:
        yield webpage.heading(2, "Samples")
        yield webpage.paragraph(
            f"Each picture with its masks, and with the centre heatmap that a network learns at input size "
            f"{report.size} (stride {STRIDE}): one bright spot for each object, or spots have merged.",
            "lead",
        )
        yield webpage.gallery(samples, wide=True)


def _counts(report: Report) -> Iterator[str]:
    yield webpage.heading(2, "What there is")
    columns = ["split", "pictures", "usable", "annotations", "small", "medium", "large", "most in a picture"]
    yield webpage.table(
        columns,
        (
            (
                split.name,
                split.images,
                split.usable,
                split.annotations,
                *(split.sizes.by_area[part] for part in ("small", "medium", "large")),
                split.sizes.most_in_picture,
            )
            for split in report.splits.values()
        ),
    )
    columns = ["class"]
    for name in report.splits:
        columns += [f"{name}: objects", f"{name}: pictures"]
    rows = []
    for name in report.class_names:
        cells: list[object] = [name]
        for split in report.splits.values():
            cells += [split.objects.get(name, "-"), split.pictures.get(name, "-")]
        rows.append(cells)
    yield webpage.table(columns, rows)


def _finding(report: Report, kind: str) -> str:
    severity, text = KINDS[kind]
    count, kept = report.findings.counts[kind], report.findings.kept[kind]
    items = "".join(f"<li>{escape(str(finding))}</li>" for finding in kept[:_ROWS_SHOWN])
    more = count - min(len(kept), _ROWS_SHOWN)
    body = [f"<ul>{items}</ul>", webpage.paragraph(f"and {more} more", "lead") if more else ""]
    pictures = [_defect(defect) for defect in report.gallery.defects.get(kind, ())]
    pictures += [_pair(*pair) for pair in report.gallery.pairs.get(kind.removesuffix("-across"), ())]
    shown = [picture for picture in pictures if picture]
    if shown:
        body.append(webpage.gallery(shown))
    return webpage.folded(f"{text}: {count}", severity, body, is_open=severity == "error")


def _sizes(report: Report) -> Iterator[str]:
    yield webpage.heading(2, "Objects against the heatmap")
    yield webpage.paragraph(
        f"A CenterNet finds one object of a class in each cell of {STRIDE}x{STRIDE} input pixels. The larger the "
        "input, the fewer objects are smaller than a cell or share one; the slower the network, too.",
        "lead",
    )
    for split in report.splits.values():
        total = max(split.sizes.objects, 1)
        yield webpage.heading(3, f"{split.name}: {counted(split.sizes.objects, 'object')}")
        yield webpage.table(
            ["input size", "smaller than a cell", "share", "same cell and class", "share"],
            (
                (
                    size,
                    split.sizes.below_cell[size],
                    f"{100 * split.sizes.below_cell[size] / total:.1f} %",
                    split.sizes.collisions[size],
                    f"{100 * split.sizes.collisions[size] / total:.1f} %",
                )
                for size in INPUT_SIZES
            ),
        )


def read_frame(path: Path, upright: bool) -> NDArray[np.uint8] | None:
    """A picture in the frame of its annotations, uint8 BGR [h, w, 3]; None if it can no longer be read."""
    from centermask.preprocess import load_image

    if upright:
        try:
            return load_image(path)
        except (OSError, ValueError):
            return None
    image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if image is None else np.asarray(image, np.uint8)


def _sample(sample: Sample, report: Report) -> list[str]:
    image = read_frame(sample.path, sample.upright)
    if image is None:
        return []
    scale = _SHOWN_SIDE / max(image.shape[:2])
    shown = _resized(image, scale)
    drawn = shown.copy()
    labels: list[str] = []
    names = list(report.splits[sample.split].objects)
    for label, checked in sample.objects:
        draw_mask(drawn, shown, checked, scale, class_color(label))
        labels.append(names[label])
    counts = ", ".join(f"{labels.count(name)} {name}" for name in dict.fromkeys(labels))
    input_scale = report.size / max(sample.size)
    shape = (-(-round(sample.size[1] * input_scale) // STRIDE), -(-round(sample.size[0] * input_scale) // STRIDE))
    boxes = np.array([checked.box for _, checked in sample.objects if checked.box], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    heatmap = center_heatmap(boxes, shape, input_scale)
    heat = cv2.resize(heatmap, (shown.shape[1], shown.shape[0]), interpolation=cv2.INTER_NEAREST)[..., None]
    grey = cv2.cvtColor(cv2.cvtColor(shown, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR) * 0.45
    warm = np.concatenate([np.zeros_like(heat), 190 * heat, 255 * heat], axis=2)
    overlay = np.clip(grey * (1 - heat) + warm, 0, 255).astype(np.uint8)
    return [
        webpage.figure(drawn, f"{sample.path.name} ({sample.split}): {counts}"),
        webpage.figure(overlay, f"{sample.path.name}: centres"),
    ]


def _defect(defect: Defect) -> str | None:
    """The picture with the annotation's outline in red and its box in yellow, cut to where they are."""
    image = read_frame(defect.path, True)
    if image is None or (image.shape[1], image.shape[0]) != defect.size:
        image = read_frame(defect.path, False)
    if image is None:
        return None
    checked = defect.checked
    stated = defect.row.get("bbox")
    if any(kind == "box-broken" for kind, _ in checked.defects) or not isinstance(stated, list):
        stated = None
    corners = [ring.min(axis=0) for ring in checked.rings] + [ring.max(axis=0) for ring in checked.rings]
    for box in (checked.box, stated):
        if box is not None:
            corners += [np.array(box[:2]), np.array(box[:2]) + box[2:]]
    if not corners:
        return None
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    margin = 0.3 * float(np.max(high - low)) + 8
    height, width = image.shape[:2]
    x0, y0 = (max(int(v), 0) for v in np.minimum(low - margin, (width - 16, height - 16)).tolist())
    x1, y1 = (max(int(v), 16) for v in (high + margin).tolist())
    crop = np.ascontiguousarray(image[y0 : min(y1, height), x0 : min(x1, width)])
    if not crop.size:
        return None
    scale = min(_DEFECT_SIDE / max(crop.shape[:2]), 8.0)
    crop = _resized(crop, scale)
    for ring in outlines(checked):
        fixed = np.rint((ring - (x0, y0)) * scale).astype(np.int32)
        cv2.polylines(crop, [fixed], True, _RED, 1, cv2.LINE_AA)
    if stated is not None:
        x, y, w, h = stated
        edges = np.rint((np.array([x, y, x + w, y + h]) - (x0, y0, x0, y0)) * scale).astype(int)
        edges = np.clip(edges, -10_000, 10_000).tolist()
        cv2.rectangle(crop, edges[:2], edges[2:], _YELLOW, 1)
    return webpage.figure(crop, f"{defect.path.name}, annotation {defect.annotation_id}")


def _pair(first: Path, second: Path) -> str | None:
    halves = []
    for path in (first, second):
        image = read_frame(path, True)
        if image is None:
            return None
        halves.append(_resized(image, 160 / image.shape[0])[:, :240])
    gap = np.zeros((160, 4, 3), np.uint8)
    return webpage.figure(np.concatenate([halves[0], gap, halves[1]], axis=1), f"{first.name} and {second.name}")


def draw_mask(
    canvas: NDArray[np.uint8], image: NDArray[np.uint8], checked: Checked, scale: float, color: tuple[int, int, int]
) -> None:
    """Fills a mask half through on `canvas` and outlines it.

    Args:
        canvas: uint8 BGR [h, w, 3], changed.
        image: The same without drawings.
        checked: The annotation, in pixels of the whole picture.
        scale: Pixels of the canvas to one of the picture.
        color: BGR.
    """
    rings = [np.rint(ring * scale).astype(np.int32) for ring in outlines(checked)]
    if not rings:
        return
    inside = np.zeros(canvas.shape[:2], np.uint8)
    cv2.fillPoly(inside, rings, 255)
    tint = (0.55 * image + 0.45 * np.array(color)).astype(np.uint8)
    np.copyto(canvas, tint, where=inside[..., None] > 0)
    cv2.polylines(canvas, rings, True, color, 1, cv2.LINE_AA)


def outlines(checked: Checked) -> list[NDArray[np.float64]]:
    """The rings of a mask of either form; the box of one that has none."""
    if checked.rings:
        return list(checked.rings)
    if checked.rle is not None:
        return [np.asarray(ring, np.float64) for ring in ops.rle_to_polygons(checked.rle)]
    if checked.box is not None:
        x, y, w, h = checked.box
        return [np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]])]
    return []


def _resized(image: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.ascontiguousarray(cv2.resize(image, size, interpolation=way), np.uint8)
