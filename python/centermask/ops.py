"""The operations of the core on NumPy arrays or DLPack CPU tensors. Needs NumPy alone."""

from __future__ import annotations

from centermask._ops_deform import PackedDeformConv2d, deform_conv2d, deform_conv2d_backward

__all__ = [
    "PackedDeformConv2d",
    "deform_conv2d",
    "deform_conv2d_backward",
]
