"""Writing files so that they appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray


def make_room(path: str | os.PathLike[str]) -> None:
    """Makes the folder of a file that is to be written after long work, so that the work is not in vain.

    Raises:
        OSError: The folder cannot be made, or `path` is a folder itself.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder, a file is wanted")
    path.parent.mkdir(parents=True, exist_ok=True)


def write_image(path: str | os.PathLike[str], image: NDArray[np.uint8]) -> None:
    """Writes BGR `[H, W, 3]` in the format that the suffix names; the file appears complete or not at all.

    Raises:
        ValueError: OpenCV has no encoder for the suffix.
        OSError: The folder cannot be written to.
    """
    path = Path(path)
    options = [cv2.IMWRITE_JPEG_QUALITY, 92] if path.suffix.lower() in (".jpg", ".jpeg") else []
    try:
        ok, data = cv2.imencode(path.suffix, image, options)
    except cv2.error:
        ok = False
    if not ok:
        raise ValueError(f"{path}: OpenCV cannot write {path.suffix or 'a file without suffix'!r}; use .jpg or .png")
    write_atomically(path, data.tobytes())


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes to a temporary file in the same folder and renames it: nobody ever sees half a file."""
    temporary = temporary_path(path)
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_path(path: str | os.PathLike[str]) -> Path:
    """A hidden name beside `path`, of the same suffix (encoders choose the format by it) and of this process alone."""
    path = Path(path)
    return path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
