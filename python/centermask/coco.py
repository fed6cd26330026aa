"""COCO results: reading and writing them, and their average precision. No torch; `evaluate_coco` needs pycocotools."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from centermask.files import write_atomically

IouType: TypeAlias = Literal["bbox", "segm", "boundary"]
Engine: TypeAlias = Literal["auto", "pycocotools", "faster-coco-eval"]

_PREFIX: dict[str, str] = {"bbox": "box", "segm": "mask", "boundary": "boundary"}
_AREAS = ("", "_small", "_medium", "_large")  # the order of pycocotools' area ranges: all, < 32^2, < 96^2, the rest


def write_results(path: str | os.PathLike[str], results: Sequence[Mapping[str, Any]]) -> None:
    """Writes a COCO result file; it appears whole or not at all.

    Args:
        path: The file; its folder must exist.
        results: As `Instances.to_coco` makes them; RLE counts may be bytes or str.
    """
    text = json.dumps([_json_ready(result) for result in results], allow_nan=False)
    write_atomically(path, text.encode("ascii"))


def read_results(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads a COCO result file: a list of `image_id`, `category_id`, `score`, and `bbox` (xywh) or `segmentation`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not such a list; names file, entry and cause.
    """
    name = os.fspath(path)
    try:
        results = json.loads(Path(path).read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{name}: not JSON: {error}") from error
    if not isinstance(results, list):
        raise ValueError(f"{name}: COCO results must be a list, got {type(results).__name__}")
    check_results(results, name)
    return results


def check_results(results: Iterable[Any], name: str) -> None:
    """Raises ValueError, with `name`, entry and cause, where an entry is no COCO result (see `read_results`)."""
    for i, result in enumerate(results):
        cause = _result_problem(result)
        if cause is not None:
            raise ValueError(f"{name}: result {i}: {cause}")


def evaluate_coco(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    iou_types: Iterable[IouType] = ("bbox", "segm"),
    max_dets: int = 100,
    known_categories: Mapping[Any, Collection[int]] | None = None,
    curves: bool = False,
    engine: Engine = "auto",
) -> dict[str, Any]:
    """Average precision as COCO defines it (cocodataset.org/#detection-eval), computed by pycocotools.

    A mask's size class is that of its own area, a box's that of the box. Crowd regions neither count as missed nor
    punish what lies on them.

    Args:
        ground_truth: A COCO dictionary (`images`, `annotations`, `categories`). Annotation ids are not used.
        results: COCO results, `bbox` in xywh, `segmentation` as RLE (compressed or not) or polygons.
        iou_types: `bbox` for the keys that begin with `box_`, `segm` for `mask_`, `boundary` for `boundary_`: the
            smaller of mask IoU and boundary IoU (see `coco_boundary`).
        max_dets: Best results of an image and category that count.
        known_categories: For each image id the category ids that are annotated in it; results of others are left
            out, as nothing is known about them. Images that are not named, and None: all categories.
        curves: Add the precision-recall curves.
        engine: `auto` takes faster-coco-eval where it is installed, for the same figures in less time; boundaries are
            always pycocotools' business.

    Returns:
        For each prefix `<p>_ap` (mean over IoU 0.50..0.95), `<p>_ap50`, `<p>_ap75`, `<p>_ap_small`, `<p>_ap_medium`
        and `<p>_ap_large`, fractions 0..1, and None where there is no ground truth of that kind. `per_class`: from a
        category's name to `<p>_ap`, `<p>_ap50`, `<p>_ap75` and `instances`. `images` and `max_dets`. Values are
        plain, ready for JSON. With `curves` also that: from `<p>` to a category's name to `50` and `75`, 101 precisions
        at recall 0, 0.01, ... 1.

    Raises:
        ImportError: pycocotools is not installed, or the engine that is asked for.
        ValueError: A result names an unknown image or category, has a wrong size or a score that is no number; an
            annotation has no usable segmentation. Names the entry.
    """
    if max_dets < 1:
        raise ValueError(f"evaluate_coco: max_dets must be >= 1, got {max_dets}")
    images = {image["id"]: image for image in ground_truth["images"]}
    names = _category_names(ground_truth)
    annotations = list(ground_truth.get("annotations", ()))
    _check_references(annotations, images, names, "annotation")
    _check_references(results, images, names, "result")
    known = known_categories or {}
    indexed = [
        (i, result)
        for i, result in enumerate(results)
        if result["image_id"] not in known or result["category_id"] in known[result["image_id"]]
    ]

    summary: dict[str, Any] = {}
    drawn: dict[str, dict[str, dict[str, list[float]]]] = {}
    per_class: dict[str, dict[str, Any]] = {name: {} for name in names.values()}
    for category_id, name in names.items():
        real = (a for a in annotations if a["category_id"] == category_id and not a.get("iscrowd", 0))
        per_class[name]["instances"] = sum(1 for _ in real)
    for iou_type in iou_types:
        if iou_type not in _PREFIX:
            raise ValueError(f"evaluate_coco: iou_types must be bbox, segm or boundary, got {iou_type!r}")
        index_type, evaluation_type = _engine(iou_type, engine)
        make = _box_entry if iou_type == "bbox" else _mask_entry
        truth = _index(
            index_type, ground_truth, [make(a, images, f"annotation {i}") for i, a in enumerate(annotations)]
        )
        rows = [{**make(r, images, f"result {i}"), "score": float(r["score"])} for i, r in indexed]
        found = _index(index_type, ground_truth, rows)
        with _silence():
            evaluation = evaluation_type(truth, found, "bbox" if iou_type == "bbox" else "segm")
            evaluation.params.maxDets = [max_dets]
            evaluation.evaluate()
            evaluation.accumulate()
        # [IoU threshold, recall, category, area, max_dets]; -1 where there is no ground truth. pycocotools' own
        # summary would look for exactly 100 detections.
        precision = np.asarray(evaluation.eval["precision"])[..., 0]
        prefix = _PREFIX[iou_type]
        for area, suffix in enumerate(_AREAS):
            summary[f"{prefix}_ap{suffix}"] = _mean(precision[..., area])
        summary[f"{prefix}_ap50"] = _mean(precision[0, ..., 0])
        summary[f"{prefix}_ap75"] = _mean(precision[5, ..., 0])
        for column, category_id in enumerate(evaluation.params.catIds):
            values = per_class[names[int(category_id)]]
            values[f"{prefix}_ap"] = _mean(precision[:, :, column, 0])
            values[f"{prefix}_ap50"] = _mean(precision[0, :, column, 0])
            values[f"{prefix}_ap75"] = _mean(precision[5, :, column, 0])
            if (precision[0, :, column, 0] > -1).all():
                shown = {"50": precision[0, :, column, 0].tolist(), "75": precision[5, :, column, 0].tolist()}
                drawn.setdefault(prefix, {})[names[int(category_id)]] = shown
    summary |= {"per_class": per_class, "images": len(images), "max_dets": max_dets}
    return {**summary, "curves": drawn} if curves else summary


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without the progress that pycocotools prints, and faster-coco-eval logs."""
    logger = logging.getLogger("faster_coco_eval")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def require_evaluation() -> None:
    """Says at the beginning what `evaluate_coco` would miss at the end of long work.

    Raises:
        ImportError: pycocotools is not installed; names the command that installs it.
    """
    _engine("boundary", "auto")


def _engine(iou_type: IouType, engine: Engine) -> tuple[Any, Any]:
    """The classes of a data set and of an evaluation."""
    if engine not in ("auto", "pycocotools", "faster-coco-eval"):
        raise ValueError(f"evaluate_coco: engine must be auto, pycocotools or faster-coco-eval, got {engine!r}")
    if iou_type != "boundary" and engine != "pycocotools":
        try:
            from faster_coco_eval import COCO as FastIndex
            from faster_coco_eval import COCOeval_faster

            return FastIndex, COCOeval_faster
        except ImportError:
            if engine == "faster-coco-eval":
                raise
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        from centermask.coco_boundary import BoundaryEvaluation
    except ImportError as error:
        raise ImportError("average precision needs the package pycocotools: pip install 'centermask[train]'") from error
    return COCO, BoundaryEvaluation if iou_type == "boundary" else COCOeval


def _json_ready(result: Mapping[str, Any]) -> dict[str, Any]:
    ready = dict(result)
    mask = ready.get("segmentation")
    if isinstance(mask, Mapping) and isinstance(mask["counts"], bytes):
        ready["segmentation"] = {"size": [int(side) for side in mask["size"]], "counts": mask["counts"].decode("ascii")}
    return ready


def _result_problem(result: Any) -> str | None:
    if not isinstance(result, dict):
        return f"must be an object, got {type(result).__name__}"
    missing = [key for key in ("image_id", "category_id", "score") if key not in result]
    if missing:
        return f"lacks {', '.join(missing)}"
    if not isinstance(result["image_id"], int | str) or not isinstance(result["category_id"], int):
        return f"image_id and category_id must be ids, got {result['image_id']!r} and {result['category_id']!r}"
    mask = result.get("segmentation", [])
    if not isinstance(mask, list) and not (isinstance(mask, dict) and {"size", "counts"} <= set(mask)):
        return "segmentation must be polygons, or an RLE with size and counts"
    if "bbox" not in result and "segmentation" not in result:
        return "lacks bbox and segmentation"
    box = result.get("bbox")
    if "bbox" in result and not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        return f"bbox must be 4 numbers (x, y, width, height), got {box!r}"
    if not _is_number(result["score"]):
        return f"score must be a number, got {result['score']!r}"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and math.isfinite(value)


def _category_names(ground_truth: Mapping[str, Any]) -> dict[int, str]:
    """From category id to a name; names that occur twice get their id, so that none hides another."""
    categories = ground_truth["categories"]
    names = [str(category["name"]) for category in categories]
    return {
        int(category["id"]): name if names.count(name) == 1 else f"{name} ({category['id']})"
        for category, name in zip(categories, names, strict=True)
    }


def _check_references(
    entries: Sequence[Mapping[str, Any]], images: Mapping[Any, Any], names: Mapping[int, str], kind: str
) -> None:
    for i, entry in enumerate(entries):
        if entry["image_id"] not in images:
            raise ValueError(f"evaluate_coco: {kind} {i} names image {entry['image_id']!r}, which is not in `images`")
        if entry["category_id"] not in names:
            raise ValueError(
                f"evaluate_coco: {kind} {i} names category {entry['category_id']!r}, which is not in `categories`"
            )
        if kind == "result" and not _is_number(entry["score"]):
            raise ValueError(f"evaluate_coco: {kind} {i} has score {entry['score']!r}, which is not a finite number")


def _box_entry(entry: Mapping[str, Any], images: Mapping[Any, Any], what: str) -> dict[str, Any]:
    from pycocotools import mask as mask_api

    box = entry.get("bbox")
    if box is None:
        box = mask_api.toBbox(_rle(entry, images, what))
    if len(box) != 4 or not all(map(_is_number, box)):
        raise ValueError(f"evaluate_coco: {what}: bbox must be 4 numbers (x, y, width, height), got {list(box)}")
    values = [float(value) for value in box]
    # A result's size class is that of its box; an annotation brings its own area, that of its mask.
    area = entry.get("area") if "score" not in entry else None
    return _entry(entry, values[2] * values[3] if area is None else float(area), bbox=values)


def _mask_entry(entry: Mapping[str, Any], images: Mapping[Any, Any], what: str) -> dict[str, Any]:
    from pycocotools import mask as mask_api

    mask = _rle(entry, images, what)
    area = entry.get("area") if "score" not in entry else None
    return _entry(entry, float(mask_api.area(mask)) if area is None else float(area), segmentation=mask)


def _entry(entry: Mapping[str, Any], area: float, **shape: Any) -> dict[str, Any]:
    crowd = int(entry.get("iscrowd", 0) or 0)
    return {
        "image_id": entry["image_id"],
        "category_id": int(entry["category_id"]),
        "area": area,
        "iscrowd": crowd,
        "ignore": crowd,
        **shape,
    }


def _rle(entry: Mapping[str, Any], images: Mapping[Any, Any], what: str) -> dict[str, Any]:
    """The segmentation of an annotation or result as compressed RLE of its image's size."""
    from pycocotools import mask as mask_api

    image = images[entry["image_id"]]
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, Mapping):
        size = [int(side) for side in segmentation["size"]]
        expected = [image.get("height", size[0]), image.get("width", size[1])]
        if size != expected:  # pycocotools would call its IoU -1 and carry on
            raise ValueError(f"evaluate_coco: {what}: mask size is {size}, its image is {expected} (height, width)")
        counts = segmentation["counts"]
        if isinstance(counts, str | bytes):
            return {"size": size, "counts": counts.encode("ascii") if isinstance(counts, str) else counts}
        compressed: dict[str, Any] = mask_api.frPyObjects({"size": size, "counts": list(counts)}, *size)
        return compressed
    # pycocotools takes a ring of four numbers for a box, and none at all for an error without a name.
    rings = [list(ring) for ring in segmentation or () if len(ring) >= 6]
    if not rings:
        raise ValueError(f"evaluate_coco: {what}: no usable segmentation, got {segmentation!r}")
    if "height" not in image or "width" not in image:
        raise ValueError(f"evaluate_coco: {what}: polygons need the height and width of image {entry['image_id']!r}")
    merged: dict[str, Any] = mask_api.merge(mask_api.frPyObjects(rings, image["height"], image["width"]))
    return merged


def _index(kind: Any, ground_truth: Mapping[str, Any], entries: list[dict[str, Any]]) -> Any:
    """A pycocotools data set. Ids count from 1: pycocotools takes a match with annotation 0 for no match."""
    with _silence():
        data_set = kind()
        data_set.dataset = {
            "images": [dict(image) for image in ground_truth["images"]],
            "categories": [dict(category) for category in ground_truth["categories"]],
            "annotations": [{"id": i + 1, **entry} for i, entry in enumerate(entries)],
        }
        data_set.createIndex()
    return data_set


def _mean(precision: NDArray[np.float64]) -> float | None:
    present = precision[precision > -1]
    return float(present.mean()) if present.size else None
