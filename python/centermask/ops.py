"""The operations of the core: NumPy (or any CPU tensor that speaks DLPack) in, NumPy out. No torch."""

from __future__ import annotations

from centermask._ops_decode import Centers, decode_centers, gather_patches, preprocess
from centermask._ops_deform import PackedDeformConv2d, deform_conv2d, deform_conv2d_backward
from centermask._ops_masks import assemble_masks
from centermask._ops_rle import (
    Rle,
    RleLike,
    rle_area,
    rle_bbox,
    rle_decode,
    rle_encode,
    rle_from_boxes,
    rle_from_counts,
    rle_from_polygons,
    rle_iou,
    rle_merge,
    rle_to_counts,
    rle_to_polygons,
)

__all__ = [
    "Centers",
    "PackedDeformConv2d",
    "Rle",
    "RleLike",
    "assemble_masks",
    "decode_centers",
    "deform_conv2d",
    "deform_conv2d_backward",
    "gather_patches",
    "preprocess",
    "rle_area",
    "rle_bbox",
    "rle_decode",
    "rle_encode",
    "rle_from_boxes",
    "rle_from_counts",
    "rle_from_polygons",
    "rle_iou",
    "rle_merge",
    "rle_to_counts",
    "rle_to_polygons",
]
