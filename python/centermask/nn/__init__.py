"""PyTorch modules. Importing this package needs torch."""

from __future__ import annotations

from centermask.nn.deform_conv import DeformConv2d, DeformConvPack, deform_conv2d

__all__ = ["DeformConv2d", "DeformConvPack", "deform_conv2d"]
