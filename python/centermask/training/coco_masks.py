"""The two forms of a mask in COCO JSON, checked: polygons, and run lengths (RLE)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from centermask import ops


class BadMask(Exception):
    """A segmentation that cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Bitmap:
    """A mask cut to its bounding box, eight pixels to a byte.

    Attributes:
        x: Column of the cut's left edge in the image.
        y: Row of its top edge.
        width: Columns of the cut.
        bits: uint8 [height, ceil(width / 8)] as `numpy.packbits` gives them.
    """

    x: int
    y: int
    width: int
    bits: NDArray[np.uint8]

    def unpack(self) -> NDArray[np.uint8]:
        """uint8 [height, width] of 0 and 1."""
        return np.unpackbits(self.bits, axis=1, count=self.width)


def read_rings(value: object) -> tuple[NDArray[np.float64], ...]:
    """A segmentation of polygons.

    Args:
        value: A list of flat lists x, y, x, y, ...; a single flat list is understood as well.

    Returns:
        float64 [n, 2] each; degenerate ones are dropped.

    Raises:
        BadMask: Nothing usable is left.
    """
    if not isinstance(value, list) or not value:
        raise BadMask("it has no segmentation")
    if all(isinstance(v, (int, float)) for v in value):
        value = [value]  # one ring without its outer list, as some tools write it
    rings = []
    cause = "its polygons are degenerate (fewer than 3 points, or no area)"
    for flat in value:
        try:
            points = np.asarray(flat, dtype=np.float64)
        except (TypeError, ValueError):
            cause = "its polygons hold something that is no number"
            continue
        if points.ndim != 1 or points.size % 2:
            cause = "a polygon must be a flat list x, y, x, y, ..."
            continue
        if not np.isfinite(points).all():
            cause = "its polygons hold NaN or infinite coordinates"
            continue
        ring = points.reshape(-1, 2)
        if len(ring) >= 3 and ring_area(ring) > 0:
            ring.flags.writeable = False
            rings.append(ring)
    if not rings:
        raise BadMask(cause)
    return tuple(rings)


def ring_area(ring: NDArray[np.float64]) -> float:
    """Area inside a simple ring, float64 [n, 2], in square pixels (the shoelace formula)."""
    # Relative to the first point: far from the origin the products would lose the area of a small ring.
    x, y = (ring - ring[0]).T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def read_rle(value: Mapping[str, Any], width: int, height: int) -> tuple[ops.Rle, Bitmap, float]:
    """A segmentation of run lengths, compressed or not.

    Args:
        value: `{"size": [H, W], "counts": ...}`.
        width: Of the picture.
        height: Of the picture.

    Returns:
        The compressed form, the bitmap, and the area in pixels.

    Raises:
        BadMask: It is of another size, malformed or empty.
    """
    size = value.get("size")
    if not isinstance(size, (list, tuple)) or list(size) != [height, width]:
        raise BadMask(f"its RLE is of size {size!r:.40}, the picture is [{height}, {width}]")
    counts = value.get("counts")
    try:
        if isinstance(counts, list):
            rle = ops.rle_from_counts(counts, height, width)
        elif isinstance(counts, (str, bytes)):
            data = counts.encode("ascii") if isinstance(counts, str) else counts
            rle = ops.Rle(size=[height, width], counts=data)
        else:
            raise BadMask("its RLE has no counts")
        x, y, w, h = (int(v) for v in ops.rle_bbox(rle))
        if not w or not h:
            raise BadMask("its RLE is empty")
        cut = ops.rle_decode(rle)[y : y + h, x : x + w]
    except (ValueError, TypeError, OverflowError) as error:
        raise BadMask(f"its RLE cannot be decoded: {error}") from error
    return rle, Bitmap(x, y, w, np.packbits(cut, axis=1)), float(np.count_nonzero(cut))


def extent(rings: Sequence[NDArray[np.float64]], bitmap: Bitmap | None) -> tuple[float, float, float, float]:
    """x, y, width, height around a mask, in image pixels."""
    if bitmap is not None:
        return float(bitmap.x), float(bitmap.y), float(bitmap.width), float(len(bitmap.bits))
    points = np.concatenate(rings)
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    return float(x0), float(y0), float(x1 - x0), float(y1 - y0)
