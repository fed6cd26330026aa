"""The operations of the core: NumPy (or any CPU tensor that speaks DLPack) in, NumPy out. No torch."""

from __future__ import annotations

from centermask._ops_decode import Centers, decode_centers, gather_patches, preprocess

__all__ = [
    "Centers",
    "decode_centers",
    "gather_patches",
    "preprocess",
]
