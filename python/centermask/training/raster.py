"""Masks under an affine map: polygons filled exactly, bitmaps warped, both then averaged onto the stride-4 cells.

Frame: continuous coordinates, pixel centres at half-integers. A pixel belongs to a polygon if its centre lies inside.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from centermask.config import STRIDE

Window = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels, half-open."""


def fill_rings(rings: Sequence[NDArray[np.float64]], window: Window) -> NDArray[np.uint8]:
    """The union of the rings' interiors (each by the even-odd rule) on the pixels of a window.

    `cv2.fillPoly` also paints every pixel that the outline touches, which makes small objects a pixel too large;
    this follows pycocotools to within its rounding of the outline to fifths of a pixel.

    Args:
        rings: float64 [n, 2] each, closed by itself, in the frame of the window.
        window: The pixels that are wanted.

    Returns:
        uint8 [y1 - y0, x1 - x0] of 0 and 1.
    """
    x0, y0, x1, y1 = window
    width, height = x1 - x0, y1 - y0
    filled: NDArray[np.uint8] | None = None
    for ring in rings:
        begin = ring - (x0 + 0.5, y0 + 0.5)  # now the pixel centres are at the integers
        end = np.roll(begin, -1, axis=0)
        top, bottom = np.minimum(begin[:, 1], end[:, 1]), np.maximum(begin[:, 1], end[:, 1])
        first = np.clip(np.ceil(top), 0, height).astype(np.int64)
        count = np.clip(np.ceil(bottom), 0, height).astype(np.int64) - first
        edge = np.repeat(np.arange(len(ring)), count)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count - first, count)
        begin, end = begin[edge], end[edge]
        # Multiplied first, so that whole numbers stay exact; no 0/0, as a level edge crosses no row.
        across = (row - begin[:, 1]) * (end[:, 0] - begin[:, 0]) / (end[:, 1] - begin[:, 1])
        crossing = begin[:, 0] + across
        column = np.clip(np.ceil(crossing), 0, width).astype(np.int64)
        # Each row is crossed an even number of times, so a change at its end (column == width) may as well stand
        # at the start of the next row: one long accumulation does for all rows.
        changes = np.bincount(row * width + column, minlength=width * height + 1)[: width * height]
        part = np.bitwise_xor.accumulate(changes.astype(np.uint8) & 1).reshape(height, width)
        filled = part if filled is None else filled | part
    return np.zeros((height, width), np.uint8) if filled is None else filled


def warp_bitmap(bits: NDArray[np.uint8], matrix: NDArray[np.float64], window: Window) -> NDArray[np.uint8]:
    """A mask of 0 and 1 under an affine map: bilinear, 0 outside, inside where the value is at least one half.

    Args:
        bits: uint8 [h, w] of 0 and 1.
        matrix: float64 [2, 3]: from the bitmap's own frame to that of the window.
        window: The pixels that are wanted.

    Returns:
        uint8 [y1 - y0, x1 - x0] of 0 and 1.
    """
    x0, y0, x1, y1 = window
    shifted = matrix.copy()
    shifted[:, 2] -= (x0, y0)
    size = (x1 - x0, y1 - y0)
    warped = cv2.warpAffine(bits * np.uint8(255), pixel_index_matrix(shifted), size, flags=cv2.INTER_LINEAR)
    inside: NDArray[np.uint8] = (warped >= 128).astype(np.uint8)
    return inside


def pixel_index_matrix(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same map for OpenCV, which puts pixel centres at the integers."""
    result: NDArray[np.float64] = matrix.copy()
    result[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    return result


def cell_coverage(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The covered share of each 4x4 block.

    Args:
        mask: uint8 [h, w] of 0 and 1, h and w multiples of 4.

    Returns:
        uint8 [h / 4, w / 4], 0..255.
    """
    height, width = mask.shape
    size = (width // STRIDE, height // STRIDE)
    averaged: NDArray[np.uint8] = np.asarray(
        cv2.resize(mask * np.uint8(255), size, interpolation=cv2.INTER_AREA), dtype=np.uint8
    )
    return averaged
