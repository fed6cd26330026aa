"""Boundary AP: masks judged by how well their outlines agree (Cheng et al. 2021, arXiv 2103.16562). Needs pycocotools.

Mask IoU forgives a large object a loose outline. Boundary IoU compares only what lies within a distance of the
outlines, 2 % of the image's diagonal; the smaller of both decides a match.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_api
from pycocotools.cocoeval import COCOeval

from centermask import ops

DILATION = 0.02
"""Width of the boundary as a share of the image's diagonal."""


def boundary_of(rle: ops.RleLike) -> ops.Rle:
    """The part of a mask that lies within the boundary's width of its outline; the picture's edge is outline, too.

    Args:
        rle: The mask, compressed.
    """
    bitmap = np.asarray(ops.rle_decode(rle), np.uint8)
    distance = max(1, round(DILATION * math.hypot(*bitmap.shape)))
    x, y, w, h = (int(value) for value in ops.rle_bbox(rle))
    if w and h:
        # Beyond its box a mask has nothing to erode; one row of zeros around is the outside.
        cut = cv2.copyMakeBorder(bitmap[y : y + h, x : x + w], 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        side = 2 * distance + 1
        core = np.asarray(cv2.erode(cut, np.ones((side, side), np.uint8)), np.uint8)
        bitmap[y : y + h, x : x + w] -= core[1:-1, 1:-1]
    boundary: ops.Rle = ops.rle_encode(bitmap)
    return boundary


class BoundaryEvaluation(COCOeval):  # type: ignore[misc]
    """COCO's evaluation of masks with the smaller of mask IoU and boundary IoU; crowd regions have no boundary."""

    def computeIoU(self, image_id: Any, category_id: Any) -> Any:
        """IoU [results by falling score, annotations] of one picture and category, as pycocotools asks for it."""
        overlaps = super().computeIoU(image_id, category_id)
        if len(overlaps) == 0:
            return overlaps
        truth, found = self._gts[image_id, category_id], self._dts[image_id, category_id]
        order = np.argsort([-row["score"] for row in found], kind="mergesort")[: self.params.maxDets[-1]]
        crowd = np.array([int(row["iscrowd"]) for row in truth])
        edges = mask_api.iou(
            [boundary_of(found[i]["segmentation"]) for i in order],
            [boundary_of(row["segmentation"]) for row in truth],
            crowd.tolist(),
        )
        return np.where(crowd[None] > 0, overlaps, np.minimum(overlaps, edges))
