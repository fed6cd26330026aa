"""Masks as COCO run lengths: see `centermask.ops`.

A mask is a dictionary `{"size": [height, width], "counts": bytes}`, byte for byte what pycocotools makes. Wherever a
mask is taken, `counts` may also be the str of a COCO JSON file or an uncompressed list of runs. Counts that do not
describe a mask of exactly that size are a ValueError everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypedDict, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from centermask import _core
from centermask._arrays import as_array

_MAX_PIXELS = 2**32 - 1


class Rle(TypedDict):
    """A mask as the functions here return it."""

    size: list[int]
    counts: bytes


RleLike = Mapping[str, Any]


class _Batch(NamedTuple):
    runs: NDArray[np.uint32]  # [R]
    offsets: NDArray[np.int64]  # [N + 1]
    sizes: NDArray[np.int64]  # [N, 2]


def rle_encode(bitmaps: Any) -> Any:
    """Masks of bitmaps.

    Args:
        bitmaps: bool or uint8 [H, W] or [N, H, W], any strides; every value but 0 is inside. NumPy or DLPack.

    Returns:
        One mask for [H, W], a list of N for [N, H, W].

    Raises:
        TypeError: `bitmaps` is not bool or uint8.
        ValueError: It has another number of dimensions, or more than 2^32 - 1 pixels.
    """
    array = as_array(bitmaps, "rle_encode", "bitmaps")
    if array.ndim not in (2, 3):
        raise ValueError(f"rle_encode: bitmaps must be [H, W] or [N, H, W], got {list(array.shape)}")
    height, width = array.shape[-2:]
    runs, offsets = _core.rle_encode(array if array.ndim == 3 else array[None])
    masks = masks_of_runs(runs, offsets, height, width)
    return masks if array.ndim == 3 else masks[0]


def rle_decode(masks: RleLike | Sequence[RleLike]) -> NDArray[np.uint8]:
    """Bitmaps of masks.

    Args:
        masks: One mask, or a sequence of masks of one size.

    Returns:
        uint8 of 0 and 1, row-major: [H, W] for one mask, [N, H, W] for a sequence ([0, 0, 0] for an empty one).

    Raises:
        ValueError: Counts are malformed, or sizes differ.
    """
    batch = _batch(masks, "rle_decode")
    height, width = _one_size("rle_decode", batch)
    bitmaps = _core.rle_decode(batch.runs, batch.offsets, height, width)
    return bitmaps[0] if isinstance(masks, Mapping) else bitmaps


@overload
def rle_area(masks: RleLike) -> int: ...
@overload
def rle_area(masks: Sequence[RleLike]) -> NDArray[np.int64]: ...
def rle_area(masks: RleLike | Sequence[RleLike]) -> int | NDArray[np.int64]:
    """The number of pixels inside: an int for one mask, int64 [N] for a sequence.

    Raises:
        ValueError: Counts are malformed.
    """
    batch = _batch(masks, "rle_area")
    areas = _core.rle_area(batch.runs, batch.offsets)
    return int(areas[0]) if isinstance(masks, Mapping) else areas


def rle_bbox(masks: RleLike | Sequence[RleLike]) -> NDArray[np.float64]:
    """The smallest box around the pixels inside, x, y, width, height in pixels; zeros for an empty mask.

    Returns:
        float64 [4] for one mask, [N, 4] for a sequence.

    Raises:
        ValueError: Counts are malformed.
    """
    batch = _batch(masks, "rle_bbox")
    boxes = _core.rle_bbox(batch.runs, batch.offsets, batch.sizes)
    return boxes[0] if isinstance(masks, Mapping) else boxes


def rle_iou(
    detections: Sequence[RleLike],
    ground_truth: Sequence[RleLike],
    is_crowd: ArrayLike | None = None,
    *,
    threads: int | None = None,
) -> NDArray[np.float64]:
    """Intersection over union of every detection with every true mask.

    Args:
        detections: D masks.
        ground_truth: G masks of the same size.
        is_crowd: [G], true where a mask is a crowd region: there the intersection is divided by the detection's own
            area (COCO's rule). None for none.
        threads: None for all cores.

    Returns:
        float64 [D, G] in 0..1; 0 for two empty masks.

    Raises:
        ValueError: Counts are malformed, sizes differ, or `is_crowd` has another length.
    """
    found, truth = _batch(list(detections), "rle_iou"), _batch(list(ground_truth), "rle_iou")
    height, width = _one_size("rle_iou", found, truth)
    count = len(truth.sizes)
    crowd = np.zeros(count, np.uint8) if is_crowd is None else (np.asarray(is_crowd) != 0).astype(np.uint8)
    return _core.rle_iou(
        found.runs, found.offsets, truth.runs, truth.offsets, crowd, height, width, _core_threads(threads)
    )


def rle_merge(masks: Sequence[RleLike], intersect: bool = False) -> Rle:
    """The union of at least one mask of one size, or with `intersect` what is common to all.

    Raises:
        ValueError: There are no masks, counts are malformed, or sizes differ.
    """
    batch = _batch(list(masks), "rle_merge")
    if len(batch.sizes) == 0:
        raise ValueError("rle_merge: at least one mask is needed, got none")
    height, width = _one_size("rle_merge", batch)
    return _mask(_core.rle_merge(batch.runs, batch.offsets, intersect), height, width)


def rle_from_polygons(
    polygons: Sequence[ArrayLike], height: int, width: int, *, fill: Literal["union", "evenodd"] = "union"
) -> Rle:
    """One mask of the polygons of one object, with the very pixels that pycocotools gives.

    Args:
        polygons: Rings of at least three points, each [n, 2] or flat [x0, y0, x1, y1, ...], in pixels (the centre of
            the first pixel is at 0.5, 0.5), closed by themselves; finite, at most 2^24 in size. What lies outside the
            image is cut off. No polygons give an empty mask.
        height: Of the image.
        width: Of the image.
        fill: "union", the meaning of several polygons in a COCO annotation; "evenodd" for rings among which are holes,
            as `rle_to_polygons` gives them.

    Raises:
        ValueError: A polygon has an odd number of coordinates or fewer than three points, or a coordinate is not
            finite or too large.
    """
    if fill not in ("union", "evenodd"):
        raise ValueError(f'rle_from_polygons: fill must be "union" or "evenodd", got {fill!r}')
    rings = [_ring(polygon, i) for i, polygon in enumerate(polygons)]
    return _from_rings(rings, height, width, fill == "evenodd")


def rle_from_boxes(boxes: ArrayLike, height: int, width: int) -> list[Rle]:
    """Masks of boxes [N, 4] of x, y, width, height (COCO's order) in pixels, cut off at the image.

    Raises:
        ValueError: `boxes` has another shape, or a coordinate is not finite or larger than 2^24.
    """
    array = np.asarray(boxes, np.float64)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"rle_from_boxes: boxes must be [N, 4], got {list(array.shape)}")
    left, top = array[:, 0], array[:, 1]
    right, bottom = left + array[:, 2], top + array[:, 3]
    corners = np.stack([left, top, left, bottom, right, bottom, right, top], axis=1).reshape(-1, 4, 2)
    return [_from_rings([ring], height, width, False) for ring in corners]


def rle_from_counts(counts: ArrayLike, height: int, width: int) -> Rle:
    """The compressed mask of an uncompressed list of runs, column by column, the first of them zeros.

    The runs are kept as they are, canonical or not (as pycocotools does).

    Raises:
        ValueError: They are not integers >= 0 that add up to height * width.
    """
    runs = _runs_of_list(counts)
    _core.rle_check(runs, *_checked_size("rle_from_counts", [height, width]))
    return _mask(runs, height, width)


def rle_to_counts(mask: RleLike) -> list[int]:
    """The runs of a mask as a list: what COCO JSON holds for crowd regions.

    Raises:
        ValueError: Counts are malformed.
    """
    runs: list[int] = _batch(mask, "rle_to_counts").runs.tolist()
    return runs


def rle_to_polygons(mask: RleLike) -> list[NDArray[np.float64]]:
    """The outlines of a mask along the edges of its pixels, holes as rings of their own.

    Each ring holds its corners only and is not closed by a repeated point. With y downwards, outer rings run clockwise
    as seen, so that their shoelace sum is positive, and holes counter-clockwise: the signed areas add up to the area of
    the mask. Pixels that touch only at a corner belong to different rings.
    `rle_from_polygons(rings, height, width, fill="evenodd")` gives the same mask again.

    Returns:
        float64 [n, 2] rings of x, y in pixels, whole numbers, ordered by their leftmost edge.

    Raises:
        ValueError: Counts are malformed.
    """
    batch = _batch(mask, "rle_to_polygons")
    height, width = _one_size("rle_to_polygons", batch)
    return rings_of_runs(batch.runs, height, width)


def masks_of_runs(runs: NDArray[np.uint32], offsets: NDArray[np.int64], height: int, width: int) -> list[Rle]:
    """Masks of one size, from the arrays of the core."""
    return [{"size": [height, width], "counts": counts} for counts in _core.rle_to_strings(runs, offsets)]


def rings_of_runs(runs: NDArray[np.uint32], height: int, width: int) -> list[NDArray[np.float64]]:
    """`rle_to_polygons`, from the runs of one mask."""
    points, offsets = _core.rle_to_polygons(runs, height, width)
    ends = offsets.tolist()
    return [points[begin:end] for begin, end in pairwise(ends)]


def _mask(runs: NDArray[np.uint32], height: int, width: int) -> Rle:
    return masks_of_runs(runs, np.array([0, len(runs)], np.int64), height, width)[0]


def _from_rings(rings: Sequence[NDArray[np.float64]], height: int, width: int, even_odd: bool) -> Rle:
    height, width = _checked_size("rle_from_polygons", [height, width])
    points = np.concatenate(rings) if rings else np.zeros((0, 2))
    offsets = np.cumsum([0, *(len(ring) for ring in rings)], dtype=np.int64)
    return _mask(_core.rle_from_polygons(points, offsets, height, width, even_odd), height, width)


def _ring(polygon: ArrayLike, index: int) -> NDArray[np.float64]:
    try:
        array = np.asarray(polygon, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"rle_from_polygons: polygon {index} is not a list of numbers: {error}") from error
    is_flat = array.ndim == 1 and array.size % 2 == 0
    if not is_flat and not (array.ndim == 2 and array.shape[1] == 2):
        raise ValueError(
            f"rle_from_polygons: polygon {index} must be [n, 2] or flat with an even number of coordinates, "
            f"got {list(array.shape)}"
        )
    if array.size < 6:
        raise ValueError(f"rle_from_polygons: polygon {index} must have at least 3 points, got {array.size // 2}")
    return array.reshape(-1, 2)


def _runs_of_list(counts: ArrayLike) -> NDArray[np.uint32]:
    try:
        values = np.asarray(counts)
        if values.size == 0:
            return np.zeros(0, np.uint32)
        valid = values.ndim == 1 and values.dtype.kind in "iu" and bool(((values >= 0) & (values <= _MAX_PIXELS)).all())
    except (ValueError, OverflowError):
        valid = False
    if not valid:
        raise ValueError("rle: counts must be bytes, str or a list of integers in 0..2^32-1")
    return values.astype(np.uint32)


def _checked_size(op: str, size: Any) -> tuple[int, int]:
    try:
        height, width = size
        is_valid = height == int(height) and width == int(width) and min(height, width) >= 0
        is_valid = is_valid and height * width <= _MAX_PIXELS and max(height, width) <= _MAX_PIXELS
    except (TypeError, ValueError, OverflowError):
        is_valid = False
    if not is_valid:
        raise ValueError(f"{op}: size must be whole [height, width] of at most 2^32 - 1 pixels, got {size!r}")
    return int(height), int(width)


def _batch(masks: RleLike | Sequence[RleLike], op: str) -> _Batch:
    items = [masks] if isinstance(masks, Mapping) else masks
    sizes: list[tuple[int, int]] = []
    strings: list[bytes] = []
    for i, mask in enumerate(items):
        if not isinstance(mask, Mapping) or "size" not in mask or "counts" not in mask:
            raise ValueError(f'{op}: mask {i} must be a dictionary with "size" and "counts", got {mask!r:.80}')
        size, counts = _checked_size(op, mask["size"]), mask["counts"]
        if isinstance(counts, str):
            if not counts.isascii():
                raise ValueError(f"{op}: the counts of mask {i} must hold characters from '0' to 'o'")
            counts = counts.encode("ascii")
        elif not isinstance(counts, bytes):
            runs = _runs_of_list(counts)
            _core.rle_check(runs, *size)
            counts = _core.rle_to_strings(runs, np.array([0, len(runs)], np.int64))[0]
        sizes.append(size)
        strings.append(counts)
    size_array = np.array(sizes, np.int64).reshape(-1, 2)
    runs, offsets = _core.rle_from_strings(strings, size_array)
    return _Batch(runs, offsets, size_array)


def _one_size(op: str, *batches: _Batch) -> tuple[int, int]:
    sizes = np.concatenate([batch.sizes for batch in batches])
    if len(sizes) == 0:
        return 0, 0
    different = np.flatnonzero((sizes != sizes[0]).any(axis=1))
    if len(different):
        raise ValueError(f"{op}: masks must have one size, got {sizes[0].tolist()} and {sizes[different[0]].tolist()}")
    return int(sizes[0, 0]), int(sizes[0, 1])


def _core_threads(threads: int | None) -> int:
    return threads or 0
