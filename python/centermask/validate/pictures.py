"""One picture: whether it can be read, its size and orientation, and what tells it from others."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from centermask import _image_file

TRANSPOSED = (5, 6, 7, 8)
"""The EXIF orientations that exchange width and height."""

_HASHED = 32
THUMBNAIL = 16


class Picture(NamedTuple):
    """What is known of a file.

    Attributes:
        cause: Why it cannot be read; None if it can, and then the rest is set.
        width: As stored, before any EXIF rotation.
        height: Likewise.
        orientation: The EXIF orientation, 1..8.
        digest: Of the file's bytes.
        hash: Perceptual: 64 signs of the low frequencies. Near-duplicates differ in few bits.
        thumbnail: uint8 [16, 16], grey.
    """

    cause: str | None
    width: int = 0
    height: int = 0
    orientation: int = 1
    digest: bytes = b""
    hash: int = 0
    thumbnail: NDArray[np.uint8] | None = None


def read_picture(path: Path) -> Picture:
    """Reads and decodes a file. JPEGs are decoded at a fraction of their size, which is all that is needed."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return Picture(f"cannot be opened: {error.strerror}")
    if not data:
        return Picture("the file is empty (0 bytes)")
    cause = _image_file.truncation(data)
    if cause is not None:
        return Picture(cause)
    header = _image_file.jpeg_header(data)
    flags = cv2.IMREAD_GRAYSCALE
    if header is not None:
        side = min(header[:2])
        if side >= 16 * _HASHED:
            flags = cv2.IMREAD_REDUCED_GRAYSCALE_8
        elif side >= 8 * _HASHED:
            flags = cv2.IMREAD_REDUCED_GRAYSCALE_4
    try:
        grey = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        return Picture(f"OpenCV cannot decode it: {str(error).strip()}")
    if grey is None:
        return Picture(f"damaged, or not a picture in a format that OpenCV reads ({len(data)} bytes)")
    pixels: NDArray[np.uint8] = grey.astype(np.uint8, copy=False)
    width, height, orientation = header or (grey.shape[1], grey.shape[0], _image_file.orientation(data))
    digest = hashlib.blake2b(data, digest_size=16).digest()
    code, thumbnail = perceptual_hash(pixels)
    return Picture(None, width, height, orientation, digest, code, thumbnail)


def perceptual_hash(grey: NDArray[np.uint8]) -> tuple[int, NDArray[np.uint8]]:
    """The signs of the 8x8 lowest frequencies of the cosine transform against their median (pHash), and a thumbnail.

    Args:
        grey: uint8 [h, w].

    Returns:
        64 bits; uint8 [16, 16].
    """
    small = cv2.resize(grey, (_HASHED, _HASHED), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small.astype(np.float32))[:8, :8].ravel()
    bits = low > np.median(low[1:])
    thumbnail = cv2.resize(small, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    return int.from_bytes(np.packbits(bits).tobytes(), "big"), np.asarray(thumbnail, np.uint8)
