"""From labels and results to where a model fails: matches, thresholds, calibration, confusion, the worst cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from centermask import ops
from centermask.report.evidence import Evidence

IOU = 0.5
"""From which a result counts as having found an object."""
BINS = 10
WORST = 24

MISSED = -1
IGNORED = -2


class Case(NamedTuple):
    """Something to show.

    Attributes:
        image_id: Of the picture.
        truth: The annotation, if one is concerned.
        result: The result, likewise.
        measure: What it was chosen by: share of the picture, score, or IoU.
        text: What it is, in words.
    """

    image_id: Any
    truth: Mapping[str, Any] | None
    result: Mapping[str, Any] | None
    measure: float
    text: str


class ClassFigures(NamedTuple):
    """One class at its best threshold.

    Attributes:
        threshold: The score from which on F1 is largest; None without a right result.
        f1: At it, and precision and recall.
    """

    threshold: float | None
    f1: float
    precision: float
    recall: float


@dataclass
class Analysis:
    """The outcome of `analyse`.

    Attributes:
        names: Class names, in the order of rows and columns.
        classes: Class name -> figures at its best threshold.
        bin_precision: [BINS] share of right results among those whose score is in the bin; NaN where there is none.
        bin_count: [BINS].
        calibration_error: Mean distance of score and share, weighted by the bins' counts; None without results.
        confusion: int64 [C + 1, C + 1]: rows labelled, columns found; the last row and column are for nothing.
        misses: Labelled and not found, the largest first.
        false_alarms: Found and not there, the highest score first.
        loose: Found, and the mask fits least.
    """

    names: list[str]
    classes: dict[str, ClassFigures]
    bin_precision: NDArray[np.float64]
    bin_count: NDArray[np.int64]
    calibration_error: float | None
    confusion: NDArray[np.int64]
    misses: list[Case] = field(default_factory=list)
    false_alarms: list[Case] = field(default_factory=list)
    loose: list[Case] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "iou": IOU,
            "best_thresholds": {
                name: {"score": c.threshold, "f1": c.f1, "precision": c.precision, "recall": c.recall}
                for name, c in self.classes.items()
            },
            "calibration": {
                "error": self.calibration_error,
                "precision": [None if np.isnan(value) else float(value) for value in self.bin_precision],
                "results": self.bin_count.tolist(),
            },
            "confusion": {"classes": [*self.names, "nothing"], "labelled_by_found": self.confusion.tolist()},
            **{
                kind: [
                    {
                        "image_id": case.image_id,
                        "annotation_id": None if case.truth is None else case.truth["id"],
                        "measure": case.measure,
                        "text": case.text,
                    }
                    for case in cases
                ]
                for kind, cases in (("misses", self.misses), ("false_alarms", self.false_alarms), ("loose", self.loose))
            },
        }


class _Picture(NamedTuple):
    """One picture's labels and results, best score first, and how they overlap."""

    image_id: Any
    pixels: float
    truths: list[Mapping[str, Any]]
    results: list[Mapping[str, Any]]
    truth_labels: NDArray[np.int64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    overlap: NDArray[np.float64]
    box_overlap: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    match: NDArray[np.int64]


def analyse(evidence: Evidence) -> Analysis:
    """Compares labels and results picture by picture.

    A result finds the free object of its class that it overlaps most, from IoU 0.5 on, best score first, as in COCO's
    evaluation; what lies on a crowd region is ignored.
    """
    categories = list(evidence.truth["categories"])
    names = [str(row["name"]) for row in categories]
    label_of = {int(row["id"]): label for label, row in enumerate(categories)}
    truths: dict[Any, list[Mapping[str, Any]]] = {row["id"]: [] for row in evidence.truth["images"]}
    results: dict[Any, list[Mapping[str, Any]]] = {key: [] for key in truths}
    for row in evidence.truth["annotations"]:
        truths[row["image_id"]].append(row)
    for row in evidence.results:
        key = row["image_id"]
        if key in results and row["category_id"] in evidence.known.get(key, label_of):
            results[key].append(row)
    pictures = [
        _compare(evidence, row, truths[row["id"]], results[row["id"]], label_of) for row in evidence.truth["images"]
    ]
    count = len(names)
    labels, scores, right = _pooled(pictures)
    present = np.zeros(count, np.int64)
    for picture in pictures:
        present += np.bincount(picture.truth_labels[~picture.crowd], minlength=count)
    classes = {
        name: best_threshold(scores[labels == label], right[labels == label], int(present[label]))
        for label, name in enumerate(names)
    }
    shown_from = np.array([c.threshold if c.threshold is not None else np.inf for c in classes.values()])
    precision, counts, error = calibration(scores, right)
    analysis = Analysis(names, classes, precision, counts, error, np.zeros((count + 1, count + 1), np.int64))
    for picture in pictures:
        _add_confusion(analysis.confusion, picture, shown_from)
        _add_cases(analysis, picture, shown_from)
    analysis.misses = sorted(analysis.misses, key=lambda case: -case.measure)[:WORST]
    analysis.false_alarms = sorted(analysis.false_alarms, key=lambda case: -case.measure)[:WORST]
    analysis.loose = sorted(analysis.loose, key=lambda case: case.measure)[:WORST]
    return analysis


def _pooled(pictures: Sequence[_Picture]) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """Label, score, and whether right, of all results that are not ignored."""
    kept = [picture.match != IGNORED for picture in pictures]
    empty = np.zeros(0)
    return (
        np.concatenate([empty.astype(np.int64), *(p.labels[k] for p, k in zip(pictures, kept, strict=True))]),
        np.concatenate([empty, *(p.scores[k] for p, k in zip(pictures, kept, strict=True))]),
        np.concatenate([empty.astype(bool), *(p.match[k] >= 0 for p, k in zip(pictures, kept, strict=True))]),
    )


def best_threshold(scores: NDArray[np.float64], right: NDArray[np.bool_], present: int) -> ClassFigures:
    """The threshold at which F1, the harmonic mean of precision and recall, is largest.

    Args:
        scores: float64 [n].
        right: bool [n], whether each found an object.
        present: Number of objects.
    """
    if not right.any() or present == 0:
        return ClassFigures(None, 0.0, 0.0, 0.0)
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(right[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + present)
    # A threshold cannot part equal scores: only the last of them counts.
    last = np.append(np.diff(scores[order]) != 0, True)
    at = int(np.argmax(np.where(last, f1, -1.0)))
    return ClassFigures(float(scores[order][at]), float(f1[at]), float(hits[at] / (at + 1)), float(hits[at] / present))


def calibration(
    scores: NDArray[np.float64], right: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64], float | None]:
    """How often results of a score are right: per tenth of the scores, and the mean distance from the score itself.

    The last is the expected calibration error (Guo et al. 2017, arXiv 1706.04599).
    """
    bins = np.clip((scores * BINS).astype(np.int64), 0, BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    divisor = np.maximum(counts, 1)
    precision = np.bincount(bins, right.astype(np.float64), BINS) / divisor
    mean_score = np.bincount(bins, scores, BINS) / divisor
    error = float((np.abs(precision - mean_score) * counts).sum() / counts.sum()) if len(scores) else None
    return np.where(counts > 0, precision, np.nan), counts.astype(np.int64), error


def _compare(
    evidence: Evidence,
    image: Mapping[str, Any],
    truths: list[Mapping[str, Any]],
    results: list[Mapping[str, Any]],
    label_of: Mapping[int, int],
) -> _Picture:
    results = sorted(results, key=lambda row: -row["score"])
    labels = np.array([label_of[row["category_id"]] for row in results], np.int64)
    rank = np.zeros(len(results), np.int64)
    for label in np.unique(labels):
        rank[labels == label] = np.arange((labels == label).sum())
    keep = np.flatnonzero(rank < evidence.max_dets)
    results, labels = [results[i] for i in keep.tolist()], labels[keep]
    truth_labels = np.array([label_of[row["category_id"]] for row in truths], np.int64)
    crowd = np.array([bool(row.get("iscrowd", 0)) for row in truths], np.bool_)
    shape = (len(results), len(truths))
    size = (int(image["height"]), int(image["width"]))
    box_overlap: NDArray[np.float64] = np.zeros(shape)
    overlap = box_overlap
    if results and truths:
        box_overlap = _box_iou(_boxes(results, size), _boxes(truths, size), crowd)
        overlap = box_overlap
        if evidence.has_masks:
            overlap = np.asarray(
                ops.rle_iou(
                    [rle_of(row, size) for row in results], [rle_of(row, size) for row in truths], crowd.tolist()
                )
            ).reshape(shape)
    match = _match(overlap, labels, truth_labels, crowd)
    scores = np.array([row["score"] for row in results], np.float64)
    return _Picture(
        image["id"], float(size[0] * size[1]), truths, results, truth_labels, labels, scores, overlap, box_overlap,
        crowd, match,
    )  # fmt: skip


def _match(
    overlap: NDArray[np.float64], labels: NDArray[np.int64], truth_labels: NDArray[np.int64], crowd: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """For each result the object that it finds, else `MISSED`; `IGNORED` on a crowd region of its class."""
    match = np.full(len(labels), MISSED, np.int64)
    free = ~crowd
    for i, label in enumerate(labels.tolist()):
        same = truth_labels == label
        candidates = np.where(same & free, overlap[i], -1.0) if len(same) else np.zeros(0)
        if candidates.size and candidates.max() >= IOU:
            match[i] = int(candidates.argmax())
            free[match[i]] = False
        elif (overlap[i][same & crowd] >= IOU).any():
            match[i] = IGNORED
    return match


def _add_confusion(confusion: NDArray[np.int64], picture: _Picture, shown_from: NDArray[np.float64]) -> None:
    """Matches shown results with objects of any class, the best overlaps first."""
    nothing = len(confusion) - 1
    shown = np.flatnonzero((picture.scores >= shown_from[picture.labels]) & (picture.match != IGNORED))
    real = np.flatnonzero(~picture.crowd)
    free_results, free_truths = set(shown.tolist()), set(real.tolist())
    part = picture.overlap[np.ix_(shown, real)]
    pairs = np.argwhere(part >= IOU)
    # Of overlaps that are equal, the one of the right class.
    right = picture.labels[shown[pairs[:, 0]]] == picture.truth_labels[real[pairs[:, 1]]]
    for n in np.lexsort((~right, -part[pairs[:, 0], pairs[:, 1]])).tolist():
        i, j = int(shown[pairs[n, 0]]), int(real[pairs[n, 1]])
        if i in free_results and j in free_truths:
            free_results.remove(i)
            free_truths.remove(j)
            confusion[picture.truth_labels[j], picture.labels[i]] += 1
    for j in free_truths:
        confusion[picture.truth_labels[j], nothing] += 1
    for i in free_results:
        confusion[nothing, picture.labels[i]] += 1


def _add_cases(analysis: Analysis, picture: _Picture, shown_from: NDArray[np.float64]) -> None:
    names = analysis.names
    shown = picture.scores >= shown_from[picture.labels]
    found = {int(j) for j in picture.match[shown & (picture.match >= 0)]}
    for j in np.flatnonzero(~picture.crowd).tolist():
        if j in found:
            continue
        truth = picture.truths[j]
        share = float(truth["area"]) / picture.pixels
        text = f"{names[picture.truth_labels[j]]}, {100 * share:.1f} % of the picture"
        others = np.flatnonzero(shown & (picture.overlap[:, j] >= IOU)) if len(picture.results) else np.zeros(0, int)
        result = None
        if len(others):
            result = picture.results[int(others[0])]
            text += f"; taken for {names[picture.labels[others[0]]]}"
        analysis.misses.append(Case(picture.image_id, truth, result, share, text))
    for i in np.flatnonzero(shown & (picture.match == MISSED)).tolist():
        text = f"{names[picture.labels[i]]} {picture.scores[i]:.2f}"
        truth = None
        if picture.overlap.shape[1] and picture.overlap[i].max() > 0:
            j = int(picture.overlap[i].argmax())
            truth = picture.truths[j]
            text += f"; nearest is {names[picture.truth_labels[j]]}, IoU {picture.overlap[i, j]:.2f}"
        analysis.false_alarms.append(Case(picture.image_id, truth, picture.results[i], float(picture.scores[i]), text))
    # By box, so that a mask that misses IoU 0.5 is still one of a found object.
    by_box = _match(picture.box_overlap, picture.labels, picture.truth_labels, picture.crowd)
    for i in np.flatnonzero(shown & (by_box >= 0)).tolist():
        j = int(by_box[i])
        fit = float(picture.overlap[i, j])
        text = f"{names[picture.labels[i]]} {picture.scores[i]:.2f}, IoU {fit:.2f}"
        analysis.loose.append(Case(picture.image_id, picture.truths[j], picture.results[i], fit, text))


def rle_of(row: Mapping[str, Any], size: tuple[int, int]) -> ops.Rle:
    """The mask of an annotation or result in compressed form."""
    segmentation = row["segmentation"]
    if isinstance(segmentation, Mapping):
        counts = segmentation["counts"]
        if isinstance(counts, list):
            return ops.rle_from_counts(counts, *size)
        return ops.Rle(size=list(size), counts=counts.encode("ascii") if isinstance(counts, str) else counts)
    return ops.rle_from_polygons([ring for ring in segmentation if len(ring) >= 6], *size)


def _boxes(rows: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> NDArray[np.float64]:
    boxes = [row["bbox"] if "bbox" in row else ops.rle_bbox(rle_of(row, size)) for row in rows]
    return np.array(boxes, np.float64).reshape(-1, 4)


def _box_iou(found: NDArray[np.float64], truths: NDArray[np.float64], crowd: NDArray[np.bool_]) -> NDArray[np.float64]:
    """IoU of xywh boxes, [D, G]; against a crowd region the share of the result that lies in it."""
    low = np.maximum(found[:, None, :2], truths[None, :, :2])
    high = np.minimum(found[:, None, :2] + found[:, None, 2:], truths[None, :, :2] + truths[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(axis=2)
    areas, others = found[:, 2:].prod(axis=1), truths[:, 2:].prod(axis=1)
    union = np.where(crowd[None], areas[:, None], areas[:, None] + others[None] - common)
    return np.asarray(common / np.maximum(union, 1e-12), np.float64)
