"""The report of an evaluation as one HTML page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from centermask import ops, webpage
from centermask.report.analysis import BINS, IOU, Analysis, Case, rle_of
from centermask.report.evidence import Evidence
from centermask.wording import counted

_CASE_SIDE = 220
_GREEN = (80, 220, 60)
_RED = (60, 60, 255)
_CURVES_MOST = 24
_MATRIX_MOST = 25
_CONFUSIONS_SHOWN = 20
_KINDS = (("mask", "masks"), ("boundary", "outlines"), ("box", "boxes"))


def write_page(values: Mapping[str, Any], analysis: Analysis, evidence: Evidence, notes: Sequence[str] = ()) -> str:
    """The document.

    Args:
        values: Of `evaluate_coco`, with curves.
        analysis: Of `analyse`.
        evidence: What both were made from.
        notes: What was left out, in words.
    """
    return webpage.page(f"Evaluation: {evidence.title}", _body(values, analysis, evidence, notes))


def _body(values: Mapping[str, Any], analysis: Analysis, evidence: Evidence, notes: Sequence[str]) -> Iterator[str]:
    kinds = [(kind, name) for kind, name in _KINDS if f"{kind}_ap" in values]
    yield webpage.heading(1, evidence.title)
    objects = sum(row["instances"] for row in values["per_class"].values())
    yield webpage.paragraph(f"{counted(values['images'], 'picture')}, {counted(objects, 'labelled object')}", "lead")
    for note in notes:
        yield webpage.paragraph(note, "warning")
    yield webpage.heading(2, "Average precision")
    yield webpage.table(
        ["", "AP", "AP50", "AP75", "small", "medium", "large"],
        (
            (name, *(_cell(values[f"{kind}_ap{part}"]) for part in ("", "50", "75", "_small", "_medium", "_large")))
            for kind, name in kinds
        ),
    )
    if any(kind == "boundary" for kind, _ in kinds):
        yield webpage.paragraph(
            "AP as COCO defines it. For outlines the smaller of mask IoU and boundary IoU counts (Cheng et al. 2021).",
            "lead",
        )
    yield from _classes(values, analysis, kinds)
    yield from _latency(evidence)
    yield from _curves(values, kinds)
    yield from _calibration(analysis)
    yield from _confusion(analysis)
    for title, text, cases in (
        ("Worst misses", "Labelled (green) and not found at the class's best threshold; the largest.", analysis.misses),
        ("Worst false alarms", "Found (red) and not there; the highest scores.", analysis.false_alarms),
        ("Loosest masks", "Found by its box, and the mask (red) fits the label (green) least.", analysis.loose),
    ):
        yield webpage.heading(2, f"{title} ({len(cases)})")
        yield webpage.paragraph(text, "lead")
        figures = [figure for case in cases if (figure := _case(case, evidence)) is not None]
        yield webpage.gallery(figures) if figures else webpage.paragraph("None.")


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _classes(values: Mapping[str, Any], analysis: Analysis, kinds: Sequence[tuple[str, str]]) -> Iterator[str]:
    yield webpage.heading(2, "Classes")
    headings = [f"{name} {part}" for _, name in kinds for part in ("AP", "AP50", "AP75")]
    threshold = ["best score", "F1", "precision", "recall"]
    rows = []
    for name, row in values["per_class"].items():
        cells = [_cell(row.get(f"{kind}_ap{part}")) for kind, _ in kinds for part in ("", "50", "75")]
        best = analysis.classes.get(name)
        at = [_cell(v) for v in (best.threshold, best.f1, best.precision, best.recall)] if best else ["-"] * 4
        rows.append([name, row["instances"], *at, *cells])
    yield webpage.table(["class", "objects", *threshold, *headings], rows)
    yield webpage.paragraph(
        f"Best score: the threshold at which F1 at IoU {IOU} is largest; precision and recall are those at it.",
        "lead",
    )


def _latency(evidence: Evidence) -> Iterator[str]:
    if not evidence.seconds:
        return
    steps = {name: 1e3 * np.asarray(values) for name, values in evidence.seconds.items() if len(values)}
    if not steps:
        return
    steps["all"] = np.sum(list(steps.values()), axis=0)
    yield webpage.heading(2, "Time for a picture")
    yield webpage.table(
        ["ms", "median", "90 % below", "longest"],
        (
            (name, *(f"{value:.1f}" for value in (np.median(v), np.percentile(v, 90), v.max())))
            for name, v in steps.items()
        ),
    )


def _curves(values: Mapping[str, Any], kinds: Sequence[tuple[str, str]]) -> Iterator[str]:
    kind = next((kind for kind, _ in kinds if kind in values.get("curves", {})), None)
    if kind is None:
        return
    drawn = values["curves"][kind]
    recall = [n / 100 for n in range(101)]
    yield webpage.heading(2, "Precision and recall")
    count = sorted(drawn, key=lambda name: -values["per_class"][name]["instances"])[:_CURVES_MOST]
    if len(drawn) > _CURVES_MOST:
        yield webpage.paragraph(f"The {_CURVES_MOST} classes with the most objects.", "lead")
    mean = {level: np.mean([curve[level] for curve in drawn.values()], axis=0).tolist() for level in ("50", "75")}
    charts = [("all classes", mean)] + [(name, drawn[name]) for name in count]
    parts = []
    for name, curve in charts:
        lines = [webpage.Line(f"IoU 0.{level}", recall, curve[level]) for level in ("50", "75")]
        parts.append(webpage.chart(f"{name}: {dict(_KINDS)[kind]}", "recall", "precision", lines))
    yield f'<div class="charts">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def _calibration(analysis: Analysis) -> Iterator[str]:
    if analysis.calibration_error is None:
        return
    yield webpage.heading(2, "What a score means")
    yield webpage.paragraph(
        f"How many of the results of a score are right (IoU {IOU}); on the dashed line scores are probabilities. "
        f"Mean distance from it: {analysis.calibration_error:.3f}.",
        "lead",
    )
    chart = webpage.bars("Calibration", "score", "share that is right", analysis.bin_precision.tolist(), diagonal=True)
    yield f'<div class="charts"><div>{chart}</div></div>'
    yield webpage.table(
        ["score", *(f"{n / BINS:.1f} to {(n + 1) / BINS:.1f}" for n in range(BINS))],
        [
            ["results", *analysis.bin_count.tolist()],
            ["right", *("-" if math.isnan(value) else f"{value:.2f}" for value in analysis.bin_precision.tolist())],
        ],
    )


def _confusion(analysis: Analysis) -> Iterator[str]:
    yield webpage.heading(2, "Confusion of classes")
    yield webpage.paragraph(
        f"At each class's best threshold: rows are labelled, columns found, matched at IoU {IOU} whatever the class.",
        "lead",
    )
    names, matrix = [*analysis.names, "nothing"], analysis.confusion
    if len(analysis.names) <= _MATRIX_MOST:
        yield webpage.heat_table(["labelled \\ found", *names], names, matrix)
        return
    off = matrix.copy()
    np.fill_diagonal(off, 0)
    off[-1], off[:, -1] = 0, 0
    order = np.argsort(-off, axis=None, kind="stable")[:_CONFUSIONS_SHOWN]
    rows = [(names[i], names[j], int(off[i, j])) for i, j in zip(*np.unravel_index(order, off.shape), strict=True)]
    yield webpage.table(["labelled", "found", "how often"], [row for row in rows if row[2]])
    sums = [(name, int(matrix[i, i]), int(matrix[i, -1]), int(matrix[-1, i])) for i, name in enumerate(analysis.names)]
    yield webpage.table(["class", "right", "missed", "false alarms"], sums)


def _case(case: Case, evidence: Evidence) -> str | None:
    """The part of the picture around it, labelled outline green, found outline red."""
    try:
        image = cv2.cvtColor(evidence.picture(case.image_id), cv2.COLOR_RGB2BGR)
    except ValueError:  # it was there when the model saw it
        return None
    height, width = image.shape[:2]
    chosen = case.result if case.truth is None else case.truth
    assert chosen is not None
    subject = [row for row in (case.result, case.truth) if row is not None]
    boxes = np.array([_box(row, (height, width)) for row in ([chosen] if case.result is None else subject)])
    low, high = boxes[:, :2].min(axis=0), (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
    margin = 0.25 * float(np.max(high - low)) + 8
    x0, y0 = np.clip(np.floor(low - margin), 0, (width - 1, height - 1)).astype(int).tolist()
    x1, y1 = np.clip(np.ceil(high + margin), (x0 + 1, y0 + 1), (width, height)).astype(int).tolist()
    crop = image[y0:y1, x0:x1]
    scale = min(_CASE_SIDE / max(crop.shape[:2]), 6.0)
    size = (max(1, round(crop.shape[1] * scale)), max(1, round(crop.shape[0] * scale)))
    crop = cv2.resize(crop, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    for row, color in ((case.truth, _GREEN), (case.result, _RED)):
        if row is not None:
            rings = [np.rint((ring - (x0, y0)) * scale).astype(np.int32) for ring in _outline(row, (height, width))]
            cv2.polylines(crop, rings, True, color, 2, cv2.LINE_AA)
    return webpage.figure(np.asarray(crop, np.uint8), case.text, quality=75)


def _box(row: Mapping[str, Any], size: tuple[int, int]) -> NDArray[np.float64]:
    return np.asarray(row["bbox"] if "bbox" in row else ops.rle_bbox(rle_of(row, size)), np.float64)


def _outline(row: Mapping[str, Any], size: tuple[int, int]) -> list[NDArray[np.float64]]:
    if row.get("segmentation"):
        return [np.asarray(ring, np.float64) for ring in ops.rle_to_polygons(rle_of(row, size))]
    x, y, w, h = _box(row, size).tolist()
    return [np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]])]
