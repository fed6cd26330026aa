"""Object sizes against the stride of the heatmap: what a CenterNet cannot tell apart, at the input sizes people use."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from centermask.config import STRIDE

INPUT_SIZES = (256, 320, 384, 512, 640, 768, 1024)
"""Longest side of the input."""

_SMALL, _MEDIUM = 32**2, 96**2


class SizeTally:
    """Counts over all pictures, for each of `INPUT_SIZES`."""

    def __init__(self) -> None:
        self.objects = 0
        self.by_area: Counter[str] = Counter()
        self.below_cell = dict.fromkeys(INPUT_SIZES, 0)
        self.collisions = dict.fromkeys(INPUT_SIZES, 0)
        self.most_in_picture = 0

    def add(self, boxes: NDArray[np.float64], labels: NDArray[np.int64], width: int, height: int) -> None:
        """Adds the objects of one picture.

        Args:
            boxes: float64 [n, 4], x, y, width, height in pixels.
            labels: int64 [n].
            width: Of the picture.
            height: Likewise.
        """
        n = len(boxes)
        self.objects += n
        self.most_in_picture = max(self.most_in_picture, n)
        areas = boxes[:, 2] * boxes[:, 3]
        self.by_area["small"] += int((areas < _SMALL).sum())
        self.by_area["medium"] += int(((areas >= _SMALL) & (areas < _MEDIUM)).sum())
        self.by_area["large"] += int((areas >= _MEDIUM).sum())
        for size in INPUT_SIZES:
            scale = size / max(width, height)
            self.below_cell[size] += int((boxes[:, 2:].min(axis=1, initial=np.inf) * scale < STRIDE).sum())
            cells = np.floor((boxes[:, :2] + boxes[:, 2:] / 2) * scale / STRIDE).astype(np.int64)
            self.collisions[size] += n - len(np.unique(np.column_stack([labels, cells]), axis=0)) if n else 0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "objects": self.objects,
            "most_in_a_picture": self.most_in_picture,
            "by_area": {name: self.by_area[name] for name in ("small", "medium", "large")},
            "stride": STRIDE,
            "below_one_cell": {str(size): self.below_cell[size] for size in INPUT_SIZES},
            "colliding_centers": {str(size): self.collisions[size] for size in INPUT_SIZES},
        }


def center_heatmap(boxes: NDArray[np.float64], shape: tuple[int, int], scale: float = 1.0) -> NDArray[np.float32]:
    """What the network is to find: a Gaussian for each object, with CornerNet's radius (arXiv 1808.01244) at IoU 0.7.

    The same numbers as `training.targets.heatmap_targets` draws for one class, without torch.

    Args:
        boxes: float64 [n, 4], xyxy in pixels.
        shape: (height, width) of the map in cells.
        scale: Pixels of the input to a pixel of the boxes.

    Returns:
        float32 [height, width], 0..1.
    """
    height, width = shape
    heatmap = np.zeros(shape, np.float32)
    for x0, y0, x1, y1 in (np.asarray(boxes, np.float64) * (scale / STRIDE)).tolist():
        radius = math.floor(corner_radius(math.ceil(x1 - x0), math.ceil(y1 - y0)))
        sigma = (2 * radius + 1) / 6
        x = min(max(math.floor((x0 + x1) / 2), 0), width - 1)
        y = min(max(math.floor((y0 + y1) / 2), 0), height - 1)
        columns = np.arange(max(x - radius, 0), min(x + radius + 1, width))
        rows = np.arange(max(y - radius, 0), min(y + radius + 1, height))
        bump = np.exp(-((rows - y)[:, None] ** 2 + (columns - x)[None, :] ** 2) / (2 * sigma**2))
        part = heatmap[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        np.maximum(part, bump, out=part, casting="same_kind")
    return heatmap


def corner_radius(width: float, height: float) -> float:
    """CornerNet's radius at IoU 0.7 for a box in cells, with its roots' missing division by 2a."""
    overlap, total, area = 0.7, width + height, width * height
    cases = (
        (1.0, total, area * (1 - overlap) / (1 + overlap)),
        (4.0, 2 * total, area * (1 - overlap)),
        (4.0 * overlap, -2 * overlap * total, (overlap - 1) * area),
    )
    return max(min((b + math.sqrt(max(b * b - 4 * a * c, 0.0))) / 2 for a, b, c in cases), 0.0)
