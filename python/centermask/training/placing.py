"""Annotations under an affine map: which pixels each object still shows, and the box around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from centermask.config import STRIDE
from centermask.training.coco_masks import ring_area
from centermask.training.coco_reader import Annotation
from centermask.training.raster import Window, cell_coverage, fill_rings, warp_bitmap


@dataclass(frozen=True, slots=True)
class PlacedObject:
    """The visible part of one object, in input pixels.

    Attributes:
        label: Of the annotation.
        ignore: Of the annotation.
        box: float64 [4], xyxy, tight around the visible part.
        visible: Share of the object's area that is visible.
        window: Where `mask` lies; its sides are multiples of 4.
        mask: uint8 of 0 and 1, of the window's size.
    """

    label: int
    ignore: bool
    box: NDArray[np.float64]
    visible: float
    window: Window
    mask: NDArray[np.uint8]


def place(annotation: Annotation, matrix: NDArray[np.float64], frame: Window) -> PlacedObject | None:
    """One annotation under an affine map.

    Args:
        annotation: In its image's frame.
        matrix: float64 [2, 3], `image_to_input`.
        frame: The visible part of the input; its sides are multiples of 4.

    Returns:
        None if it shows no pixel inside the frame.
    """
    bitmap = annotation.bitmap
    rings: list[NDArray[np.float64]] = []
    if bitmap is None:
        rings = [ring @ matrix[:, :2].T + matrix[:, 2] for ring in annotation.rings]
        points = np.concatenate(rings)
    else:
        points = rectangle(bitmap.x, bitmap.y, bitmap.width, len(bitmap.bits)) @ matrix[:, :2].T + matrix[:, 2]
    low, high = points.min(axis=0), points.max(axis=0)
    first, last = np.array(frame[:2]), np.array(frame[2:])
    x0, y0 = (np.floor(low / STRIDE) * STRIDE).clip(first, last).astype(int).tolist()
    x1, y1 = (np.ceil(high / STRIDE) * STRIDE).clip(first, last).astype(int).tolist()
    if x0 >= x1 or y0 >= y1:
        return None
    window = (x0, y0, x1, y1)
    bits = None if bitmap is None else bitmap.unpack()
    if bitmap is None or bits is None:
        mask = fill_rings(rings, window)
    else:
        own = matrix.copy()
        own[:, 2] += matrix[:, :2] @ (bitmap.x, bitmap.y)
        mask = warp_bitmap(bits, own, window)
    seen = _pixel_box(mask, window)
    if seen is None:
        return None
    # The pixels give the box to within half a pixel on each side; the outline, where it is not cut off, exactly.
    box = np.concatenate([low, high]).clip(seen - 0.5, seen + 0.5).clip([*first, *first], [*last, *last])
    visible = 1.0
    if (low < first).any() or (high > last).any():
        # Not the JSON's own area: that one follows no common rule.
        if bits is None:
            whole = sum(map(ring_area, rings))
        else:
            whole = np.count_nonzero(bits) * abs(float(np.linalg.det(matrix[:, :2])))
        visible = min(1.0, float(np.count_nonzero(mask)) / max(whole, 1e-9))
    return PlacedObject(annotation.label, annotation.ignore, box, visible, window, mask)


def cover(item: PlacedObject, window: Window, mask: NDArray[np.uint8]) -> PlacedObject | None:
    """What is left of an object when something lies over it.

    Args:
        item: The object below.
        window: Where the cover lies.
        mask: uint8 of 0 and 1, of that window's size.

    Returns:
        The object itself if they do not meet, None if nothing is left.
    """
    x0, y0 = max(item.window[0], window[0]), max(item.window[1], window[1])
    x1, y1 = min(item.window[2], window[2]), min(item.window[3], window[3])
    if x0 >= x1 or y0 >= y1:
        return item
    above = mask[y0 - window[1] : y1 - window[1], x0 - window[0] : x1 - window[0]]
    left = item.mask.copy()
    part = left[y0 - item.window[1] : y1 - item.window[1], x0 - item.window[0] : x1 - item.window[0]]
    part &= 1 - above
    seen = _pixel_box(left, item.window)
    if seen is None:
        return None
    share = np.count_nonzero(left) / np.count_nonzero(item.mask)
    if share == 1:
        return item
    # A side that is still the old one keeps its exact place.
    return replace(item, box=item.box.clip(seen - 0.5, seen + 0.5), visible=item.visible * share, mask=left)


def stack(placed: Sequence[PlacedObject], cells: int) -> NDArray[np.uint8]:
    """The covered share of each stride-4 cell, uint8 [n, cells, cells]."""
    result = np.zeros((len(placed), cells, cells), dtype=np.uint8)
    for plane, item in zip(result, placed, strict=True):
        x0, y0, x1, y1 = item.window
        plane[y0 // STRIDE : y1 // STRIDE, x0 // STRIDE : x1 // STRIDE] = cell_coverage(item.mask)
    return result


def rectangle(x: float, y: float, width: float, height: float) -> NDArray[np.float64]:
    """The four corners, float64 [4, 2]."""
    return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], dtype=np.float64)


def _pixel_box(mask: NDArray[np.uint8], window: Window) -> NDArray[np.float64] | None:
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return None
    x0, y0 = window[:2]
    return np.array([x0 + columns[0], y0 + rows[0], x0 + columns[-1] + 1, y0 + rows[-1] + 1], dtype=np.float64)
