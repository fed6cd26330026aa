"""One annotation: what is wrong with its mask and its box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from centermask import ops
from centermask.training.coco_masks import BadMask, read_rings, ring_area

Box = tuple[float, float, float, float]

OUTSIDE = 1.0
"""Pixels by which a mask may reach out of the picture: tools round differently."""
BOX_OFF = 2.0
"""Pixels by which a side of a box may miss its mask; or this share of the side:"""
BOX_OFF_SHARE = 0.05
TINY = 4.0

_CROSSING_BLOCK = 256
_CROSSING_LARGEST = 4000


class Checked(NamedTuple):
    """The outcome.

    Attributes:
        defects: (kind of `findings.KINDS`, detail).
        box: x, y, width, height around the usable mask, or the box itself; None if there is neither.
        rings: float64 [n, 2] of a polygon mask.
        rle: Of an RLE mask.
        area: Of the mask, in square pixels.
    """

    defects: list[tuple[str, str]]
    box: Box | None
    rings: tuple[NDArray[np.float64], ...]
    rle: ops.Rle | None
    area: float


def check(row: Mapping[str, Any], width: int, height: int) -> Checked:
    """Checks one annotation row.

    Args:
        row: In COCO's form, in pixels.
        width: Of the picture, in the annotations' frame.
        height: Likewise.
    """
    defects: list[tuple[str, str]] = []
    box = _box(row, defects)
    segmentation = row.get("segmentation")
    rings: tuple[NDArray[np.float64], ...] = ()
    rle: ops.Rle | None = None
    extent: Box | None = None
    area = 0.0
    if segmentation in (None, [], {}):
        defects.append(("mask-missing", "it has no segmentation"))
    elif isinstance(segmentation, dict):
        rle, extent, area = _rle(segmentation, width, height, defects)
    else:
        try:
            rings = read_rings(segmentation)
        except BadMask as bad:
            defects.append(("mask-broken", str(bad)))
        else:
            extent, area = _polygons(segmentation, rings, width, height, defects)
    if extent is not None:
        outside = _outside(extent, width, height)
        x, y, w, h = extent
        if x >= width or y >= height or x + w <= 0 or y + h <= 0:
            defects.append(("mask-outside", f"its mask lies outside the {width}x{height} picture, at {_text(extent)}"))
            extent = None
        elif outside > OUTSIDE:
            defects.append(("mask-partly-outside", f"its mask reaches {outside:.0f} px out of the picture"))
        if box is not None:
            off = _box_off(box, extent or (x, y, w, h))
            if off is not None:
                defects.append(
                    ("box-mask", f"its box {_text(box)} is {off:.0f} px off its mask's {_text((x, y, w, h))}")
                )
        if extent is not None and 0 < area < TINY:
            defects.append(("object-tiny", f"its mask has {area:.1f} square pixels"))
    return Checked(defects, extent or box, rings, rle, area)


def _box(row: Mapping[str, Any], defects: list[tuple[str, str]]) -> Box | None:
    if "bbox" not in row:
        return None
    value = row["bbox"]
    numbers = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 4
    numbers = numbers and all(isinstance(v, (int, float)) and abs(v) < 1e9 for v in value)
    if not numbers:
        defects.append(("box-broken", f"its box is {value!r:.60}, not 4 finite numbers"))
        return None
    x, y, w, h = (float(v) for v in value)
    if not (w > 0 and h > 0):
        defects.append(("box-broken", f"its box {value!r:.60} has no area"))
        return None
    return x, y, w, h


def _rle(
    value: Mapping[str, Any], width: int, height: int, defects: list[tuple[str, str]]
) -> tuple[ops.Rle | None, Box | None, float]:
    size, counts = value.get("size"), value.get("counts")
    if not isinstance(size, list) or size != [height, width]:
        defects.append(("mask-broken", f"its RLE is of size {size!r:.40}, the picture is [{height}, {width}]"))
        return None, None, 0.0
    try:
        if isinstance(counts, list):
            rle = ops.rle_from_counts(counts, height, width)
        elif isinstance(counts, str):
            rle = ops.Rle(size=[height, width], counts=counts.encode("ascii"))
        else:
            defects.append(("mask-broken", "its RLE has no counts"))
            return None, None, 0.0
        x, y, w, h = (float(v) for v in ops.rle_bbox(rle))
        area = float(ops.rle_area(rle))
    except (ValueError, TypeError, OverflowError) as error:
        defects.append(("mask-broken", f"its RLE cannot be decoded: {error}"))
        return None, None, 0.0
    if not w or not h:
        defects.append(("mask-broken", "its RLE is empty"))
        return None, None, 0.0
    return rle, (x, y, w, h), area


def _polygons(
    value: Sequence[Any],
    rings: Sequence[NDArray[np.float64]],
    width: int,
    height: int,
    defects: list[tuple[str, str]],
) -> tuple[Box, float]:
    listed = 1 if all(isinstance(v, (int, float)) for v in value) else len(value)
    if listed > len(rings):
        defects.append(("polygon-degenerate", f"polygons that are not usable: {listed - len(rings)} of {listed}"))
    crossing = sum(crosses_itself(ring) for ring in rings)
    if crossing:
        defects.append(("polygon-crossing", f"polygons that cross themselves: {crossing} of {listed}"))
    points = np.concatenate(rings)
    (x0, y0), (x1, y1) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return (x0, y0, x1 - x0, y1 - y0), float(sum(ring_area(ring) for ring in rings))


def crosses_itself(ring: NDArray[np.float64]) -> bool:
    """Whether two sides of a closed ring, float64 [n, 2], cross properly (touching does not count).

    Two segments cross if the ends of each lie on different sides of the other. Rings of more than 4000 points are
    not looked at: such come from bitmaps.
    """
    n = len(ring)
    if n < 4 or n > _CROSSING_LARGEST:
        return False
    start, end = ring, np.roll(ring, -1, axis=0)
    step = end - start

    def side(first: slice) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of each point of all, to each side of `first`; and of its next point."""
        relative = start[None, :, :] - start[first, None, :]
        cross = step[first, 0, None] * relative[..., 1] - step[first, 1, None] * relative[..., 0]
        return cross, np.roll(cross, -1, axis=1)

    for begin in range(0, n, _CROSSING_BLOCK):
        rows = slice(begin, min(begin + _CROSSING_BLOCK, n))
        here, there = side(rows)
        # The ends of side i against side j: the same quantity with the roles exchanged.
        relative = start[rows, None, :] - start[None, :, :]
        other_start = step[None, :, 0] * relative[..., 1] - step[None, :, 1] * relative[..., 0]
        relative = end[rows, None, :] - start[None, :, :]
        other_end = step[None, :, 0] * relative[..., 1] - step[None, :, 1] * relative[..., 0]
        if bool(((here * there < 0) & (other_start * other_end < 0)).any()):
            return True
    return False


def _outside(extent: Box, width: int, height: int) -> float:
    x, y, w, h = extent
    return max(-x, -y, x + w - width, y + h - height)


def _box_off(box: Box, mask: Box) -> float | None:
    """The largest distance between sides, if it is more than may be."""
    ours = np.array([box[0], box[1], box[0] + box[2], box[1] + box[3]])
    theirs = np.array([mask[0], mask[1], mask[0] + mask[2], mask[1] + mask[3]])
    allowed = np.maximum(BOX_OFF, BOX_OFF_SHARE * np.array([mask[2], mask[3], mask[2], mask[3]]))
    off = np.abs(ours - theirs)
    return float(off.max()) if bool((off > allowed).any()) else None


def _text(box: Box) -> str:
    return "[" + ", ".join(f"{value:.0f}" for value in box) + "]"
